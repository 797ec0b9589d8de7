"""Llama 1 to 3 (Touvron et al. 2023), Mistral (Jiang et al. 2023), Qwen2 and Qwen3, which share one set of names."""

from typing import Any

from model.config import ModelConfig
from model.pretrained.mapping import Family, Row, choose, name_of, optional_size, read_keys, require, write_keys
from model.pretrained.rotary import rope_from, rope_to
from model.pretrained.safetensors_files import WeightsError

ACTIVATIONS = {
    "silu": "swiglu", "swish": "swiglu", "gelu": "geglu_exact", "gelu_pytorch_tanh": "geglu", "relu": "reglu"
}  # fmt: skip
CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
KEYS = {
    "vocab_size": ("vocab_size",),
    "max_position_embeddings": ("max_length",),
    "num_hidden_layers": ("num_layers",),
    "hidden_size": ("embed_dim",),
    "num_attention_heads": ("num_heads",),
    "intermediate_size": ("mlp_dim",),
    "rms_norm_eps": ("norm_epsilon", 1e-6),
    "tie_word_embeddings": ("tied_output", False),
    "initializer_range": ("init_std", 0.02),
}


def config_from(keys: dict[str, Any]) -> ModelConfig:
    kind = keys["model_type"]
    if kind != "llama" and "num_key_value_heads" not in keys:
        raise KeyError("num_key_value_heads")  # only Llama has as many as query heads by default
    names = (f"{CLASSES[kind]}ForCausalLM", f"{CLASSES[kind]}Model", *(["LLaMAForCausalLM"] if kind == "llama" else []))
    require(keys, {
        "architectures": (None, *([name] for name in names)),
        "attention_dropout": (None, 0.0),
        "partial_rotary_factor": (None, 1.0),
        "attention_bias": (None, False, True) if kind in ("llama", "qwen3") else (None, False),
        "mlp_bias": (None, False, True) if kind == "llama" else (None, False),
    })  # fmt: skip
    biases = {(False, False): "none", (True, False): "attention", (False, True): "mlp", (True, True): "all"}
    bias = biases[bool(keys.get("attention_bias")), bool(keys.get("mlp_bias"))]
    return ModelConfig(
        **read_keys(keys, KEYS),
        num_kv_heads=optional_size(keys, "num_key_value_heads", "num_kv_heads"),
        head_dim=optional_size(keys, "head_dim", "head_dim") or (128 if kind == "qwen3" else 0),
        mlp=choose(keys, "hidden_act", "silu", ACTIVATIONS),
        norm="rms",
        positions="rotary",
        **rope_from(keys),
        bias="qkv" if kind == "qwen2" else bias,
        qk_norm=kind == "qwen3",
        window=_window(keys, kind),
    )


def config_to(config: ModelConfig) -> dict[str, Any]:
    kind = "qwen3" if config.qk_norm else "qwen2" if config.bias == "qkv" else "mistral" if config.window else "llama"
    windows = {"use_sliding_window": config.window > 0, "max_window_layers": 0} if kind.startswith("qwen") else {}
    return {
        **write_keys(config, KEYS),
        "model_type": kind,
        "architectures": [f"{CLASSES[kind]}ForCausalLM"],
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": name_of(ACTIVATIONS, config.mlp, "mlp"),
        "rope_parameters": rope_to(config),
        "attention_bias": config.bias in ("attention", "all"),
        "mlp_bias": config.bias in ("mlp", "all"),
        "sliding_window": config.window or None,
        **windows,
    }


def _window(keys: dict[str, Any], kind: str) -> int:
    """Mistral slides in every layer, Qwen in those that it names, Llama in none."""
    sliding = optional_size({"sliding_window": 4096 if kind == "mistral" else None, **keys}, "sliding_window", "window")
    if kind in ("llama", "mistral") or not keys.get("use_sliding_window", False):
        return sliding if kind == "mistral" else 0
    full = keys.get("max_window_layers", 28)  # so many layers first
    by_number = {"full_attention": full > 0, "sliding_attention": keys["num_hidden_layers"] > full}
    kinds = set(keys.get("layer_types") or [name for name, some in by_number.items() if some])
    if sliding and kinds == {"sliding_attention"}:
        return sliding
    if not sliding or kinds == {"full_attention"}:
        return 0
    raise WeightsError(
        f"config.json: the layers are {' and '.join(sorted(kinds))}: Tessera has only one kind at a time"
    )


LAYER, THEIRS = "decoder/layers", "model.layers.{layer}"
IN, BIAS = "(H K) D -> D H K", "(H K) -> H K"
ROWS = [
    Row("embedding/embedding", "model.embed_tokens.weight", "V D -> V D"),
    Row(f"{LAYER}/attention_norm", f"{THEIRS}.input_layernorm"),
    Row(f"{LAYER}/attention/query", f"{THEIRS}.self_attn.q_proj", IN, BIAS),
    Row(f"{LAYER}/attention/key", f"{THEIRS}.self_attn.k_proj", IN, BIAS),
    Row(f"{LAYER}/attention/value", f"{THEIRS}.self_attn.v_proj", IN, BIAS),
    Row(f"{LAYER}/attention/query_norm", f"{THEIRS}.self_attn.q_norm"),
    Row(f"{LAYER}/attention/key_norm", f"{THEIRS}.self_attn.k_norm"),
    Row(f"{LAYER}/attention/output", f"{THEIRS}.self_attn.o_proj", "D (H K) -> H K D"),
    Row(f"{LAYER}/mlp_norm", f"{THEIRS}.post_attention_layernorm"),
    Row(f"{LAYER}/mlp/gate", f"{THEIRS}.mlp.gate_proj", "F D -> D F"),
    Row(f"{LAYER}/mlp/up", f"{THEIRS}.mlp.up_proj", "F D -> D F"),
    Row(f"{LAYER}/mlp/down", f"{THEIRS}.mlp.down_proj", "D F -> F D"),
    Row("decoder/norm", "model.norm"),
    Row("head/output", "lm_head", "V D -> D V"),
]
FAMILY = Family(
    config_from,
    config_to,
    lambda config: ROWS,
    prefix="model.",
    ignored=r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",  # follows from rope_theta
    duplicates={"lm_head.weight": "embed_tokens.weight"},
)
