"""What an out-of-memory error says in numbers: the one reader of the texts of compilers and run times."""

import dataclasses
import re

from train.console import size

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_NUMBER = r"([\d.]+) ?([KMGT]?)(?:i?B)?"
# What XLA says for TPUs (two wordings of its compiler, two of its run time), for GPUs and for CPUs.
_TEXTS = (
    rf"Used {_NUMBER} of {_NUMBER} hbm",
    rf"required .*?\({_NUMBER}\) exceeds available HBM \({_NUMBER}\)",
    rf"[Aa]ttempting to (?:allocate|reserve) {_NUMBER}\b.*?There are {_NUMBER} free",
    rf"[Oo]ut of memory (?:while trying to allocate|allocating|trying to allocate) {_NUMBER}",
)


@dataclasses.dataclass(frozen=True)
class Shortage:
    """What an out-of-memory error says. None: it does not."""

    asked: int | None  # bytes on one device: of all, arguments included, or of the one request that was too much
    there: int | None  # bytes of a device, or those that were free

    @property
    def missing(self) -> int | None:
        return None if self.asked is None or self.there is None else max(self.asked - self.there, 0)

    def __str__(self) -> str:
        there = "" if self.there is None else f", {size(self.there)} there"
        return "out of memory" + ("" if self.asked is None else f": {size(self.asked)} asked for{there}")


def shortage(error: BaseException) -> Shortage | None:
    """What an error says of main memory that a device lacks, or None where it is about something else: the registers
    and scratch memory of a kernel too, which no layout makes larger."""
    text = str(error)
    if not isinstance(error, RuntimeError) or not re.search(r"RESOURCE_EXHAUSTED|[Oo]ut of memory", text):
        return None
    if re.search(r"memory space (?!hbm)", text):
        return None
    for pattern in _TEXTS:
        if found := re.search(pattern, text, re.DOTALL):
            asked, there = found.groups()[:2], found.groups()[2:]
            return Shortage(_bytes(*asked), _bytes(*there) if there else None)
    return Shortage(None, None) if "memory" in text.lower() else None


def _bytes(number: str, unit: str) -> int:
    return round(float(number.rstrip(".")) * _UNITS[unit])
