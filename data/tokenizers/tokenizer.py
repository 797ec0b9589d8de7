"""Text to ids and back: what a tokenizer is, and the two that need no training beyond a look at the characters."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from data.errors import DataError, missing_path
from data.json_text import parse_json
from data.tokenizers import files as tokenizer_files
from data.tokenizers.checks import checked_ids, joined, utf8
from data.tokenizers.huggingface import HuggingFaceTokenizer
from data.tokenizers.pretrained import has_tokenizer, load_pretrained_tokenizer
from data.tokenizers.sentencepieces import SentencePieceTokenizer
from data.tokenizers.special_tokens import WithSpecials

__all__ = [
    "ByteTokenizer",
    "CharTokenizer",
    "HuggingFaceTokenizer",
    "SentencePieceTokenizer",
    "Tokenizer",
    "WithSpecials",
    "load_tokenizer",
]


class Tokenizer(Protocol):
    """Text to ids and back. Those made here lose nothing: decode(encode(text)) == text, and token_bytes_V sums to it.
    A text that spells the name of a special id, "<|endoftext|>" say, is text there: it ends no document.

    Two kinds that are trained here on request do lose text: sentencepiece without byte fallback (characters without a
    piece become the unknown id, which decodes to nothing) and WordPiece (spaces, and as asked case and accents). Those
    of published models follow their own rules, see `HuggingFaceTokenizer`.
    """

    @property
    def kind(self) -> str: ...  # "byte", "char", "sentencepiece", "huggingface", "with_specials"

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos_id(self) -> int | None: ...  # closes a document; None: the vocabulary has no such id

    @property
    def eos_ids(self) -> tuple[int, ...]: ...  # all that end a text: eos_id first; published models may have more

    @property
    def begin_ids(self) -> tuple[int, ...]: ...  # stand before a text that is continued: <s>; an eos where trained here

    @property
    def special_ids(self) -> dict[str, int]: ...  # by role: pad eos bos unk mask cls sep, extra_0 ... (T5's sentinels)

    @property
    def token_bytes_V(self) -> np.ndarray: ...  # int32: UTF-8 bytes of text each id stands for, 0 for special ids

    @property
    def fingerprint(self) -> str: ...  # equal fingerprints, equal ids

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, no special ids added; without loss, their token_bytes_V sum to its UTF-8 bytes."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text, int32 (N,), in the same order; much faster than one at a time."""
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids. Special ids vanish, invalid UTF-8 becomes U+FFFD; DataError for ids out of range."""
        ...

    def wrap(self, ids: Sequence[int], pair: Sequence[int] | None = None) -> list[int]:
        """The ids of one text, or two, with what the model's family puts around them; nothing for those made here."""
        ...

    def save(self, folder: str | Path) -> None: ...


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer saved in a folder, that of a published model's folder, or of a sentencepiece `.model` file.

    Raises DataError for a path that is none of these, and for data that does not have the fingerprint it was saved
    with. For a published one see `load_pretrained_tokenizer`.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return SentencePieceTokenizer(place.read_bytes(), name=str(place))
    if not place.is_dir():
        raise missing_path("tokenizer", str(path), known=("byte", "char", "sentencepiece"))
    if not (place / tokenizer_files.MANIFEST).is_file() and has_tokenizer(place):
        return load_pretrained_tokenizer(place)
    kind, content = tokenizer_files.load(place)
    if kind == "byte":
        return ByteTokenizer()
    if kind == "char":
        try:
            return CharTokenizer(content.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(f"{place} is no list of characters: it is not UTF-8 at byte {error.start}") from error
    if kind == "huggingface":
        return HuggingFaceTokenizer(content, name=str(place))
    if kind == "with_specials":
        return _load_with_specials(place, content)
    return SentencePieceTokenizer(content, name=str(place))


def _load_with_specials(folder: Path, content: bytes) -> WithSpecials:
    try:
        fields = parse_json(content)
        made, names = fields["base"], [str(name) for name in fields["names"]]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{folder} holds no list of special ids on top of a tokenizer: {error!r}") from error
    base = load_tokenizer(folder / "base")
    if base.fingerprint != made:
        raise DataError(f"{folder / 'base'} has fingerprint {base.fingerprint}, but was {made} when saved")
    return WithSpecials(base, names)


class ByteTokenizer:
    """The 256 bytes of UTF-8, and 256 for the end of a document."""

    kind = "byte"
    vocab_size = 257
    eos_id = 256
    eos_ids = begin_ids = (256,)

    def __init__(self):
        self.special_ids = {"eos": self.eos_id}
        self.token_bytes_V = np.array([1] * 256 + [0], np.int32)
        self.fingerprint = tokenizer_files.fingerprint(self.kind, b"")

    def encode(self, text: str) -> list[int]:
        return list(utf8(text))

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(utf8(text), np.uint8).astype(np.int32) for text in texts]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        array = checked_ids(ids, self.vocab_size)
        return array[array < 256].astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def wrap(self, ids: Sequence[int], pair: Sequence[int] | None = None) -> list[int]:
        return joined(ids, pair)

    def save(self, folder: str | Path) -> None:
        tokenizer_files.save(folder, self, b"")


class CharTokenizer:
    """One id for each character of a corpus, in the order of code points; no special ids (nanoGPT's char level)."""

    kind = "char"
    eos_id = None
    eos_ids = begin_ids = ()

    def __init__(self, chars: str):
        if not chars or list(chars) != sorted(set(chars)):
            raise DataError(f"characters must be sorted and distinct, 1 or more, not {chars[:40]!r}")
        self.chars = chars
        self.special_ids: dict[str, int] = {}
        self.vocab_size = len(chars)
        self.token_bytes_V = np.array([len(utf8(char)) for char in chars], np.int32)
        self.fingerprint = tokenizer_files.fingerprint(self.kind, utf8(chars))
        self._code_points_V = _code_points(chars)

    @classmethod
    def train(cls, texts: Iterable[str]) -> "CharTokenizer":
        """The tokenizer of all characters in `texts`."""
        seen = set()
        for text in texts:
            seen.update(text)
        return cls("".join(sorted(seen)))

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> np.ndarray:
        codes = _code_points(text)
        ids = np.searchsorted(self._code_points_V, codes).clip(max=self.vocab_size - 1)
        unknown = np.flatnonzero(self._code_points_V[ids] != codes)
        if unknown.size:
            at = int(unknown[0])
            raise DataError(
                f"character {text[at]!r} (U+{ord(text[at]):04X}) at position {at} is not among the {self.vocab_size} "
                "characters of this tokenizer: train it on all of the text, or use tokenizer='byte'"
            )
        return ids.astype(np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        codes = self._code_points_V[checked_ids(ids, self.vocab_size)]
        return codes.astype("<u4").tobytes().decode("utf-32-le")

    def wrap(self, ids: Sequence[int], pair: Sequence[int] | None = None) -> list[int]:
        return joined(ids, pair)

    def save(self, folder: str | Path) -> None:
        tokenizer_files.save(folder, self, utf8(self.chars))


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), "<u4")
