"""BERT (Devlin et al. 2019) and RoBERTa (Liu et al. 2019), with each of their heads."""

from typing import Any

from model.config import LABELLED, ModelConfig
from model.pretrained.mapping import (
    Family,
    Row,
    choose,
    name_of,
    one_rate,
    read_keys,
    require,
    require_kind,
    write_keys,
)

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
KEYS = {
    "vocab_size": ("vocab_size",), "type_vocab_size": ("token_types", 2), "num_hidden_layers": ("num_layers",),
    "hidden_size": ("embed_dim",), "num_attention_heads": ("num_heads",), "intermediate_size": ("mlp_dim",),
    "layer_norm_eps": ("norm_epsilon", 1e-12), "initializer_range": ("init_std", 0.02),
}  # fmt: skip
DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob")


def config_from(keys: dict[str, Any]) -> ModelConfig:
    kind = keys["model_type"]
    classes = {CLASSES[kind] + end: head for end, head in HEADS.items() if kind == "bert" or head != "pretraining"}
    first = keys["architectures"][0] if keys.get("architectures") else None
    head = choose({"architectures": first}, "architectures", None, classes)
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
    require_kind("max_position_embeddings", "max_length", keys["max_position_embeddings"])
    offset = 0 if kind == "bert" else keys["pad_token_id"] + 1  # RoBERTa counts from the row after the padding
    labels = len(keys["id2label"]) if keys.get("id2label") else keys.get("num_labels", 2)
    return ModelConfig(
        **read_keys(keys, KEYS),
        architecture="encoder",
        head=head,
        num_labels=labels if head in LABELLED else 0,
        max_length=keys["max_position_embeddings"] - offset,
        position_offset=offset,
        mlp=mlp,
        norm_placement="post",
        embedding_norm=True,
        dropout=dropout,
    )


def config_to(config: ModelConfig) -> dict[str, Any]:
    kind = "roberta" if config.position_offset else "bert"
    end = name_of(HEADS, config.head, "head")
    return {
        **write_keys(config, KEYS),
        "model_type": kind,
        "architectures": [CLASSES[kind] + end],
        **({"pad_token_id": config.position_offset - 1} if kind == "roberta" else {}),
        **({"id2label": {str(i): f"LABEL_{i}" for i in range(config.num_labels)}} if config.num_labels else {}),
        "max_position_embeddings": config.max_length + config.position_offset,
        "hidden_act": name_of(ACTIVATIONS, config.mlp, "mlp"),
        **dict.fromkeys(DROPOUT, config.dropout),
    }


def rows(config: ModelConfig) -> list[Row]:
    roberta = config.position_offset > 0
    base = "" if config.head == "pooler" else "roberta." if roberta else "bert."
    layer, theirs = "encoder/layers", f"{base}encoder.layer.{{layer}}"
    qkv = ("(H K) D -> D H K", "(H K) -> H K")
    pooler = f"{base}pooler.dense"
    classifier = "qa_outputs" if config.head == "span" else "classifier"
    if roberta and config.head == "classification":
        pooler, classifier = "classifier.dense", "classifier.out_proj"
    masked = ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias") if roberta else (
        "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"
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
        Row("head/transform", masked[0], "E D -> D E"),
        Row("head/transform_norm", masked[1]),
        Row("head/output_bias", masked[2], "V -> V"),
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
