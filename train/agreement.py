"""Decisions that all processes of a run must share though each sees something else: a signal, its own clock."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Agreement:
    """The largest value that any process has, asked after one step and known after the next.

    Every process must ask at the same point of the program. The question is a reduction of a few bytes, dispatched
    after the current step, so nobody waits for it. A single process gets its own values at once.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._alone = jax.process_count() == 1
        self._size, self._rows = mesh.size, NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._largest = jax.jit(lambda x_PN: x_PN.max(0), out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._asked: jax.Array | None = None

    def largest(self, *values: int) -> list[int]:
        """The largest of each value over the processes as of the call before; of the first call, zeros."""
        if self._alone:
            return list(values)
        before, own_1N = self._asked, np.asarray([values], np.int32)
        shape = (self._size, len(values))
        self._asked = self._largest(jax.make_array_from_callback(shape, self._rows, lambda _: own_1N))
        return [0] * len(values) if before is None else jax.device_get(before).tolist()

    def forget(self) -> None:
        """Drops the pending answer, because it was acted on in the meantime."""
        self._asked = None
