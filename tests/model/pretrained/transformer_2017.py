"""The Transformer of 2017 (Vaswani et al.) as `torch.nn.Transformer` has it: our config of it, and its weights as ours.

Post-norm without last norms, ReLU, sinusoidal positions, and one table, times sqrt(D), for both inputs and the output.
"""

import numpy as np

from configs import transformer_base
from model.config import ModelConfig

SIZES = {
    "vocab_size": 23, "max_length": 40, "num_layers": 2, "num_encoder_layers": 3, "embed_dim": 12, "num_heads": 2,
    "mlp_dim": 20,
}  # fmt: skip
CONFIG = ModelConfig(**{**transformer_base.get_config().model, **SIZES})


def tree(tensors: dict[str, np.ndarray]) -> dict:
    """Weights, or gradients, by the names of the module's state as a tree like our parameters."""
    encoder = _layers(tensors, "encoder", CONFIG.num_encoder_layers, ("self_attn",))
    decoder = _layers(tensors, "decoder", CONFIG.num_layers, ("self_attn", "multihead_attn"))
    return {
        "embedding": {"embedding": tensors["embedding"]},
        "encoder": {"layers": encoder},
        "decoder": {"layers": decoder},
    }


def _layers(tensors: dict[str, np.ndarray], stack: str, count: int, attentions: tuple[str, ...]) -> dict:
    """The blocks of one stack: each leaf has the layers first."""

    def stacked(name: str) -> np.ndarray:
        return np.stack([tensors[f"body.{stack}.layers.{layer}.{name}"] for layer in range(count)])

    def linear(name: str) -> dict:
        return {"kernel": stacked(f"{name}.weight").swapaxes(1, 2), "bias": stacked(f"{name}.bias")}

    made: dict = {"mlp": {"up": linear("linear1"), "down": linear("linear2")}}
    norms = {"self_attn": "attention", "multihead_attn": "cross_attention"}
    ours = [norms[name] for name in attentions]
    for number, name in enumerate([*ours, "mlp"], 1):
        made[f"{name}_norm"] = {"scale": stacked(f"norm{number}.weight"), "bias": stacked(f"norm{number}.bias")}
    D, H = CONFIG.embed_dim, CONFIG.num_heads
    for name, theirs in zip(ours, attentions, strict=True):
        kernel = stacked(f"{theirs}.in_proj_weight").reshape(count, 3, H, D // H, D)
        bias = stacked(f"{theirs}.in_proj_bias").reshape(count, 3, H, D // H)
        out = linear(f"{theirs}.out_proj")
        made[name] = {
            part: {"kernel": kernel[:, i].transpose(0, 3, 1, 2), "bias": bias[:, i]}
            for i, part in enumerate(("query", "key", "value"))
        }
        made[name]["output"] = {"kernel": out["kernel"].reshape(count, H, D // H, D), "bias": out["bias"]}
    return made
