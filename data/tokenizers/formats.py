"""The vocabulary files of GPT-2, BERT, T5 and Llama as `tokenizers.Tokenizer`, equal to those of `transformers`."""

import re

import tokenizers
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2 as messages
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from data.errors import DataError
from data.json_text import parse_json

_SPACE_MARK = "\u2581"
_UNIGRAM = 1  # sentencepiece's TrainerSpec.ModelType; 2 is BPE
_CONTROL, _USER_DEFINED = 3, 4  # sentencepiece's ModelProto.SentencePiece.Type


def byte_level_bpe(vocab: bytes, merges: bytes, *, prefix_space: bool, name: str) -> tokenizers.Tokenizer:
    """GPT-2's tokenizer (Radford et al. 2019) of its `vocab.json` and `merges.txt`. DataError if they are not such."""
    try:
        ids = parse_json(vocab)
    except ValueError as error:
        raise DataError(f"the vocabulary of {name} is not JSON ({len(vocab)} bytes): {error}") from error
    if not isinstance(ids, dict) or sorted(map(str, ids.values())) != sorted(map(str, range(len(ids)))):
        raise DataError(f"the vocabulary of {name} must give each piece its own id, 0 to their number less 1")
    pairs = []
    for number, line in enumerate(merges.decode("utf-8", errors="replace").split("\n"), 1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.rstrip("\r").partition(" ")
        unknown = [piece for piece in (left, right, left + right) if piece not in ids]
        if unknown:
            raise DataError(f"line {number} of the merges of {name}: {unknown[0]!r} is not in the vocabulary")
        pairs.append((left, right))
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def word_pieces(
    vocab: bytes, *, lower: bool | None, strip_accents: bool | None, chinese: bool, unk: str, name: str
) -> tokenizers.Tokenizer:
    """BERT's tokenizer (Devlin et al. 2018) of its `vocab.txt`, one piece a line. Raises DataError if it is not.

    `lower`: None lowers text if no piece beside the special ones has an upper-case letter. `strip_accents`: None does
    what `lower` does. `chinese`: every Chinese character is a word. `unk`: the text of the unknown token.
    """
    pieces = vocab.decode("utf-8", errors="replace").replace("\r\n", "\n").removesuffix("\n").split("\n")
    ids = {}
    for id, piece in enumerate(pieces):
        if ids.setdefault(piece, id) != id:
            raise DataError(f"{name} has {piece!r} twice: on lines {ids[piece] + 1} and {id + 1}")
    if unk not in ids:
        raise DataError(f"{name} is no vocabulary of BERT: none of its {len(pieces)} lines is {unk!r}")
    if lower is None:
        lower = not any(piece != piece.lower() for piece in pieces if not re.fullmatch(r"\[.*\]|<.*>", piece))
    tokenizer = tokenizers.Tokenizer(models.WordPiece(ids, unk_token=unk))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese, strip_accents=strip_accents, lowercase=lower
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def sentence_pieces(model: bytes, *, sentinels: int = 0, name: str) -> tokenizers.Tokenizer:
    """The tokenizer of a sentencepiece model (Kudo and Richardson 2018). Raises DataError if it is none.

    `sentinels`: how many <extra_id_N> follow the pieces, with the highest id for N = 0 (T5, Raffel et al. 2020).
    """
    proto = messages.ModelProto()  # pyright: ignore[reportAttributeAccessIssue]  (protobuf makes it at run time)
    try:
        proto.ParseFromString(model)
    except DecodeError:
        proto.Clear()
    if not proto.pieces:
        raise DataError(f"{name} is not a sentencepiece model ({len(model)} bytes)")
    rules, spec = proto.normalizer_spec, proto.trainer_spec
    extra = [f"<extra_id_{number}>" for number in reversed(range(sentinels))]
    pieces = [(piece.piece, piece.score) for piece in proto.pieces] + [(piece, 0.0) for piece in extra]
    if spec.model_type == _UNIGRAM:
        network = models.Unigram(pieces, unk_id=spec.unk_id, byte_fallback=spec.byte_fallback)
    else:
        ids = {piece: id for id, (piece, _) in enumerate(pieces)}
        unk = pieces[spec.unk_id][0]
        network = models.BPE(
            vocab=ids, merges=_merges(pieces), unk_token=unk, fuse_unk=True, byte_fallback=spec.byte_fallback
        )
    tokenizer = tokenizers.Tokenizer(network)
    normalize = [normalizers.Precompiled(rules.precompiled_charsmap)] if rules.precompiled_charsmap else []
    prefix = "always" if rules.add_dummy_prefix else "never"
    if rules.remove_extra_whitespaces:
        words = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), words])
    else:
        normalize += [normalizers.Prepend(_SPACE_MARK)] if rules.add_dummy_prefix else []
        normalize += [normalizers.Replace(" ", _SPACE_MARK)]
    if normalize:
        tokenizer.normalizer = normalizers.Sequence(normalize)
    tokenizer.decoder = _decoder(prefix, spec.byte_fallback)
    for piece in proto.pieces:
        if piece.type in (_CONTROL, _USER_DEFINED):
            token = tokenizers.AddedToken(piece.piece, normalized=False, special=piece.type == _CONTROL)
            tokenizer.add_tokens([token])
    tokenizer.add_special_tokens([pieces[spec.unk_id][0], *extra])
    return tokenizer


def template(
    tokenizer: tokenizers.Tokenizer, first: str | None, between: str | None, last: str | None, *, name: str
) -> processors.PostProcessor:
    """The post-processor to `first` a `last`, or `first` a `last` `between` b `last`. DataError for unknown tokens."""
    tokens = {token: tokenizer.token_to_id(token) for token in (first, between, last) if token}
    for token, id in tokens.items():
        if id is None:
            raise DataError(f"{name} has no token {token!r}, which its family puts around a text")
    parts = [first, "$A", last, between and f"{between}:1", "$B:1", last and f"{last}:1"]
    single, pair = ([part for part in some if part] for some in (parts[:3], parts))
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=list(tokens.items()))


def _merges(pieces: list[tuple[str, float]]) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, best score first: what sentencepiece, which stores no merges, may join."""
    known, merges = {piece for piece, _ in pieces}, []
    for id, (whole, score) in enumerate(pieces):
        cuts = ((whole[:at], whole[at:]) for at in range(1, len(whole)))
        merges += [(-score, id, len(left), left, right) for left, right in cuts if left in known and right in known]
    return [(left, right) for *_, left, right in sorted(merges)]


def _decoder(prefix: str, byte_fallback: bool) -> decoders.Decoder:
    if not byte_fallback:
        return decoders.Metaspace(prepend_scheme=prefix)
    steps = [decoders.Replace(_SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence(steps if prefix == "never" else [*steps, decoders.Strip(content=" ", left=1)])
