"""The two-layer networks between attentions."""

from collections.abc import Callable

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from model.attention import Context
from model.layers import Initializer, Linear
from model.sharding import ShardingRules

Activation = Callable[[jax.Array], jax.Array]


def gelu_tanh(x: jax.Array) -> jax.Array:
    """GELU by its tanh approximation (Hendrycks & Gimpel 2016), as in GPT-2 and T5 1.1."""
    return nn.gelu(x, approximate=True)


def gelu_exact(x: jax.Array) -> jax.Array:
    """GELU by the error function, as in BERT."""
    return nn.gelu(x, approximate=False)


def hidden(activation: Activation, gated: bool, wide: Callable[[str], jax.Array]) -> jax.Array:
    """The hidden layer: `activation(up)`, or `activation(gate) * up`; `wide` is the product of x with such a weight."""
    return activation(wide("gate")) * wide("up") if gated else activation(wide("up"))


class MLP(nn.Module):
    """`down(activation(up(x)))`, or `down(activation(gate(x)) * up(x))` where gated (Shazeer 2020): BTD -> BTD."""

    embed_dim: int
    mlp_dim: int
    activation: Activation
    gated: bool
    initializer: Initializer
    down_initializer: Initializer
    rules: ShardingRules
    bias: bool
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BTD: jax.Array, context: Context) -> tuple[jax.Array, None]:
        h_BTF = hidden(self.activation, self.gated, lambda name: self._wide(name, x_BTD))
        down = Linear(
            "BTF,FD->BTD",
            (self.mlp_dim, self.embed_dim),
            ("mlp", "embed"),
            self.down_initializer,
            ("norm",) if self.bias else None,
            self.param_dtype,
            name="down",
        )
        return down(h_BTF), None

    def _wide(self, name: str, x_BTD: jax.Array) -> jax.Array:
        shape, bias_axes = (self.embed_dim, self.mlp_dim), ("mlp",) if self.bias else None
        linear = Linear(
            "BTD,DF->BTF", shape, ("embed", "mlp"), self.initializer, bias_axes, self.param_dtype, name=name
        )
        return checkpoint_name(self.rules.constrain(linear(x_BTD), "batch", "length", "mlp"), "mlp_hidden")
