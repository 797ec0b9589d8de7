"""Training byte-level BPE as GPT-2 has it and WordPiece as BERT has it, with the `tokenizers` library."""

import json
from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from data.errors import DataError
from data.tokenizers.formats import byte_level_bpe, template, word_pieces
from data.tokenizers.huggingface import HuggingFaceTokenizer
from data.tokenizers.training_text import (
    MAX_CHARACTERS,
    USUAL_COVERAGE,
    check_symbols,
    fitted,
    rare_characters,
    sentinel_names,
    training_chunks,
    without,
)

END_OF_TEXT = "<|endoftext|>"
WORDPIECE_ROLES = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}

_FEWEST_PIECES = 4
_MIN_FREQUENCY = 2  # a pair that comes once is no pattern
_PREFIX = "##"  # of a WordPiece that continues a word


def train_byte_bpe(
    texts: Iterable[str],
    vocab_size: int,
    seed: int = 0,
    *,
    symbols: Sequence[str] = (),
    sentinels: int = 0,
    max_characters: int = MAX_CHARACTERS,
) -> HuggingFaceTokenizer:
    """Byte-level BPE (Radford et al. 2019) of exactly `vocab_size` ids; equal inputs, equal bytes.

    Ids: 0 to 255 the bytes, pieces by merge order, the end of a document (<|endoftext|>), sentinels, symbols. Lossless
    for every text; "<|endoftext|>" or the name of a sentinel in it is text, not the id, unlike in GPT-2. Texts are
    split by GPT-2's pattern: letters, digits and other characters apart, each with the space before it.

    `symbols`, `sentinels`, `seed` and `max_characters` are as in `sentencepiece_training.train_model`. Raises
    DataError, before training, for a vocabulary that is too small, a symbol that cannot be one, and no text; after it,
    for a vocabulary larger than the texts can fill.
    """
    special = [END_OF_TEXT, *sentinel_names(sentinels)]
    check_symbols(symbols, lambda symbol: symbol in special or len(symbol.encode()) == 1)
    for symbol in symbols:
        # The decoder takes a character of Latin-1 for the byte it stands for in the vocabulary.
        if decoders.ByteLevel().decode([symbol]) != symbol:
            raise DataError(f"symbol {symbol!r} would not decode to itself in byte-level BPE: write it in ASCII")
    fixed = 256 + len(special) + len(symbols)
    _check_size(vocab_size, fixed, f"256 bytes, {_counts(special, symbols)}")
    chunks = training_chunks(texts, symbols, seed, max_characters)

    def attempt(size: int) -> tuple[tokenizers.Tokenizer | None, int]:
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(  # pyright: ignore[reportCallIssue]
            vocab_size=size - len(special) - len(symbols),
            min_frequency=_MIN_FREQUENCY,
            initial_alphabet=alphabet,
            show_progress=False,
        )
        learner = tokenizers.Tokenizer(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        learner.train_from_iterator(chunks, trainer)
        learned = json.loads(learner.to_str())["model"]
        held = len(learned["vocab"]) + len(special) + len(symbols)
        if held < size:
            return None, held
        merges = "\n".join(" ".join(pair) for pair in learned["merges"])
        name = "the trained byte-level BPE"
        return byte_level_bpe(
            json.dumps(learned["vocab"]).encode(), merges.encode(), prefix_space=False, name=name
        ), size

    backend = fitted(attempt, vocab_size, fixed + _FEWEST_PIECES)
    backend.add_special_tokens(special)
    backend.add_tokens(_whole(symbols))
    eos = vocab_size - len(special) - len(symbols)
    ids = {"eos": eos} | {f"extra_{number}": eos + 1 + number for number in range(sentinels)}
    return HuggingFaceTokenizer.of(
        backend, ids, b"", "the trained byte-level BPE", begins=[eos], split_special_tokens=True
    )


def train_word_pieces(
    texts: Iterable[str],
    vocab_size: int,
    seed: int = 0,
    *,
    coverage: float = USUAL_COVERAGE,
    lowercase: bool = False,
    chinese_characters: bool = True,
    symbols: Sequence[str] = (),
    sentinels: int = 0,
    max_characters: int = MAX_CHARACTERS,
) -> HuggingFaceTokenizer:
    """WordPiece (Schuster and Nakajima 2012) with the rules of BERT, of exactly `vocab_size` ids; repeatable bytes.

    Ids: [PAD] [UNK] [CLS] [SEP] [MASK], sentinels, symbols, characters inside words (##x), characters, pieces. Pieces
    are learned by merging the most frequent pair, as `tokenizers` does, not by likelihood; a word is encoded by its
    longest pieces from the left. wrap() is [CLS] a [SEP] (b [SEP]); there is no end of a document.

    The text is not kept: white space becomes one space, a word with a character that has no piece becomes [UNK], and
    `lowercase` takes case and accents away. "[MASK]" in it is text, not the id, unlike in BERT.
    `chinese_characters`: every Chinese character is a word.

    `coverage`: part of the text whose characters get pieces, two where they stand both first and later in words. For
    the rest, and what is raised, see `sentencepiece_training.train_model`.
    """
    special = [*WORDPIECE_ROLES.values(), *sentinel_names(sentinels)]
    check_symbols(symbols, lambda symbol: symbol in special or symbol.startswith(_PREFIX))
    fixed = len(special) + len(symbols)
    _check_size(vocab_size, fixed, _counts(special, symbols))
    rules = normalizers.BertNormalizer(lowercase=lowercase, handle_chinese_chars=chinese_characters)
    chunks = [rules.normalize_str(chunk) for chunk in training_chunks(texts, symbols, seed, max_characters)]
    if not any(map(str.strip, chunks)):
        raise DataError("there is no text to train a tokenizer on: what there is, is white space")

    def attempt(size: int) -> tuple[list[str] | None, int]:
        """The pieces by id and their number; or, where the chunks do not hold so many, None and that number."""
        shown = list(without(rare_characters(chunks, coverage, size - fixed), chunks))
        # The library numbers ##x in the order of a hash table, which differs from run to run, and the order decides
        # between pairs of equal frequency. So they are found first, and given to it sorted.
        single = _learn_word_pieces(shown, 0, [*special, *symbols])
        inside = sorted(piece for piece in single if piece.startswith(_PREFIX))
        if len(single) > size:
            raise DataError(
                f"a vocabulary of {vocab_size} ids is too small for the characters of this text: {fixed} special ids "
                f"and symbols and {len(single) - fixed} for characters, {len(inside)} of them inside words, need "
                f"{len(single)} or more; or lower the coverage"
            )
        pieces = _learn_word_pieces(shown, size, [*special, *symbols, *inside])
        return (pieces, size) if len(pieces) == size else (None, len(pieces))

    pieces = fitted(attempt, vocab_size, fixed + _FEWEST_PIECES)
    name, unk = "the trained WordPiece", WORDPIECE_ROLES["unk"]
    backend = word_pieces(
        "\n".join(pieces).encode(),
        lower=lowercase,
        strip_accents=None,
        chinese=chinese_characters,
        unk=unk,
        name=name,
    )
    backend.add_special_tokens(special)
    backend.add_tokens(_whole(symbols))
    backend.post_processor = template(backend, WORDPIECE_ROLES["cls"], None, WORDPIECE_ROLES["sep"], name=name)
    roles = [*WORDPIECE_ROLES, *(f"extra_{number}" for number in range(sentinels))]
    ids = {role: id for id, role in enumerate(roles)}
    return HuggingFaceTokenizer.of(backend, ids, b"", name, split_special_tokens=True)


def _learn_word_pieces(chunks: list[str], vocab_size: int, given: list[str]) -> list[str]:
    """Pieces by id: `given`, single characters, then merges up to `vocab_size`."""
    trainer = trainers.WordPieceTrainer(  # pyright: ignore[reportCallIssue]
        vocab_size=vocab_size,
        min_frequency=_MIN_FREQUENCY,
        special_tokens=given,
        continuing_subword_prefix=_PREFIX,
        show_progress=False,
    )
    learner = tokenizers.Tokenizer(models.WordPiece(unk_token=WORDPIECE_ROLES["unk"]))
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    learner.train_from_iterator(chunks, trainer)
    ids = json.loads(learner.to_str())["model"]["vocab"]
    return sorted(ids, key=lambda piece: ids[piece])


def _whole(symbols: Sequence[str]) -> list[tokenizers.AddedToken]:
    return [tokenizers.AddedToken(symbol, normalized=False, special=False) for symbol in symbols]


def _counts(special: Sequence[str], symbols: Sequence[str]) -> str:
    return f"{len(special)} special ids and {len(symbols)} symbols"


def _check_size(vocab_size: int, fixed: int, what: str) -> None:
    if vocab_size < fixed + _FEWEST_PIECES:
        raise DataError(
            f"a vocabulary of {vocab_size} ids is too small: {what}, and {_FEWEST_PIECES} pieces need "
            f"{fixed + _FEWEST_PIECES} or more"
        )
