"""Special ids in text: `<mask>` or `<extra_0>` in a prompt becomes the id, and what was filled in becomes text."""

import re
from collections.abc import Sequence
from typing import Any

from data.tokenizers.huggingface import HuggingFaceTokenizer
from data.tokenizers.tokenizer import Tokenizer

_MARK = re.compile("<(mask|extra_[0-9]+)>")


def encode_marked(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text in which `<mask>`, `<extra_0>`, … stand for special ids; nothing is put around it.

    Raises:
        ValueError: a mark that the tokeniser has no id for.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer) and not tokenizer.split_special_tokens:
        # Its special tokens may take a space beside them: it must see the whole text.
        return tokenizer.encode(_MARK.sub(lambda mark: _own_text(tokenizer, mark[1]), text))
    ids: list[int] = []
    for part, piece in enumerate(_MARK.split(text)):
        if part % 2 == 0:
            ids += tokenizer.encode(piece) if piece else []
        else:
            ids.append(_id(tokenizer, piece))
    return ids


def _id(tokenizer: Tokenizer, name: str) -> int:
    if name not in tokenizer.special_ids:
        raise ValueError(f"the text has <{name}>, for which this tokeniser has no id")
    return tokenizer.special_ids[name]


def _own_text(tokenizer: Any, name: str) -> str:
    return tokenizer.backend.id_to_token(_id(tokenizer, name))


def sentinel_ids(tokenizer: Tokenizer) -> set[int]:
    """The ids of `<extra_0>`, `<extra_1>`, …"""
    return {id for name, id in tokenizer.special_ids.items() if name.startswith("extra_")}


def decode_filled(tokenizer: Tokenizer, ids: Sequence[int], answer: Sequence[int]) -> str:
    """The text of `ids`, each sentinel replaced by what follows it in `answer` (Raffel et al. 2020, figure 2)."""
    sentinels = sentinel_ids(tokenizer)
    spans: dict[int, list[int]] = {}
    current: list[int] = []
    for token in answer:
        if token in sentinels:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    filled = [part for token in ids for part in (spans.get(token, []) if token in sentinels else [token])]
    return tokenizer.decode(filled)
