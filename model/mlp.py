"""The two-layer networks between attentions."""

import flax.linen as nn
import jax

from model.layers import Initializer, Linear
from model.sharding import ShardingRules


class MLP(nn.Module):
    """`down(gelu(up(x)))`, with the tanh form of GELU (Hendrycks & Gimpel 2016) that GPT-2 uses: BTD -> BTD."""

    embed_dim: int
    mlp_dim: int
    initializer: Initializer
    residual_initializer: Initializer
    rules: ShardingRules
    bias: bool
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        D, F = self.embed_dim, self.mlp_dim
        up_axes, down_axes = (("mlp",), ("norm",)) if self.bias else (None, None)
        h_BTF = Linear("BTD,DF->BTF", (D, F), ("embed", "mlp"), self.initializer, up_axes, self.param_dtype, name="up")(
            x_BTD
        )
        h_BTF = nn.gelu(self.rules.constrain(h_BTF, "batch", "length", "mlp"), approximate=True)
        return Linear(
            "BTF,FD->BTD",
            (F, D),
            ("mlp", "embed"),
            self.residual_initializer,
            down_axes,
            self.param_dtype,
            name="down",
        )(h_BTF)


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) * up(x))` (Shazeer 2020, SwiGLU): BTD -> BTD."""

    embed_dim: int
    mlp_dim: int
    initializer: Initializer
    residual_initializer: Initializer
    rules: ShardingRules
    bias: bool
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        D, F = self.embed_dim, self.mlp_dim
        up_axes, down_axes = (("mlp",), ("norm",)) if self.bias else (None, None)
        wide = ("BTD,DF->BTF", (D, F), ("embed", "mlp"), self.initializer, up_axes, self.param_dtype)
        gate_BTF = self.rules.constrain(Linear(*wide, name="gate")(x_BTD), "batch", "length", "mlp")
        up_BTF = self.rules.constrain(Linear(*wide, name="up")(x_BTD), "batch", "length", "mlp")
        return Linear(
            "BTF,FD->BTD",
            (F, D),
            ("mlp", "embed"),
            self.residual_initializer,
            down_axes,
            self.param_dtype,
            name="down",
        )(nn.silu(gate_BTF) * up_BTF)
