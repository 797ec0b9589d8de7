"""The smallest pieces: linear maps, embeddings, norms, dropout. Each weight is declared once, in one line."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from model.parameters import declare

Initializer = Callable[..., jax.Array]


class Linear(nn.Module):
    """`einsum(equation, x, kernel) + bias`, in the type of `x`.

    The equation names the sizes: `Linear("BTD,DHK->BHTK", (768, 12, 64), ("embed", "heads", "head_dim"), init)`.
    The bias has the letters that the kernel gives to the output.
    """

    equation: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    initializer: Initializer
    bias_axes: tuple[str, ...] | None = None
    param_dtype: str = "float32"
    out_dtype: str | None = None  # None: the type of x

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", declare(self.initializer, *self.axes), self.shape, self.param_dtype)
        y = jnp.einsum(self.equation, x, kernel.astype(x.dtype), preferred_element_type=self.out_dtype)
        if self.bias_axes is None:
            return y
        _, kernel_letters, out_letters = self.equation.replace("->", ",").split(",")
        sizes = [self.shape[kernel_letters.index(letter)] for letter in out_letters if letter in kernel_letters]
        zeros = declare(nn.initializers.zeros_init(), *self.bias_axes)
        bias = self.param("bias", zeros, tuple(sizes), self.param_dtype)
        missing = [axis for axis, letter in enumerate(out_letters) if letter not in kernel_letters]
        return y + jnp.expand_dims(bias.astype(y.dtype), missing)


class Embedding(nn.Module):
    """A table with one row a token: look-up of ids, and the same table as output projection (Press & Wolf 2017)."""

    vocab_size: int
    embed_dim: int
    initializer: Initializer
    dtype: str
    param_dtype: str = "float32"

    def setup(self) -> None:
        declared = declare(self.initializer, "vocab", "embed")
        self.table_VD = self.param("embedding", declared, (self.vocab_size, self.embed_dim), self.param_dtype)

    def __call__(self, ids_BT: jax.Array) -> jax.Array:
        return self.table_VD.astype(self.dtype)[ids_BT]

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        return jnp.einsum("BTD,VD->BTV", x_BTD, self.table_VD.astype(x_BTD.dtype), preferred_element_type=jnp.float32)


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
        keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - self.rate, x.shape)
        return jnp.where(keep, x / (1.0 - self.rate), jnp.zeros_like(x))
