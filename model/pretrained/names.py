"""The tensors of a folder by the names of the mapping table: with or without the prefix, in new spelling or old."""

import re
from collections.abc import Iterable, Mapping

from model.pretrained.mapping import Family
from model.pretrained.safetensors_files import Tensor, WeightsError

OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # of the first BERT


class Names:
    """What a folder holds. `wanted`: names that stand for weights of their own, though in other models they repeat."""

    def __init__(self, tensors: Mapping[str, Tensor], family: Family, wanted: Iterable[str] = ()):
        self.tensors, self.prefix = tensors, family.prefix
        own = {self.core(name) for name in wanted}
        self.duplicates = {name: main for name, main in family.duplicates.items() if name not in own}
        self._by_core: dict[str, str] = {}
        for name in tensors:
            if other := self._by_core.get(self.core(name)):
                raise WeightsError(f"tensors {other} and {name} are two spellings of one name: remove one")
            self._by_core[self.core(name)] = name

    def core(self, name: str) -> str:
        """A name without prefix and in the new spelling."""
        name = name.removeprefix(self.prefix)
        return re.sub("|".join(map(re.escape, OLD)) + "$", lambda found: OLD[found[0]], name)

    def find(self, name: str) -> str | None:
        """The name in the folder: of the tensor itself, or else of one that repeats it."""
        core = self.core(name)
        spellings = [core, *(repeat for repeat, main in self.duplicates.items() if main == core)]
        return next((self._by_core[spelling] for spelling in spellings if spelling in self._by_core), None)

    def repeated(self, name: str) -> str | None:
        """The tensor in the folder that this one ought to repeat, if any."""
        main = self.duplicates.get(self.core(name))
        return None if main is None else self.find(main)

    def equal(self, name: str, other: str) -> bool:
        """Whether two tensors of the folder are the same to the bit."""
        a, b = self.tensors[name], self.tensors[other]
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        return all(x.tobytes() == y.tobytes() for x, y in zip(a.read(), b.read(), strict=True))
