"""GPT-2 (Radford et al. 2019), as published with `"model_type": "gpt2"`."""

from typing import Any

from model.config import ModelConfig
from model.pretrained.mapping import (
    Family,
    Row,
    choose,
    name_of,
    one_rate,
    optional_size,
    read_keys,
    require,
    write_keys,
)

ACTIVATIONS = {
    "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_exact", "relu": "relu", "silu": "silu"
}  # fmt: skip
KEYS = {
    "vocab_size": ("vocab_size",),
    "n_positions": ("max_length",),
    "n_layer": ("num_layers",),
    "n_embd": ("embed_dim",),
    "n_head": ("num_heads",),
    "layer_norm_epsilon": ("norm_epsilon", 1e-5),
    "tie_word_embeddings": ("tied_output", True),
    "initializer_range": ("init_std", 0.02),
}
ALLOWED = {
    "architectures": (None, ["GPT2LMHeadModel"], ["GPT2Model"]),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
}  # reorder_and_upcast_attn changes only the order of the same operations


def config_from(keys: dict[str, Any]) -> ModelConfig:
    require(keys, ALLOWED)
    return ModelConfig(
        **read_keys(keys, KEYS),
        mlp_dim=optional_size(keys, "n_inner", "mlp_dim"),
        mlp=choose(keys, "activation_function", "gelu_new", ACTIVATIONS),
        dropout=one_rate(keys, dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.1)),
    )


def config_to(config: ModelConfig) -> dict[str, Any]:
    return {
        **write_keys(config, KEYS),
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_inner": config.mlp_dim,
        "activation_function": name_of(ACTIVATIONS, config.mlp, "mlp"),
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), config.dropout),
    }


# Its linear maps are (in, out), unlike those of the other families; c_attn is the query, the key and the value.
LAYER, THEIRS = "decoder/layers", "transformer.h.{layer}"
ROWS = [
    Row("embedding/embedding", "transformer.wte.weight", "V D -> V D"),
    Row("decoder/positions", "transformer.wpe"),
    Row(f"{LAYER}/attention_norm", f"{THEIRS}.ln_1"),
    Row(f"{LAYER}/attention/query", f"{THEIRS}.attn.c_attn", "D (0/3 H K) -> D H K", "(0/3 H K) -> H K"),
    Row(f"{LAYER}/attention/key", f"{THEIRS}.attn.c_attn", "D (1/3 H K) -> D H K", "(1/3 H K) -> H K"),
    Row(f"{LAYER}/attention/value", f"{THEIRS}.attn.c_attn", "D (2/3 H K) -> D H K", "(2/3 H K) -> H K"),
    Row(f"{LAYER}/attention/output", f"{THEIRS}.attn.c_proj", "(H K) D -> H K D"),
    Row(f"{LAYER}/mlp_norm", f"{THEIRS}.ln_2"),
    Row(f"{LAYER}/mlp/up", f"{THEIRS}.mlp.c_fc"),
    Row(f"{LAYER}/mlp/down", f"{THEIRS}.mlp.c_proj"),
    Row("decoder/norm", "transformer.ln_f"),
    Row("head/output", "lm_head", "V D -> D V"),
]
FAMILY = Family(
    config_from,
    config_to,
    lambda config: ROWS,
    prefix="transformer.",
    ignored=r"h\.\d+\.attn\.(masked_)?bias",  # the causal mask
    duplicates={"lm_head.weight": "wte.weight"},
)
