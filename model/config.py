"""One frozen description of a network. Every family is a set of values of it, never a subclass."""

import dataclasses
from collections.abc import Sequence

CHOICES = {
    "positions": ("learned", "rotary", "none"),
    "norm": ("layer", "rms"),
    "mlp": ("gelu", "swiglu"),
    "attention_impl": ("xla", "reference"),
    "compute_dtype": ("float32", "bfloat16"),
    "param_dtype": ("float32", "bfloat16"),
    "remat": ("none", "dots", "full"),
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices of a decoder. Sizes that are 0 are derived by `resolved()`.

    Raises:
        ValueError: a size that is not positive or does not divide, or a choice that does not exist.
    """

    vocab_size: int = 50_304  # V: rows of the embedding; in an experiment, 0 = the tokeniser's vocabulary
    max_length: int = 1_024  # tokens a sequence may have
    num_layers: int = 12  # L: blocks
    embed_dim: int = 768  # D: width of the residual stream
    num_heads: int = 12  # H: query heads
    num_kv_heads: int = 0  # G: key and value heads (Ainslie et al. 2023); 0 = num_heads
    head_dim: int = 0  # K: size of one head; 0 = embed_dim / num_heads
    mlp_dim: int = 0  # F: hidden width of the MLP; 0 = 4 * embed_dim
    positions: str = "learned"  # learned | rotary | none
    rope_theta: float = 10_000.0  # base of the rotary wavelengths (Su et al. 2021)
    norm: str = "layer"  # layer | rms
    norm_epsilon: float = 1e-5  # added to the variance
    mlp: str = "gelu"  # gelu | swiglu
    bias: bool = True  # biases in projections, MLPs and layer norms
    tied_output: bool = True  # the output projection is the embedding table
    dropout: float = 0.0  # rate on embeddings, attention weights and branch outputs
    init_std: float = 0.02  # standard deviation of the initial weights
    attention_impl: str = "xla"  # xla | reference
    compute_dtype: str = "float32"  # of activations and matrix products
    param_dtype: str = "float32"  # of the stored weights
    remat: str = "none"  # what the backward pass recomputes: none | dots (all but matmuls) | full
    scan_unroll: int = 1  # layers per step of the compiled loop; 0 = all. Never changes the weights

    def __post_init__(self) -> None:
        for field, allowed in CHOICES.items():
            value = getattr(self, field)
            if value not in allowed:
                raise ValueError(f"model.{field} is {value!r}: use one of {', '.join(allowed)}")
        for field in ("max_length", "num_layers", "embed_dim", "num_heads"):
            if getattr(self, field) < 1:
                raise ValueError(f"model.{field} is {getattr(self, field)}: it must be at least 1")
        for field in ("vocab_size", "num_kv_heads", "head_dim", "mlp_dim"):
            if getattr(self, field) < 0:
                raise ValueError(f"model.{field} is {getattr(self, field)}: it must be at least 1, or 0 to derive it")
        if not self.head_dim and self.embed_dim % self.num_heads:
            raise ValueError(
                f"model.embed_dim {self.embed_dim} is not divisible by model.num_heads {self.num_heads}: "
                f"use {_joined(_divisors(self.embed_dim))} heads, or set model.head_dim"
            )
        if self.num_kv_heads and self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"model.num_heads {self.num_heads} is not divisible by model.num_kv_heads {self.num_kv_heads}: "
                f"use {_joined(_divisors(self.num_heads))} key-value heads"
            )
        head_dim = self.head_dim or self.embed_dim // self.num_heads
        if self.positions == "rotary" and head_dim % 2:
            raise ValueError(f"model.head_dim is {head_dim}: rotary positions turn pairs and need an even head size")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"model.dropout is {self.dropout}: it must be at least 0 and below 1")
        if not 0 <= self.scan_unroll <= self.num_layers:
            raise ValueError(
                f"model.scan_unroll is {self.scan_unroll}: use 1 to {self.num_layers} (num_layers), or 0 for all"
            )

    def resolved(self) -> "ModelConfig":
        """The same network with every derived size written out.

        Raises:
            ValueError: no vocabulary size, which only a tokeniser can tell.
        """
        if not self.vocab_size:
            raise ValueError("model.vocab_size is 0: without a tokeniser to say it, give the number of ids")
        return dataclasses.replace(
            self,
            num_kv_heads=self.num_kv_heads or self.num_heads,
            head_dim=self.head_dim or self.embed_dim // self.num_heads,
            mlp_dim=self.mlp_dim or 4 * self.embed_dim,
        )


def flops_per_token(config: ModelConfig, length: int) -> float:
    """Floating-point operations to train on one token: forward and backward, matrix products only.

    6 per weight that multiplies an activation, and 12 L H K per attended position (Chowdhery et al. 2022, PaLM,
    appendix B). Like there, attention counts all `length` positions, causal or not, and recomputation is free.
    """
    c = config.resolved()
    attention = c.embed_dim * c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
    mlp = c.embed_dim * c.mlp_dim * (3 if c.mlp == "swiglu" else 2)
    weights = c.num_layers * (attention + mlp) + c.embed_dim * c.vocab_size
    return 6.0 * weights + 12.0 * c.num_layers * c.num_heads * c.head_dim * length


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _joined(values: Sequence[int], most: int = 12) -> str:
    shown = ", ".join(map(str, values[:most]))
    return shown + (", …" if len(values) > most else "")
