"""Tiny `transformers` models with random weights, one for each way in which published models differ."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GPT2 = {"vocab_size": 19, "n_positions": 12, "n_embd": 12, "n_layer": 2, "n_head": 3, **IDS}
BERT = {
    "vocab_size": 19, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20,
    "max_position_embeddings": 16, **IDS,
}  # fmt: skip
ROBERTA = BERT | {"pad_token_id": 1, "type_vocab_size": 1, "bos_token_id": 0}
T5 = {
    "vocab_size": 19, "d_model": 12, "d_kv": 6, "d_ff": 20, "num_layers": 2, "num_heads": 3,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "decoder_start_token_id": 0, **IDS,
}  # fmt: skip
LLAMA = {
    "vocab_size": 19, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3,
    "intermediate_size": 21, "max_position_embeddings": 32, "head_dim": 4, **IDS,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT2),
    "gpt2-untied": ("GPT2LMHeadModel", "GPT2Config", GPT2 | {"tie_word_embeddings": False}),
    "gpt2-relu": ("GPT2LMHeadModel", "GPT2Config", GPT2 | {"activation_function": "relu", "n_inner": 7}),
    "bert": ("BertModel", "BertConfig", BERT),
    "bert-mlm": ("BertForMaskedLM", "BertConfig", BERT | {"hidden_act": "gelu_new"}),
    "bert-pretraining": ("BertForPreTraining", "BertConfig", BERT),
    "bert-classes": ("BertForSequenceClassification", "BertConfig", BERT | {"num_labels": 3}),
    "bert-tags": ("BertForTokenClassification", "BertConfig", BERT | {"num_labels": 5}),
    "bert-span": ("BertForQuestionAnswering", "BertConfig", BERT),
    "roberta": ("RobertaModel", "RobertaConfig", ROBERTA),
    "roberta-mlm": ("RobertaForMaskedLM", "RobertaConfig", ROBERTA),
    "roberta-classes": ("RobertaForSequenceClassification", "RobertaConfig", ROBERTA | {"num_labels": 3}),
    "roberta-tags": ("RobertaForTokenClassification", "RobertaConfig", ROBERTA | {"num_labels": 5}),
    "roberta-span": ("RobertaForQuestionAnswering", "RobertaConfig", ROBERTA),
    "xlm-roberta-mlm": ("XLMRobertaForMaskedLM", "XLMRobertaConfig", ROBERTA),
    "t5": ("T5ForConditionalGeneration", "T5Config", T5),
    "t5-deep-decoder": ("T5ForConditionalGeneration", "T5Config", T5 | {"num_decoder_layers": 3}),
    "t5-1.1": (
        "T5ForConditionalGeneration", "T5Config", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    ),
    "mt5": ("MT5ForConditionalGeneration", "MT5Config", T5),
    "llama": ("LlamaForCausalLM", "LlamaConfig", LLAMA),
    "llama-3": ("LlamaForCausalLM", "LlamaConfig", LLAMA | {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama-biases": (
        "LlamaForCausalLM", "LlamaConfig",
        LLAMA | {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 6, "rope_parameters": LINEAR},
    ),
    "mistral": ("MistralForCausalLM", "MistralConfig", LLAMA | {"sliding_window": 4}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", LLAMA),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", LLAMA | {"tie_word_embeddings": True}),
}  # fmt: skip
UNTIED = ("t5-1.1",)  # transformers 5 makes a T5 tied; published ones of 1.1 are not
LARGER: dict[str, dict[str, Any]] = {  # other sizes, no two of them the same
    "GPT2Config": {"vocab_size": 37, "n_positions": 70, "n_embd": 40, "n_layer": 3, "n_head": 5},
    "BertConfig": {
        "vocab_size": 37, "hidden_size": 40, "num_hidden_layers": 3, "num_attention_heads": 5, "intermediate_size": 56,
        "max_position_embeddings": 70,
    },
    "T5Config": {
        "vocab_size": 37, "d_model": 24, "d_kv": 10, "d_ff": 56, "num_layers": 3, "num_heads": 5,
        "relative_attention_num_buckets": 16, "relative_attention_max_distance": 31,
    },
    "LlamaConfig": {
        "vocab_size": 37, "hidden_size": 40, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 2,
        "intermediate_size": 56, "max_position_embeddings": 90, "head_dim": 12,
    },
}  # fmt: skip


def make(kind: str, seed: int = 0, *, larger: bool = False) -> Any:
    """A model whose every weight is random, biases and norms too."""
    model_name, config_name, keys = MODELS[kind]
    keys = keys | (LARGER[config_name] if larger else {})
    model = getattr(transformers, model_name)(getattr(transformers, config_name)(**keys)).eval()
    if kind in UNTIED:
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
        model.all_tied_weights_keys.pop("lm_head.weight", None)
    rng = np.random.default_rng(seed)  # torch does not promise the same numbers on every machine
    std = 0.15 if larger else 0.3  # as wide sums: attention that is nearly one-hot would show rounding
    with torch.no_grad():
        for name, weight in model.named_parameters():
            scale = weight.dim() == 1 and name.endswith("weight")
            weight.copy_(scale + std * torch.from_numpy(rng.normal(size=weight.shape)))
    return model


def save(kind: str, folder: Path, seed: int = 0, *, larger: bool = False) -> Any:
    """`make`, and saves it in `folder`."""
    model = make(kind, seed, larger=larger)
    model.save_pretrained(folder)
    return model


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """The tensors of a saved model, as the reference implementation reads them."""
    from safetensors.numpy import load_file

    return {name: array for file in sorted(folder.glob("*.safetensors")) for name, array in load_file(file).items()}


def edit(folder: Path, **keys: Any) -> None:
    """Changes keys of the config.json in `folder`."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
