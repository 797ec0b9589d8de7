"""BERT (Devlin et al. 2019) and RoBERTa (Liu et al. 2019), with each of their heads."""

import re
from typing import Any

from model.config import LABELLED, ModelConfig
from model.pretrained.mapping import Family, Row, choose, name_of, one_rate, require
from model.pretrained.safetensors_files import WeightsError

ACTIVATIONS = {
    "gelu": "gelu_exact", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu", "silu": "silu"
}  # fmt: skip
HEADS = {  # end of the name of the published class -> our head
    "Model": "pooler",
    "ForMaskedLM": "masked_lm",
    "ForPreTraining": "pretraining",
    "ForSequenceClassification": "classification",
    "ForTokenClassification": "token_classification",
    "ForQuestionAnswering": "span",
}
CLASSES = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta"}
DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob")


def config_from(keys: dict[str, Any]) -> ModelConfig:
    kind = keys["model_type"]
    head = _head(keys.get("architectures"), CLASSES[kind])
    mlp = choose(keys, "hidden_act", "gelu", ACTIVATIONS)
    dropout = one_rate(keys, dict.fromkeys(DROPOUT, 0.1))
    require(keys, {
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "classifier_dropout": (None, dropout),
        "tie_word_embeddings": (True,),
        # The head of RoBERTa has an activation of its own.
        **({"hidden_act": ("gelu",)} if kind != "bert" and head == "masked_lm" else {}),
    })  # fmt: skip
    offset = 0 if kind == "bert" else keys["pad_token_id"] + 1  # RoBERTa counts from behind the padding
    labels = len(keys["id2label"]) if keys.get("id2label") else keys.get("num_labels", 2)
    return ModelConfig(
        architecture="encoder",
        head=head,
        num_labels=labels if head in LABELLED else 0,
        vocab_size=keys["vocab_size"],
        max_length=keys["max_position_embeddings"] - offset,
        position_offset=offset,
        token_types=keys.get("type_vocab_size", 2),
        num_layers=keys["num_hidden_layers"],
        embed_dim=keys["hidden_size"],
        num_heads=keys["num_attention_heads"],
        mlp_dim=keys["intermediate_size"],
        mlp=mlp,
        norm_epsilon=keys.get("layer_norm_eps", 1e-12),
        norm_placement="post",
        embedding_norm=True,
        dropout=dropout,
        init_std=keys.get("initializer_range", 0.02),
    )


def config_to(config: ModelConfig) -> dict[str, Any]:
    kind = "roberta" if config.position_offset else "bert"
    end = name_of(HEADS, config.head, "head")
    return {
        "model_type": kind,
        "architectures": [CLASSES[kind] + end],
        **({"pad_token_id": config.position_offset - 1} if kind == "roberta" else {}),
        **({"id2label": {str(i): f"LABEL_{i}" for i in range(config.num_labels)}} if config.num_labels else {}),
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_length + config.position_offset,
        "type_vocab_size": config.token_types,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.embed_dim,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "hidden_act": name_of(ACTIVATIONS, config.mlp, "mlp"),
        "layer_norm_eps": config.norm_epsilon,
        **dict.fromkeys(DROPOUT, config.dropout),
        "initializer_range": config.init_std,
    }


def _head(architectures: Any, family: str) -> str:
    found = (
        re.fullmatch(f"{family}(.+)", architectures[0]) if isinstance(architectures, list) and architectures else None
    )
    if not found or found[1] not in HEADS:
        raise WeightsError(
            f"config.json: architectures is {architectures!r}: Tessera has {', '.join(family + end for end in HEADS)}"
        )
    return HEADS[found[1]]


def rows(config: ModelConfig) -> list[Row]:
    roberta = config.position_offset > 0
    base = "" if config.head == "pooler" else "roberta." if roberta else "bert."
    layer, theirs = "encoder/layers", f"{base}encoder.layer.{{layer}}"
    qkv = ("(H K) D -> D H K", "(H K) -> H K")
    pooler = "classifier.dense" if roberta and config.head == "classification" else f"{base}pooler.dense"
    classifier = {
        "span": "qa_outputs",
        "classification": "classifier.out_proj" if roberta else "classifier",
    }.get(config.head, "classifier")
    masked = "lm_head" if roberta else "cls.predictions"
    transform = ("lm_head.dense", "lm_head.layer_norm") if roberta else (
        "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"
    )  # fmt: skip
    return [
        Row("embedding/embedding", f"{base}embeddings.word_embeddings.weight", "V D -> V D"),
        Row("encoder/positions", f"{base}embeddings.position_embeddings"),
        Row("encoder/token_types", f"{base}embeddings.token_type_embeddings"),
        Row("encoder/embedding_norm", f"{base}embeddings.LayerNorm"),
        Row(f"{layer}/attention/query", f"{theirs}.attention.self.query", *qkv),
        Row(f"{layer}/attention/key", f"{theirs}.attention.self.key", *qkv),
        Row(f"{layer}/attention/value", f"{theirs}.attention.self.value", *qkv),
        Row(f"{layer}/attention/output", f"{theirs}.attention.output.dense", "D (H K) -> H K D"),
        Row(f"{layer}/attention_norm", f"{theirs}.attention.output.LayerNorm"),
        Row(f"{layer}/mlp/up", f"{theirs}.intermediate.dense", "F D -> D F"),
        Row(f"{layer}/mlp/down", f"{theirs}.output.dense", "D F -> F D"),
        Row(f"{layer}/mlp_norm", f"{theirs}.output.LayerNorm"),
        Row("head/transform", transform[0], "E D -> D E"),
        Row("head/transform_norm", transform[1]),
        Row("head/output_bias", f"{masked}.bias", "V -> V"),
        Row("head/pooler", pooler, "E D -> D E"),
        Row("head/next_sentence", "cls.seq_relationship", "E D -> D E"),
        Row("head/classifier", classifier, "E D -> D E"),
    ]


DUPLICATES = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
    "lm_head.decoder.weight": "embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}
IGNORED = r"embeddings\.(position_ids|token_type_ids)"  # 0, 1, 2, … and zeros
BERT = Family(config_from, config_to, rows, "bert.", IGNORED, DUPLICATES)
ROBERTA = Family(config_from, config_to, rows, "roberta.", IGNORED, DUPLICATES)
