"""Special ids on top of any tokenizer: what objectives like BERT's and T5's need beyond the text."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.errors import DataError
from data.tokenizers import files as tokenizer_files
from data.tokenizers.checks import checked_ids, joined

if TYPE_CHECKING:
    from data.tokenizers.tokenizer import Tokenizer

NAMES = "pad, eos, bos, unk, mask, cls, sep, extra_0 to extra_99, mode_r, mode_s, mode_x"
_NAME = re.compile("pad|eos|bos|unk|mask|cls|sep|extra_[0-9]{1,2}|mode_[rsx]")


class WithSpecials:
    """`base` with an id after its own for each of `names` that it does not have: they stand for no text.

    wrap() is BERT's, [CLS] a [SEP] (b [SEP]), where there are cls and sep; T5's, a </s> (b </s>), where there are
    eos and extra_0; else that of `base`. encode() gives none of the new ids, whatever the text.
    """

    kind = "with_specials"

    def __init__(self, base: "Tokenizer", names: Sequence[str]):
        """Raises DataError for a name twice, or one that is not in `NAMES`."""
        for at, name in enumerate(names):
            if not _NAME.fullmatch(name) or name in names[:at]:
                why = "given twice" if name in names[:at] else f"not one of {NAMES}"
                raise DataError(f"special token {name!r} is {why}")
        self.base = base
        self.names = tuple(names)
        new = [name for name in names if name not in base.special_ids]
        self.special_ids = base.special_ids | {name: base.vocab_size + at for at, name in enumerate(new)}
        self.vocab_size = base.vocab_size + len(new)
        self.eos_id: int | None = self.special_ids.get("eos")
        new_eos = (self.special_ids["eos"],) if "eos" in new else ()
        self.eos_ids: tuple[int, ...] = (*new_eos, *base.eos_ids)
        self.begin_ids: tuple[int, ...] = base.begin_ids or new_eos
        self.token_bytes_V = np.concatenate([base.token_bytes_V, np.zeros(len(new), np.int32)])
        self._content = json.dumps({"names": self.names, "base": base.fingerprint}).encode()
        self.fingerprint = tokenizer_files.fingerprint(self.kind, self._content)

    def encode(self, text: str) -> list[int]:
        return self.base.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return self.base.encode_batch(texts)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        array = checked_ids(ids, self.vocab_size)
        return self.base.decode(array[array < self.base.vocab_size])

    def wrap(self, ids: Sequence[int], pair: Sequence[int] | None = None) -> list[int]:
        special = self.special_ids
        if {"cls", "sep"} <= special.keys():
            first, last = [special["cls"]], [special["sep"]]
        elif {"eos", "extra_0"} <= special.keys():
            first, last = [], [special["eos"]]
        else:
            return self.base.wrap(ids, pair)
        return joined(first, ids, last, pair, None if pair is None else last)

    def save(self, folder: str | Path) -> None:
        """The base goes to the folder `base` in it."""
        self.base.save(Path(folder).expanduser() / "base")
        tokenizer_files.save(folder, self, self._content)
