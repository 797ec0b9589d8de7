"""Recurrent language models, which came before the Transformer: the simple RNN, the LSTM and the GRU."""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from model.layers import Dropout, Initializer, Linear
from model.parameters import declare
from model.sharding import ShardingRules
from model.transformer import Factory, Output

States = tuple[jax.Array, ...]  # each (B, D), f32; the first is what the layer puts out


class RecurrentCache(struct.PyTreeNode):
    """The memory of a recurrent network after some tokens; its size does not depend on their number."""

    states_LBD: tuple[jax.Array, ...]  # f32, one for each state of the cell
    segment_B: jax.Array  # of the last token that was no padding; 0: none yet
    filled: jax.Array  # int32 scalar, tokens read

    def take(self, rows_B: jax.Array) -> "RecurrentCache":
        """The cache of these rows of the batch, in this order; a row may be taken more than once."""
        states = tuple(jnp.take(state, rows_B, axis=1) for state in self.states_LBD)
        return self.replace(states_LBD=states, segment_B=jnp.take(self.segment_B, rows_B))


@dataclasses.dataclass(frozen=True)
class Cell:
    """One step of a layer: `step(states, x_BGD, h_BGD)`, with the input and the last output for each of G gates."""

    gates: int
    states: int
    step: Callable[[States, jax.Array, jax.Array], States]
    forget_gate: int | None = None  # whose bias starts at 1 (Jozefowicz et al. 2015)


def rnn_step(states: States, x_BGD: jax.Array, h_BGD: jax.Array) -> States:
    """h = tanh(x + h) (Elman 1990)."""
    return (jnp.tanh(x_BGD + h_BGD)[:, 0],)


def lstm_step(states: States, x_BGD: jax.Array, h_BGD: jax.Array) -> States:
    """c = f c + i g, h = o tanh(c), gates in the order i, f, g, o (Hochreiter & Schmidhuber 1997; Gers et al. 2000)."""
    i, f, g, o = jnp.moveaxis(x_BGD + h_BGD, 1, 0)
    c_BD = jax.nn.sigmoid(f) * states[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c_BD), c_BD


def gru_step(states: States, x_BGD: jax.Array, h_BGD: jax.Array) -> States:
    """h = z h + (1 - z) n, gates in the order r, z, n (Cho et al. 2014; r after the matrix product, as in cuDNN)."""
    r = jax.nn.sigmoid(x_BGD[:, 0] + h_BGD[:, 0])
    z = jax.nn.sigmoid(x_BGD[:, 1] + h_BGD[:, 1])
    n = jnp.tanh(x_BGD[:, 2] + r * h_BGD[:, 2])
    return (z * states[0] + (1 - z) * n,)


CELLS = {"rnn": Cell(1, 1, rnn_step), "lstm": Cell(4, 2, lstm_step, forget_gate=1), "gru": Cell(3, 1, gru_step)}


class RecurrentLayer(nn.Module):
    """One layer, scanned over time: x_BTD, states -> x_BTD, states. Inputs of all times are multiplied at once."""

    cell: Cell
    embed_dim: int
    norm: Factory | None  # of the input
    dropout: float
    initializer: Initializer
    rules: ShardingRules
    param_dtype: str

    @nn.compact
    def __call__(self, x_BTD: jax.Array, states: States, steps: "Steps", train: bool) -> tuple[jax.Array, States]:
        cell, shape = self.cell, (self.embed_dim, self.cell.gates, self.embed_dim)
        axes, dtype = ("embed", "gates", "mlp"), x_BTD.dtype
        x_BTD = x_BTD if self.norm is None else self.norm(name="norm")(x_BTD)
        x_BTD = Dropout(self.dropout)(x_BTD, train)
        linear = Linear("BTD,DGE->BTGE", shape, axes, self.initializer, axes[1:], self.param_dtype, name="input")
        x_TBGE = jnp.swapaxes(linear(x_BTD).astype(jnp.float32), 0, 1)
        kernel = self.param("kernel", declare(self.initializer, *axes), shape, self.param_dtype).astype(dtype)
        # Gathered before the loop: if it is cut along its input too, the compiler sums its gradient wrongly on a mesh
        # of data, fsdp and tensor (jax 0.10.2), and says nothing.
        kernel = self.rules.constrain(kernel, None, *axes[1:])
        bias_GE = self.param("bias", declare(self._bias, *axes[1:]), shape[1:], self.param_dtype)

        def step(states: States, at: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[States, jax.Array]:
            x_BGE, reset_B, skip_B = at
            fresh = tuple(jnp.where(reset_B[:, None], 0.0, state) for state in states)
            h_BGE = jnp.einsum("BD,DGE->BGE", fresh[0].astype(dtype), kernel, preferred_element_type=jnp.float32)
            new = cell.step(fresh, x_BGE, h_BGE + bias_GE.astype(jnp.float32))
            states = tuple(jnp.where(skip_B[:, None], o, n) for o, n in zip(states, new, strict=True))
            return states, states[0]

        states, h_TBD = jax.lax.scan(step, states, (x_TBGE, steps.reset_TB, steps.skip_TB))
        return jnp.swapaxes(h_TBD, 0, 1).astype(dtype), states

    def _bias(self, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        zeros = jnp.zeros(shape, dtype)
        return zeros if self.cell.forget_gate is None else zeros.at[self.cell.forget_gate].set(1)


class Steps(struct.PyTreeNode):
    """What happens to the memory at each step: it is reset where a segment begins, and kept over padding."""

    reset_TB: jax.Array
    skip_TB: jax.Array


class Recurrent(nn.Module):
    """A recurrent language model, called as `Transformer` is. Positions and prefixes mean nothing to it."""

    embedding: Factory
    cell: Cell
    norm: Factory | None
    head: Factory
    num_layers: int
    embed_dim: int
    dropout: float
    rules: ShardingRules
    param_dtype: str

    @nn.compact
    def __call__(
        self,
        ids_BT: jax.Array,
        *,
        segments_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        cache: RecurrentCache | None = None,
        train: bool = False,
        last: bool = False,
    ) -> Output:
        del positions_BT
        B, T = ids_BT.shape
        embedding = self.embedding(name="embedding")
        segments_BT = jnp.ones((B, T), jnp.int32) if segments_BT is None else segments_BT
        before = empty_recurrent_cache(self.cell, self.num_layers, B, self.embed_dim) if cache is None else cache
        steps, segment_B = _steps(segments_BT, before.segment_B)
        x_BTD = self.rules.constrain(embedding(ids_BT), "batch", "length", "residual")
        stacked = nn.scan(
            RecurrentLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=cast(Any, (0, nn.broadcast, nn.broadcast)),
            length=self.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        initializer = nn.initializers.normal(self.embed_dim**-0.5)
        layers = stacked(
            self.cell, self.embed_dim, self.norm, self.dropout, initializer, self.rules, self.param_dtype, name="layers"
        )
        x_BTD, states = layers(x_BTD, before.states_LBD, steps, train)
        x_BTD = x_BTD if self.norm is None else self.norm(name="norm")(x_BTD)
        x_BTD = Dropout(self.dropout)(self.rules.constrain(x_BTD, "batch", "length", "residual"), train)
        with jax.named_scope("head"):
            output = self.head(name="head")(x_BTD[:, -1:] if last else x_BTD, embedding, train)
        after = None if cache is None else RecurrentCache(states, segment_B, cache.filled + T)
        return output.replace(hidden_BTD=x_BTD, cache=after)


def empty_recurrent_cache(cell: Cell, num_layers: int, batch: int, embed_dim: int) -> RecurrentCache:
    """The memory before the first token."""
    zeros = jnp.zeros((num_layers, batch, embed_dim), jnp.float32)
    return RecurrentCache((zeros,) * cell.states, jnp.zeros(batch, jnp.int32), jnp.int32(0))


def _steps(segments_BT: jax.Array, segment_B: jax.Array) -> tuple[Steps, jax.Array]:
    """Where the memory is reset and kept, and the last segment of each row."""
    segments_TB = segments_BT.T

    def look(last_B: jax.Array, now_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        skip_B = now_B == 0
        return jnp.where(skip_B, last_B, now_B), (now_B != last_B) & (last_B != 0) & ~skip_B

    last_B, reset_TB = jax.lax.scan(look, segment_B, segments_TB)
    return Steps(reset_TB, segments_TB == 0), last_B
