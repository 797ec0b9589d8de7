"""What a Hugging Face `tokenizer.json` describes, run by the `tokenizers` library: published models, and ours."""

import base64
import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import tokenizers

from data.errors import DataError
from data.json_text import parse_json
from data.tokenizers import files as tokenizer_files
from data.tokenizers.checks import checked_ids, joined, utf8

# What a special token is for, as `special_ids` and `tokenizer_config.json` ("pad_token") call it.
ROLES = ("pad", "eos", "bos", "unk", "mask", "cls", "sep")
_BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")


class HuggingFaceTokenizer:
    """A `tokenizers.Tokenizer` and the ids of its special tokens as a `Tokenizer`.

    Ids and text equal those of `transformers`: encode() turns the text of a special token, say "[MASK]", into its id,
    and decode() is decode(skip_special_tokens=True, clean_up_tokenization_spaces=False). With `split_special_tokens`
    such text is text like any other: so it is where trained here, where no text can end a document by what it says. A
    truncation or padding that the file asks for is not done.

    Byte-level BPE is lossless, without `split_special_tokens` but for special tokens in the text. WordPiece and
    sentencepiece pieces change case, accents and spaces: there token_bytes_V is best effort, the UTF-8 bytes of each
    piece's characters.
    """

    kind = "huggingface"

    def __init__(self, content: bytes, name: str = "tokenizer"):
        """`content`: as `save` keeps it; `name`: what errors call it. Raises DataError if it is something else."""
        self._content = content
        with refusing(f"{name} is no saved Hugging Face tokenizer ({len(content)} bytes)"):
            self._read(parse_json(content), name)

    def _read(self, fields: dict, name: str) -> None:
        text, special_ids, model = fields["tokenizer"], fields["special_ids"], fields["sentencepiece"]
        self.backend = read_backend(text, name)
        # Older files have no such field, nor `eos_ids`.
        self.split_special_tokens: bool = fields.get("split_special_tokens", False)
        self.backend.encode_special_tokens = self.split_special_tokens
        self.special_ids: dict[str, int] = special_ids
        self.sentencepiece_model = base64.b64decode(model)
        self.eos_id: int | None = special_ids.get("eos")
        own = () if self.eos_id is None else (self.eos_id,)
        self.eos_ids: tuple[int, ...] = tuple(fields.get("eos_ids", own))
        self.fingerprint = tokenizer_files.fingerprint(self.kind, self._content)
        self.token_bytes_V = _token_bytes(self.backend, json.loads(text)["decoder"])
        self.vocab_size = len(self.token_bytes_V)
        self._single, self._pair = _template(self.backend, "a"), _template(self.backend, "a", "a")
        first = self._single[0]
        template = first if isinstance(first, list) else []
        self.begin_ids: tuple[int, ...] = tuple(fields.get("begin_ids", template))

    @classmethod
    def of(
        cls,
        backend: tokenizers.Tokenizer,
        special_ids: dict[str, int],
        model: bytes,
        name: str,
        ends: Sequence[int] = (),
        begins: Sequence[int] = (),
        split_special_tokens: bool = False,
    ):
        """`special_ids`: by role, see `Tokenizer`; `model`: the sentencepiece model that `backend` was made from.

        `ends`: ids that end a text beside eos. `begins`: those before a text; none: as the post-processor says.
        """
        backend.no_truncation()
        backend.no_padding()
        eos = [special_ids["eos"]] if "eos" in special_ids else []
        fields = {
            "eos_ids": list(dict.fromkeys([*eos, *ends])),
            "special_ids": dict(sorted(special_ids.items())),
            "sentencepiece": base64.b64encode(model).decode(),
            "tokenizer": backend.to_str(),
        } | ({"begin_ids": list(begins)} if begins else {})
        if split_special_tokens:  # not in every file: those of published models keep their fingerprints
            fields["split_special_tokens"] = True
        return cls(json.dumps(fields).encode(), name)

    def encode(self, text: str) -> list[int]:
        utf8(text)  # half a surrogate pair: the library's own error does not say where
        with refusing("this tokenizer cannot encode"):
            return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        for text in texts:
            utf8(text)
        with refusing("this tokenizer cannot encode"):
            encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self.backend.decode(checked_ids(ids, self.vocab_size).tolist(), skip_special_tokens=True)

    def wrap(self, ids: Sequence[int], pair: Sequence[int] | None = None) -> list[int]:
        """What the post-processor makes of one text or two: [CLS] a [SEP], <s> a </s> </s> b </s>, a </s>, ..."""
        parts = self._single if pair is None else self._pair
        return joined(*((ids, pair)[part] if isinstance(part, int) else part for part in parts))

    def save(self, folder: str | Path) -> None:
        tokenizer_files.save(folder, self, self._content)


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """DataError, which begins with `what`, for all that goes wrong inside over a file that anyone may have written.

    The library raises nothing more special than `Exception`, and where it panics not even that.
    """
    try:
        yield
    except (DataError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise DataError(f"{what}: {type(error).__name__}: {str(error)[:200]}") from error


def read_backend(text: str, name: str) -> tokenizers.Tokenizer:
    """The tokenizer of the text of a `tokenizer.json`. Raises DataError, with `name`, if it is none."""
    with refusing(f"{name} is not a tokenizer.json ({len(text)} characters)"):
        return tokenizers.Tokenizer.from_str(text)


def _token_bytes(backend: tokenizers.Tokenizer, decoder: dict | None) -> np.ndarray:
    """int32 (V,): V is one more than the highest id; ids without a token, and special ones, have 0 bytes."""
    vocab = backend.get_vocab(with_added_tokens=True)
    kinds = set(re.findall(r'"type": "(\w+)"', json.dumps(decoder)))
    token_bytes_V = np.zeros(max(vocab.values()) + 1, np.int32)
    for piece, id in vocab.items():
        token_bytes_V[id] = _piece_bytes(piece, kinds)
    for id, token in backend.get_added_tokens_decoder().items():
        token_bytes_V[id] = 0 if token.special else len(token.content.encode())
    return token_bytes_V


def _piece_bytes(piece: str, decoder_kinds: set[str]) -> int:
    if "ByteLevel" in decoder_kinds:
        return len(piece)  # one character for each byte
    if "ByteFallback" in decoder_kinds and _BYTE_PIECE.fullmatch(piece):
        return 1
    if "WordPiece" in decoder_kinds:
        return len(piece.removeprefix("##").encode())
    return len(piece.replace("\u2581", " ").encode())  # sentencepiece's mark for a space


def _template(backend: tokenizers.Tokenizer, text: str, pair: str | None = None) -> list[list[int] | int]:
    """What the post-processor puts around texts: special ids where they stand, 0 and 1 in the place of the texts."""
    encoding = backend.encode(text, pair)
    parts = []
    for of, ids in groupby(zip(encoding.sequence_ids, encoding.ids, strict=True), key=lambda item: item[0]):
        parts.append([id for _, id in ids] if of is None else of)
    if [part for part in parts if isinstance(part, int)] != ([0] if pair is None else [0, 1]):
        raise DataError(
            f"the post-processor must keep texts whole and in order, not make {parts} of {text!r}, {pair!r}"
        )
    return parts
