"""Which characters of a text each of its tokens stands for."""

from collections.abc import Sequence

import numpy as np

from data.errors import DataError
from data.tokenizers.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer, WithSpecials

Encoded = tuple[np.ndarray, np.ndarray]


def encode_with_offsets(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Encoded]:
    """For each text, its ids (N,) and the characters [start, end) of each, int32 (N, 2).

    The ids are those of `encode`. A token that holds a part of a character has the whole of it. Raises DataError for
    a tokenizer that changes the text and does not tell the places: a sentencepiece model that is not lossless.
    """
    while isinstance(tokenizer, WithSpecials):
        tokenizer = tokenizer.base
    if isinstance(tokenizer, HuggingFaceTokenizer):
        encodings = tokenizer.backend.encode_batch(list(texts), add_special_tokens=False)
        return [
            (np.array(encoding.ids, np.int32), np.array(encoding.offsets, np.int32).reshape(-1, 2))
            for encoding in encodings
        ]
    if isinstance(tokenizer, SentencePieceTokenizer) and not tokenizer.lossless:
        raise DataError(
            "this sentencepiece model changes text, and does not tell where its pieces stood: use a lossless one, or "
            "the tokenizer.json or the folder of the published model"
        )
    ids = tokenizer.encode_batch(texts)
    return [(ids_N, _by_bytes(tokenizer, text, ids_N)) for text, ids_N in zip(texts, ids, strict=True)]


def _by_bytes(tokenizer: Tokenizer, text: str, ids_N: np.ndarray) -> np.ndarray:
    """Tokens of a lossless tokenizer lie end to end in the bytes of the text."""
    sizes_N = np.asarray(tokenizer.token_bytes_V)[ids_N]
    codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
    char_of_byte = np.repeat(np.arange(len(codes)), 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000))
    ends_N = np.cumsum(sizes_N)
    return np.stack([char_of_byte[ends_N - sizes_N], char_of_byte[ends_N - 1] + 1], axis=1).astype(np.int32)
