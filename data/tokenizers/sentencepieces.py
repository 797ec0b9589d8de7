"""Subword tokens: byte-pair encoding by sentencepiece, made lossless for every Unicode text."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import sentencepiece

from data.errors import DataError
from data.tokenizers import files as tokenizer_files
from data.tokenizers.checks import checked_ids, joined, utf8
from data.tokenizers.sentencepiece_training import train_model

# sentencepiece writes a space as this character inside, so it cannot tell the two apart: we never show it one.
_SPACE_MARK = "\u2581"
# A segment: a mark alone; the text up to the next mark or the end; else as many whole lines, or characters, as fit.
_SEGMENT = re.compile("M|[^M]{1,100000}(?=M|\\Z)|[^M]{0,100000}\n|[^M]{1,100000}".replace("M", _SPACE_MARK))
# Whatever a normaliser changes: case, compatibility forms, accents, runs and ends of spaces, tabs, line ends.
_PROBE = "  Ａb  ﬁ① e\u0301é\u00a0\t x\r\n\n Z "


class SentencePieceTokenizer:
    """A sentencepiece model as a `Tokenizer`.

    Models of `train` are lossless. sentencepiece itself turns U+2581 into a space; here that character goes through
    its three byte pieces, and decoding joins the bytes of the pieces. Texts of more than 100,000 characters are
    encoded in segments, cut at line ends, which bounds memory and uses all cores.

    Models from elsewhere, and those trained without byte fallback, may normalise text or lack byte pieces (`lossless`
    is False): then decode(encode(text)) is what that model makes of the text, unknown ids vanish, and token_bytes_V is
    best effort: the bytes of each piece, a space for each U+2581, which counts a dummy prefix and does not see what
    normalisation dropped.
    """

    kind = "sentencepiece"

    def __init__(self, model: bytes, name: str = "sentencepiece model"):
        """`model`: the content of a `.model` file; `name`: what errors call it. Raises DataError if it is not one."""
        self.model = model
        self._processor = _processor(model, name)
        self.vocab_size = self._processor.get_piece_size()
        ids = {role: getattr(self._processor, f"{role}_id")() for role in ("pad", "eos", "bos", "unk")}
        self.special_ids: dict[str, int] = {role: id for role, id in ids.items() if id >= 0} | self._sentinels()
        self.eos_id: int | None = self.special_ids.get("eos")
        self.eos_ids: tuple[int, ...] = () if self.eos_id is None else (self.eos_id,)
        self.begin_ids = self.eos_ids
        self.fingerprint = tokenizer_files.fingerprint(self.kind, model)
        self._bytes_V = [_piece_bytes(self._processor, id) for id in range(self.vocab_size)]
        self.token_bytes_V = np.array([len(piece) for piece in self._bytes_V], np.int32)
        self._mark_ids = self._byte_ids(utf8(_SPACE_MARK))
        self.lossless = self._is_lossless()

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, seed: int = 0) -> "SentencePieceTokenizer":
        """Byte-pair encoding (Sennrich et al. 2016) with all 256 bytes, of exactly `vocab_size` ids.

        Ids: 0 unknown (never used), 1 end of document, 2 to 257 the bytes, then pieces by merge order, then single
        characters. Raises DataError with the numbers where the texts hold fewer pieces than that, or none.
        See `train_model` for what is sampled when there is much text; `seed` chooses the sample.
        """
        return cls(train_model(texts, vocab_size, seed))

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        for text in texts:
            utf8(text)  # sentencepiece's own error does not say where
        segments = [self._segments(text) for text in texts]
        shown = [segment for of_text in segments for segment in of_text if not self._is_mark(segment)]
        threads = max(1, min(len(shown), os.cpu_count() or 1))
        ids = iter(self._processor.encode(shown, out_type=int, num_threads=threads))
        return [self._joined(of_text, ids) for of_text in segments]

    def _segments(self, text: str) -> list[str]:
        return _SEGMENT.findall(text) if self.lossless else [text]

    def _is_mark(self, segment: str) -> bool:
        return self.lossless and segment == _SPACE_MARK

    def _joined(self, segments: list[str], ids: Iterator[list[int]]) -> np.ndarray:
        parts = [self._mark_ids if self._is_mark(segment) else next(ids) for segment in segments]
        return np.array(list(chain.from_iterable(parts)), np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        array = checked_ids(ids, self.vocab_size)
        if self.lossless:
            return b"".join([self._bytes_V[id] for id in array]).decode("utf-8", errors="replace")
        return self._processor.decode([int(id) for id in array if self._bytes_V[id]])

    def wrap(self, ids: Sequence[int], pair: Sequence[int] | None = None) -> list[int]:
        return joined(ids, pair)

    def save(self, folder: str | Path) -> None:
        tokenizer_files.save(folder, self, self.model)

    def _sentinels(self) -> dict[str, int]:
        """Those among the ids that no text gives; where they are ordinary pieces, they stand for their text."""
        names = {f"extra_{number}": f"<extra_id_{number}>" for number in range(100)}
        ids = {role: self._processor.piece_to_id(name) for role, name in names.items()}
        return {role: id for role, id in ids.items() if self._processor.is_control(id)}

    def _byte_ids(self, content: bytes) -> list[int]:
        return [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in content]

    def _is_lossless(self) -> bool:
        all_bytes = bytes(range(256))
        if not all(map(self._processor.is_byte, self._byte_ids(all_bytes))):
            return False
        return b"".join([self._bytes_V[id] for id in self._processor.encode(_PROBE)]) == utf8(_PROBE)


def _processor(model: bytes, name: str) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.load_from_serialized_proto(model)
        whole = processor.get_piece_size() > 0
    except (RuntimeError, OSError, ValueError):
        whole = False
    if not whole:
        raise DataError(f"{name} is not a sentencepiece model ({len(model)} bytes)")
    return processor


def _piece_bytes(processor: sentencepiece.SentencePieceProcessor, id: int) -> bytes:
    """The text an id stands for; nothing for unknown, control and unused ids."""
    if processor.is_unknown(id) or processor.is_control(id) or processor.is_unused(id):
        return b""
    piece = processor.id_to_piece(id)
    return bytes([int(piece[3:5], 16)]) if processor.is_byte(id) else utf8(piece.replace(_SPACE_MARK, " "))
