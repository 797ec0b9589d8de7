"""Llama 1 to 3 (Touvron et al. 2023), Mistral (Jiang et al. 2023), Qwen2 and Qwen3, which share one set of names."""

from typing import Any

from model.config import ModelConfig
from model.pretrained.mapping import Family, Row, choose, name_of, require
from model.pretrained.safetensors_files import WeightsError

ACTIVATIONS = {
    "silu": "swiglu", "swish": "swiglu", "gelu": "geglu_exact", "gelu_pytorch_tanh": "geglu", "relu": "reglu"
}  # fmt: skip
CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
SCALED = {  # llama3: published name -> ours
    "factor": "rope_factor",
    "low_freq_factor": "rope_low_factor",
    "high_freq_factor": "rope_high_factor",
    "original_max_position_embeddings": "rope_original_length",
}


def config_from(keys: dict[str, Any]) -> ModelConfig:
    kind = keys["model_type"]
    names = (f"{CLASSES[kind]}ForCausalLM", f"{CLASSES[kind]}Model", *(["LLaMAForCausalLM"] if kind == "llama" else []))
    require(keys, {"architectures": (None, *([name] for name in names)), "attention_dropout": (0, None)})
    attention = {"qwen2": "qkv", "mistral": "none"}.get(kind, "attention" if keys.get("attention_bias") else "none")
    mlp = kind == "llama" and keys.get("mlp_bias", False)
    return ModelConfig(
        vocab_size=keys["vocab_size"],
        max_length=keys["max_position_embeddings"],
        num_layers=keys["num_hidden_layers"],
        embed_dim=keys["hidden_size"],
        num_heads=keys["num_attention_heads"],
        num_kv_heads=keys.get("num_key_value_heads") or 0,
        head_dim=keys.get("head_dim") or (128 if kind == "qwen3" else 0),
        mlp_dim=keys["intermediate_size"],
        mlp=choose(keys, "hidden_act", "silu", ACTIVATIONS),
        norm="rms",
        norm_epsilon=keys.get("rms_norm_eps", 1e-6),
        positions="rotary",
        **_rope(keys),
        bias={"none": "mlp", "attention": "all"}[attention] if mlp else attention,
        qk_norm=kind == "qwen3",
        window=_window(keys, kind),
        tied_output=keys.get("tie_word_embeddings", False),
        init_std=keys.get("initializer_range", 0.02),
    )


def config_to(config: ModelConfig) -> dict[str, Any]:
    kind = "qwen3" if config.qk_norm else "qwen2" if config.bias == "qkv" else "mistral" if config.window else "llama"
    rope: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_type": config.rope_scaling}
    if config.rope_scaling == "none":
        rope["rope_type"] = "default"
    else:
        wanted = ["factor"] if config.rope_scaling == "linear" else SCALED
        rope |= {name: getattr(config, SCALED[name]) for name in wanted}
    windows = {"use_sliding_window": config.window > 0, "max_window_layers": 0} if kind.startswith("qwen") else {}
    return {
        "model_type": kind,
        "architectures": [f"{CLASSES[kind]}ForCausalLM"],
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_length,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.embed_dim,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_dim,
        "hidden_act": name_of(ACTIVATIONS, config.mlp, "mlp"),
        "rms_norm_eps": config.norm_epsilon,
        "rope_parameters": rope,
        "attention_bias": config.bias in ("attention", "all"),
        "mlp_bias": config.bias in ("mlp", "all"),
        "sliding_window": config.window or None,
        **windows,
        "tie_word_embeddings": config.tied_output,
        "initializer_range": config.init_std,
    }


def _rope(keys: dict[str, Any]) -> dict[str, Any]:
    """Rotary positions; transformers 5 writes `rope_parameters`, before it was `rope_theta` and `rope_scaling`."""
    given = dict(keys.get("rope_scaling") or keys.get("rope_parameters") or {})
    theta = given.pop("rope_theta", keys.get("rope_theta", 10_000.0))
    kind = given.pop("rope_type", given.pop("type", "default"))
    given.pop("type", None)
    require(keys, {"partial_rotary_factor": (None, 1.0)})
    wanted = {"default": [], "linear": ["factor"], "llama3": list(SCALED)}.get(kind)
    if wanted is None or given.keys() - {*wanted, "original_max_position_embeddings"} or set(wanted) - given.keys():
        raise WeightsError(
            f"config.json: rotary positions of type {kind!r} with {given}: Tessera has only default, linear (with "
            f"factor) and llama3 (with {', '.join(SCALED)})"
        )
    return {
        "rope_theta": theta,
        "rope_scaling": "none" if kind == "default" else kind,
        **{SCALED[name]: given[name] for name in wanted},
    }


def _window(keys: dict[str, Any], kind: str) -> int:
    """Mistral slides in every layer, Qwen in those that it names, Llama in none."""
    sliding = keys.get("sliding_window", 4096 if kind == "mistral" else None)
    if kind in ("llama", "mistral") or not keys.get("use_sliding_window", False):
        return (sliding or 0) if kind == "mistral" else 0
    layers, full = keys["num_hidden_layers"], keys.get("max_window_layers", 28)
    kinds = set(
        keys.get("layer_types") or ["sliding_attention" if i >= full else "full_attention" for i in range(layers)]
    )
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
