"""Which mesh axis holds which logical axis of weights and activations.

Weights and activations name their axes logically ("embed", "heads", "batch"). One frozen `ShardingRules` maps each of
these names to mesh axes, so a network is written once and its layout changes by changing a rule.
"""

import dataclasses
from collections.abc import Sequence

import jax
from jax.sharding import PartitionSpec

MESH_AXES = ("data", "stage", "fsdp", "tensor", "context", "expert")
STAGE = "stage"  # of a pipeline: see `model.pipeline`
Axes = str | tuple[str, ...] | None


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Mesh axes of each logical axis: a name, several names (outermost first), or None for replicated.

    Raises:
        ValueError: a mesh axis that does not exist, or rules that do not go together.
    """

    # Activations
    batch: Axes = ("stage", "data", "fsdp", "expert")
    length: Axes = "context"  # inside attention and MLP
    sequence: Axes = "context"  # the length of the residual stream, outside them: `length`, and perhaps more axes
    residual: Axes = None  # width of the residual stream
    # Activations and weights
    heads: Axes = "tensor"
    kv_heads: Axes = "tensor"
    head_dim: Axes = None
    mlp: Axes = "tensor"
    vocab: Axes = "tensor"
    experts: Axes = "expert"  # inside the expert layer, instead of the batch
    # Weights
    embed: Axes = "fsdp"  # the side of a weight that meets the residual stream
    position: Axes = None  # rows of a position table
    norm: Axes = None  # scales and biases of norms, and biases on the residual stream
    layers: Axes = "stage"
    head: Axes = None  # outputs of a task's head
    gates: Axes = None  # of a recurrent layer, and of a router to experts

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            for axis in mesh_axes(getattr(self, field.name)):
                if axis not in MESH_AXES:
                    raise ValueError(f"sharding.{field.name} is {axis!r}: the mesh axes are {', '.join(MESH_AXES)}")
        length, sequence = mesh_axes(self.length), mesh_axes(self.sequence)
        if sequence[: len(length)] != length:
            raise ValueError(
                f"sharding.sequence is {self.sequence!r} and sharding.length {self.length!r}: the residual stream is "
                f"cut at least as attention is, let sharding.sequence begin with {','.join(length)!r}"
            )
        if self.layers not in (None, STAGE):
            raise ValueError(f"sharding.layers is {self.layers!r}: layers lie along {STAGE!r}, or '' (replicated)")

    def spec(self, *logical: str | None) -> PartitionSpec:
        """The mesh axes of an array whose dimensions are named, in order; None: whole.

        Mesh axes that are manual here (inside `jax.shard_map`) are left out: they are cut already.

        Raises:
            AttributeError: a logical axis that no rule names.
            ValueError: two dimensions on one mesh axis, which cannot be.
        """
        manual = jax.sharding.get_abstract_mesh().manual_axes
        axes: list[Axes] = []
        used: dict[str, str] = {}
        for name in logical:
            if name is None:
                axes.append(None)
                continue
            entry = tuple(axis for axis in mesh_axes(getattr(self, name)) if axis not in manual)
            axes.append(entry if len(entry) > 1 else (entry[0] if entry else None))
            for axis in entry:
                if axis in used:
                    raise ValueError(
                        f"dimensions {used[axis]!r} and {name!r} of one array {logical} both lie on the mesh axis "
                        f"{axis!r}: set sharding.{used[axis]} or sharding.{name} to another axis, or to '' (replicated)"
                    )
                used[axis] = name
        return PartitionSpec(*axes)

    def constrain(self, x: jax.Array, *logical: str | None) -> jax.Array:
        """Fixes where an activation lies. A constraint without a mesh would do nothing in silence, so that raises.

        Raises:
            RuntimeError: no mesh is set.
        """
        if jax.sharding.get_abstract_mesh().empty:
            raise RuntimeError("no mesh is set: call the model inside `with jax.set_mesh(mesh):`")
        return jax.lax.with_sharding_constraint(x, self.spec(*logical))


def parse_axes(text: str) -> Axes:
    """`"data,fsdp"` -> `("data", "fsdp")`, `"tensor"` -> `"tensor"`, `""` -> None."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    return names if len(names) > 1 else (names[0] if names else None)


def shards(axes: Axes | Sequence[str], mesh_shape: dict[str, int]) -> int:
    """The number of shards of a dimension that lies on `axes`."""
    count = 1
    for axis in mesh_axes(axes):
        count *= mesh_shape[axis]
    return count


def mesh_axes(axes: Axes | Sequence[str]) -> tuple[str, ...]:
    """The mesh axes of a rule, as a tuple."""
    if axes is None:
        return ()
    return (axes,) if isinstance(axes, str) else tuple(axes)


FSDP_TENSOR = ShardingRules()
PRESETS = {
    # Every device holds every weight; the batch is split.
    "data_parallel": dataclasses.replace(FSDP_TENSOR, heads=None, kv_heads=None, mlp=None, vocab=None, embed=None),
    # ZeRO-3: weights, gradients and optimiser are split over `fsdp`, and gathered where they are used.
    "fsdp": dataclasses.replace(FSDP_TENSOR, heads=None, kv_heads=None, mlp=None, vocab=None),
    # Megatron: heads, MLP width and vocabulary are split over `tensor`.
    "tensor": dataclasses.replace(FSDP_TENSOR, embed=None),
    "fsdp_tensor": FSDP_TENSOR,
    # The same, and norms and residual sums are split over `tensor` too, along the length (Korthikanti et al. 2022).
    "sequence_parallel": dataclasses.replace(FSDP_TENSOR, sequence=("context", "tensor")),
}
