"""T5 (Raffel et al. 2020): 1.0, 1.1, LM-adapted, Flan (Chung et al. 2022) and mT5 (Xue et al. 2021)."""

from typing import Any

from model.config import ModelConfig
from model.pretrained.mapping import Family, Row, choose, name_of, read_keys, require, write_keys

# transformers takes "gated-gelu" for the tanh form, which is the one that T5 1.1 was trained with.
ACTIVATIONS = {
    "relu": "relu", "gelu_new": "gelu", "gelu": "gelu_exact", "silu": "silu",
    "gated-gelu": "geglu", "gated-gelu_new": "geglu", "gated-silu": "swiglu", "gated-relu": "reglu",
}  # fmt: skip
KEYS = {
    "vocab_size": ("vocab_size",), "n_positions": ("max_length", 512), "num_layers": ("num_encoder_layers",),
    "d_model": ("embed_dim",), "num_heads": ("num_heads",), "d_kv": ("head_dim",), "d_ff": ("mlp_dim",),
    "layer_norm_epsilon": ("norm_epsilon", 1e-6), "dropout_rate": ("dropout", 0.1),
    "relative_attention_num_buckets": ("relative_buckets", 32),
    "relative_attention_max_distance": ("relative_max_distance", 128),
}  # fmt: skip
ARCHITECTURES = [[f"{name}ForConditionalGeneration"] for name in ("T5", "MT5")]


def config_from(keys: dict[str, Any]) -> ModelConfig:
    """Tied for now: transformers 5 calls every T5 tied, and only the tensors tell (see `read_config`)."""
    projection = keys.get("feed_forward_proj", "gated-gelu" if keys["model_type"] == "mt5" else "relu")
    mlp = choose({"feed_forward_proj": projection}, "feed_forward_proj", None, ACTIVATIONS)
    require(keys, {
        "architectures": (None, *ARCHITECTURES, ["T5WithLMHeadModel"]),
        "is_encoder_decoder": (True,),
        "is_decoder": (False,),
        "is_gated_act": (projection.startswith("gated-"),),
        "dense_act_fn": ("gelu_new" if projection == "gated-gelu" else projection.removeprefix("gated-"),),
    })  # fmt: skip
    # 1.0 scales what it multiplies with the embedding; a config says so itself, or by being tied (transformers 4).
    scaled = keys.get("scale_decoder_outputs", keys.get("tie_word_embeddings", True))
    start = keys.get("decoder_start_token_id")
    return ModelConfig(
        **read_keys(keys, KEYS),
        architecture="encoder_decoder",
        num_layers=keys["num_layers"] if keys.get("num_decoder_layers") is None else keys["num_decoder_layers"],
        mlp=mlp,
        norm="rms",
        positions="relative",
        bias="none",
        attention_scale=1.0,
        scale_output=scaled and keys["model_type"] == "t5",  # no mT5 was trained with it
        decoder_start_id=(keys.get("pad_token_id") or 0) if start is None else start,
        init_scheme="t5",
    )


def config_to(config: ModelConfig) -> dict[str, Any]:
    return {
        **write_keys(config, KEYS),
        "model_type": "t5",
        "architectures": ARCHITECTURES[0],
        "is_encoder_decoder": True,
        "num_decoder_layers": config.num_layers,
        "feed_forward_proj": name_of(ACTIVATIONS, config.mlp, "mlp"),
        "tie_word_embeddings": config.tied_output,
        "scale_decoder_outputs": config.scale_output,
        "decoder_start_token_id": config.decoder_start_id,
    }


def rows(config: ModelConfig) -> list[Row]:
    attention = (("query", "q", "(H K) D -> D H K"), ("key", "k", "(H K) D -> D H K"),
                 ("value", "v", "(H K) D -> D H K"), ("output", "o", "D (H K) -> H K D"))  # fmt: skip
    mlp = [("gate", "wi_0", "F D -> D F"), ("up", "wi_1" if config.gated else "wi", "F D -> D F"),
           ("down", "wo", "D F -> F D")]  # fmt: skip
    parts = {  # of each stack: our name, the number of the part in a published block, its name there
        "encoder": [("attention", 0, "SelfAttention"), ("mlp", 1, "DenseReluDense")],
        "decoder": [
            ("attention", 0, "SelfAttention"), ("cross_attention", 1, "EncDecAttention"), ("mlp", 2, "DenseReluDense")
        ],
    }  # fmt: skip
    table = [Row("embedding/embedding", "shared.weight", "V D -> V D"), Row("head/output", "lm_head", "V D -> D V")]
    for stack in parts:
        # One bias for all layers, kept in the first.
        relative = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"
        table += [Row(f"{stack}/relative", relative), Row(f"{stack}/norm", f"{stack}.final_layer_norm")]
        for ours, number, theirs in parts[stack]:
            place = f"{stack}.block.{{layer}}.layer.{number}"
            table.append(Row(f"{stack}/layers/{ours}_norm", f"{place}.layer_norm"))
            for name, published, layout in mlp if ours == "mlp" else attention:
                table.append(Row(f"{stack}/layers/{ours}/{name}", f"{place}.{theirs}.{published}", layout))
    return table


FAMILY = Family(
    config_from,
    config_to,
    rows,
    # A bias that early checkpoints have and no version of T5 used.
    ignored=r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
    duplicates=dict.fromkeys(
        ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"), "shared.weight"
    ),
    tied_unless="lm_head.weight",
)
