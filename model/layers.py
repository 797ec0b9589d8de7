"""The smallest pieces: linear maps, embeddings, norms, dropout. Each weight is declared once, in one line."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from model.parameters import declare
from model.sharding import ShardingRules

Initializer = Callable[..., jax.Array]
FEW = 8  # rows: at most this many in a step of decoding
MANY = 256  # rows that are worth a copy of the weights


class Linear(nn.Module):
    """`einsum(equation, x, kernel) + bias`, in the type of `x`.

    The equation names the dimensions: `Linear("BTD,DHK->BTHK", (768, 12, 64), ("embed", "heads", "head_dim"), normal)`.
    The leading letters of the kernel are the trailing ones of `x` and are summed over; the bias has the rest.
    """

    equation: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    initializer: Initializer
    bias_axes: tuple[str, ...] | None = None
    param_dtype: str = "float32"
    out_dtype: str | None = None  # None: the type of x

    def setup(self) -> None:
        x_letters, kernel_letters, out_letters = self.equation.replace("->", ",").split(",")
        self.summed = len(set(x_letters) & set(kernel_letters))
        assert out_letters == x_letters[: len(x_letters) - self.summed] + kernel_letters[self.summed :], self.equation
        self.kernel = self.param("kernel", declare(self.initializer, *self.axes), self.shape, self.param_dtype)
        if self.bias_axes is not None:
            zeros = declare(nn.initializers.zeros_init(), *self.bias_axes)
            self.bias = self.param("bias", zeros, self.shape[self.summed :], self.param_dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.biased(_product(x, self.kernel.astype(x.dtype), self.summed, self.out_dtype))

    def biased(self, y: jax.Array) -> jax.Array:
        return y if self.bias_axes is None else y + self.bias.astype(y.dtype)


def side_by_side(linears: Sequence[Linear], x: jax.Array) -> list[jax.Array]:
    """What each of the maps makes of `x`.

    On one device in one product, with the kernels side by side: 4 % of a training step on a CPU. Not for few rows, for
    which copying the kernels costs more, and not on a mesh, which may cut each of them in another way.
    """
    summed, outer = linears[0].summed, [linear.shape[linear.summed :] for linear in linears]
    rows = math.prod(x.shape[: x.ndim - summed])
    if jax.sharding.get_abstract_mesh().size > 1 or rows < MANY or any(linear.out_dtype for linear in linears):
        return [linear(x) for linear in linears]
    inner = math.prod(linears[0].shape[:summed])
    kernels = [linear.kernel.astype(x.dtype).reshape(inner, -1) for linear in linears]
    ends = list(itertools.accumulate(kernel.shape[1] for kernel in kernels))[:-1]
    parts = jnp.split(x.reshape(rows, inner) @ jnp.concatenate(kernels, axis=1), ends, axis=1)
    shapes = [x.shape[: x.ndim - summed] + shape for shape in outer]
    return [linear.biased(y.reshape(shape)) for linear, y, shape in zip(linears, parts, shapes, strict=True)]


class Embedding(nn.Module):
    """A table with one row a token: look-up of ids, and the same table as output projection (Press & Wolf 2017)."""

    vocab_size: int
    embed_dim: int
    scaled: bool  # rows times sqrt(embed_dim) (Vaswani et al. 2017, section 3.4)
    rules: ShardingRules
    initializer: Initializer
    dtype: str
    param_dtype: str = "float32"

    def setup(self) -> None:
        declared = declare(self.initializer, "vocab", "embed")
        table_VD = self.param("embedding", declared, (self.vocab_size, self.embed_dim), self.param_dtype)
        # Cast once: both gradients meet in the narrow type, and devices sum them once.
        self.table_VD = table_VD.astype(self.dtype)

    def __call__(self, ids_BT: jax.Array) -> jax.Array:
        x_BTD = look_up(self.table_VD, ids_BT, self.rules, "vocab")
        return x_BTD * self.embed_dim**0.5 if self.scaled else x_BTD

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Scores (B, T, V) in f32."""
        if math.prod(x_BTD.shape[:-1]) > FEW:
            return _product(x_BTD, self.table_VD.T, 1, "float32")
        # The table first, in its memory order (a quarter less time for one row on CPU).
        rows_ND = x_BTD.reshape(-1, self.embed_dim)
        logits_NV = jnp.matmul(self.table_VD, rows_ND.T, preferred_element_type=jnp.float32).T
        return logits_NV.reshape(*x_BTD.shape[:-1], self.vocab_size)


def _product(x: jax.Array, kernel: jax.Array, summed: int, out_dtype: str | None) -> jax.Array:
    """The sum over the last `summed` dimensions of `x`, which are the first ones of the kernel."""
    if out_dtype is not None and out_dtype != x.dtype:
        return _widened(x, kernel, summed, out_dtype)
    if jax.sharding.get_abstract_mesh().size > 1:
        # Batch and length joined into one dimension cannot be sharded along both: devices would gather the length.
        return jnp.tensordot(x, kernel, summed, preferred_element_type=out_dtype)
    # Two matrices: of a product of more dimensions, XLA computes the kernel's gradient at half the speed on CPU.
    inner, outer = math.prod(kernel.shape[:summed]), kernel.shape[summed:]
    y = jnp.matmul(x.reshape(-1, inner), kernel.reshape(inner, -1), preferred_element_type=out_dtype)
    return y.reshape(*x.shape[: x.ndim - summed], *outer)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _widened(x: jax.Array, kernel: jax.Array, summed: int, out_dtype: str) -> jax.Array:
    """The product in a wider type than that of its inputs, to which its gradient is rounded before it meets them.

    Left wide, it would make both products of the backward pass wide ones, and devices would sum the kernel's gradient
    in twice the bytes.
    """
    return jnp.tensordot(x, kernel, summed, preferred_element_type=out_dtype)


def _forward(x: jax.Array, kernel: jax.Array, summed: int, out_dtype: str) -> tuple[jax.Array, Any]:
    return _widened(x, kernel, summed, out_dtype), (x, kernel)


def _backward(summed: int, out_dtype: str, kept: tuple[jax.Array, jax.Array], gradient: jax.Array) -> Any:
    x, kernel = kept
    gradient, rows = gradient.astype(x.dtype), tuple(range(x.ndim - summed))
    inner = (tuple(range(len(rows), gradient.ndim)), tuple(range(summed, kernel.ndim)))
    return jnp.tensordot(gradient, kernel, inner), jnp.tensordot(x, gradient, (rows, rows))


_widened.defvjp(_forward, _backward)


def look_up(table_VD: jax.Array, ids_BT: jax.Array, rules: ShardingRules, rows: str) -> jax.Array:
    """`table[ids]`, where `rows` is the logical axis of the table's rows. Whole rows are sent to the tokens."""
    table_VD = rules.constrain(table_VD, rows, None)
    return rules.constrain(table_VD[ids_BT], "batch", "length", "residual")


class TokenTypes(nn.Module):
    """Adds a learned row for the type of each token: which text of a pair it is from (Devlin et al. 2019)."""

    types: int
    embed_dim: int
    initializer: Initializer
    dtype: str
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BTD: jax.Array, token_types_BT: jax.Array | None) -> jax.Array:
        declared = declare(self.initializer, "position", "embed")
        table = self.param("embedding", declared, (self.types, self.embed_dim), self.param_dtype).astype(self.dtype)
        if token_types_BT is None:
            return x_BTD + table[0]
        return x_BTD + small_lookup(table, token_types_BT)


def small_lookup(table: jax.Array, rows: jax.Array) -> jax.Array:
    """`table[rows]` as a product with one-hot rows: its gradient is a product too, not a slow scatter-add on GPUs."""
    return jax.nn.one_hot(rows, table.shape[0], dtype=table.dtype) @ table


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016), in f32, returned in the type of the input."""

    epsilon: float
    bias: bool
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        D = x_BTD.shape[-1]
        scale = self.param("scale", declare(nn.initializers.ones_init(), "norm"), (D,), self.param_dtype)
        x = x_BTD.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        y = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.epsilon) * scale
        if self.bias:
            y += self.param("bias", declare(nn.initializers.zeros_init(), "norm"), (D,), self.param_dtype)
        return y.astype(x_BTD.dtype)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (Zhang & Sennrich 2019), in f32, returned in the type of the input."""

    epsilon: float
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        D = x_BTD.shape[-1]
        scale = self.param("scale", declare(nn.initializers.ones_init(), "norm"), (D,), self.param_dtype)
        x = x_BTD.astype(jnp.float32)
        y = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.epsilon) * scale
        return y.astype(x_BTD.dtype)


class Dropout(nn.Module):
    """Zeroes each element with probability `rate` and scales the rest (Srivastava et al. 2014); only in training."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if not train or self.rate == 0.0:
            return x
        return _dropped(self.make_rng("dropout"), self.rate, x)


class WeightDropout(struct.PyTreeNode):
    """Dropout of attention weights, whole or in blocks: the mask of a block follows from the key and its numbers."""

    key: jax.Array
    rate: float = struct.field(pytree_node=False)

    def __call__(self, weights: jax.Array) -> jax.Array:
        return _dropped(self.key, self.rate, weights)

    def block(self, *numbers: jax.Array | int) -> "WeightDropout":
        """Of the block with these numbers, int32 scalars."""
        key = self.key
        for number in numbers:
            key = jax.random.fold_in(key, number)
        return self.replace(key=key)


def _dropped(key: jax.Array, rate: float, x: jax.Array) -> jax.Array:
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def capped(x: jax.Array, softcap: float) -> jax.Array:
    """`c * tanh(x / c)` with a `softcap` c, `x` itself with 0 (Gemma 2, Riviere et al. 2024, section 2)."""
    return softcap * jnp.tanh(x / softcap) if softcap else x
