"""config.json of published models: what each key becomes, and what is refused by name and value."""

import dataclasses
import json

import numpy as np
import pytest

from model.config import ModelConfig
from model.pretrained.families import FAMILIES
from model.pretrained.safetensors_files import WeightsError, write_file
from model.pretrained.weights import read_config

# As published, shortened to what matters: GPT-2, BERT base, RoBERTa base, Llama 3.1 8B, Mistral 7B, Qwen2.5 0.5B.
GPT2 = {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new", "attn_pdrop": 0.1,
    "embd_pdrop": 0.1, "resid_pdrop": 0.1, "layer_norm_epsilon": 1e-5, "n_ctx": 1024, "n_embd": 768, "n_head": 12,
    "n_layer": 12, "n_positions": 1024, "vocab_size": 50257,
}  # fmt: skip
BERT = {
    "model_type": "bert", "architectures": ["BertForMaskedLM"], "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02,
    "intermediate_size": 3072, "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "num_attention_heads": 12,
    "num_hidden_layers": 12, "pad_token_id": 0, "position_embedding_type": "absolute", "type_vocab_size": 2,
    "vocab_size": 30522,
}  # fmt: skip
ROBERTA = BERT | {
    "model_type": "roberta", "architectures": ["RobertaForMaskedLM"], "layer_norm_eps": 1e-5, "pad_token_id": 1,
    "max_position_embeddings": 514, "type_vocab_size": 1, "vocab_size": 50265,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 131072,
    "mlp_bias": False, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "pretraining_tp": 1, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "vocab_size": 128256,
    "rope_scaling": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}  # fmt: skip
MISTRAL = {key: value for key, value in LLAMA.items() if key not in ("rope_scaling", "attention_bias", "mlp_bias")} | {
    "model_type": "mistral", "architectures": ["MistralForCausalLM"], "rope_theta": 10000.0, "sliding_window": 4096,
}  # fmt: skip
QWEN2 = MISTRAL | {
    "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False, "max_window_layers": 21,
    "sliding_window": 32768, "tie_word_embeddings": True,
}  # fmt: skip
QWEN3 = QWEN2 | {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 128, "hidden_size": 1024}
T5 = {
    "model_type": "t5", "architectures": ["T5WithLMHeadModel"], "d_ff": 2048, "d_kv": 64, "d_model": 512,
    "decoder_start_token_id": 0, "dropout_rate": 0.1, "is_encoder_decoder": True, "layer_norm_epsilon": 1e-6,
    "n_positions": 512, "num_heads": 8, "num_layers": 6, "pad_token_id": 0, "relative_attention_num_buckets": 32,
    "vocab_size": 32128,
}  # fmt: skip
FLAN = T5 | {
    "architectures": ["T5ForConditionalGeneration"], "feed_forward_proj": "gated-gelu", "num_decoder_layers": 8,
    "num_heads": 6, "tie_word_embeddings": False, "dense_act_fn": "gelu_new", "is_gated_act": True,
}  # fmt: skip
SLIDING = {"use_sliding_window": True, "sliding_window": 8}


def config_from(keys) -> ModelConfig:
    return FAMILIES[keys["model_type"]].config_from(keys)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (GPT2, {"norm_epsilon": 1e-5, "mlp": "gelu", "mlp_dim": 0, "tied_output": True, "dropout": 0.1, "bias": "all"}),
        (GPT2 | {"n_inner": 99, "activation_function": "gelu"}, {"mlp_dim": 99, "mlp": "gelu_exact"}),
        (BERT, {"head": "masked_lm", "norm_epsilon": 1e-12, "mlp": "gelu_exact", "norm_placement": "post"}),
        (BERT, {"max_length": 512, "position_offset": 0, "token_types": 2, "embedding_norm": True, "num_labels": 0}),
        (BERT | {"architectures": ["BertForQuestionAnswering"]}, {"head": "span", "num_labels": 0}),
        (BERT | {"architectures": ["BertForSequenceClassification"]}, {"head": "classification", "num_labels": 2}),
        (
            BERT | {"architectures": ["BertForTokenClassification"], "id2label": {"0": "O", "1": "B", "2": "I"}},
            {"head": "token_classification", "num_labels": 3},
        ),
        (ROBERTA, {"max_length": 512, "position_offset": 2, "token_types": 1, "norm_epsilon": 1e-5}),
        (LLAMA, {"num_kv_heads": 8, "bias": "none", "norm": "rms", "mlp": "swiglu", "rope_theta": 5e5, "window": 0}),
        (LLAMA, {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_low_factor": 1.0, "rope_high_factor": 4.0}),
        (LLAMA, {"rope_original_length": 8192, "tied_output": False, "positions": "rotary", "qk_norm": False}),
        (LLAMA | {"rope_scaling": {"type": "linear", "factor": 4.0}}, {"rope_scaling": "linear", "rope_factor": 4.0}),
        (
            LLAMA | {"rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}},
            {"rope_scaling": "none", "rope_theta": 7.0},
        ),
        (LLAMA | {"attention_bias": True}, {"bias": "attention"}),
        (LLAMA | {"mlp_bias": True}, {"bias": "mlp"}),
        (LLAMA | {"mlp_bias": True, "attention_bias": True}, {"bias": "all"}),
        (MISTRAL, {"window": 4096, "bias": "none"}),
        (MISTRAL | {"sliding_window": None}, {"window": 0}),
        (QWEN2, {"window": 0, "bias": "qkv", "qk_norm": False, "tied_output": True}),
        (QWEN2 | SLIDING | {"max_window_layers": 0}, {"window": 8}),
        (QWEN2 | SLIDING | {"max_window_layers": 32}, {"window": 0}),
        (QWEN3, {"bias": "none", "qk_norm": True, "head_dim": 128}),
        (T5, {"mlp": "relu", "scale_output": True, "attention_scale": 1.0, "num_layers": 6, "num_encoder_layers": 6}),
        (T5, {"relative_buckets": 32, "relative_max_distance": 128, "norm_epsilon": 1e-6, "head_dim": 64}),
        (FLAN, {"mlp": "geglu", "scale_output": False, "num_layers": 8, "num_encoder_layers": 6}),
        (FLAN | {"model_type": "mt5", "tie_word_embeddings": True}, {"scale_output": False}),
        (T5 | {"tie_word_embeddings": True, "scale_decoder_outputs": False}, {"scale_output": False}),
        (T5 | {"decoder_start_token_id": None, "pad_token_id": 7}, {"decoder_start_id": 7}),
    ],
)
def test_keys(keys, expected):
    config = dataclasses.asdict(config_from(keys))
    assert {field: config[field] for field in expected} == expected


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        (GPT2 | {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        (GPT2 | {"scale_attn_weights": False}, "scale_attn_weights is False"),
        (GPT2 | {"activation_function": "tanh"}, "activation_function is 'tanh'.*'gelu_new'"),
        (GPT2 | {"add_cross_attention": True}, "add_cross_attention is True"),
        (GPT2 | {"architectures": ["GPT2ForSequenceClassification"]}, "architectures is .*GPT2ForSequenceClass"),
        (GPT2 | {"attn_pdrop": 0.2}, "attn_pdrop': 0.2.*one dropout rate"),
        (GPT2 | {"quantization_config": {"bits": 4}}, "quantization_config is"),
        (GPT2 | {"pruned_heads": {"0": [1]}}, "pruned_heads is"),
        (BERT | {"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        (BERT | {"is_decoder": True}, "is_decoder is True"),
        (BERT | {"hidden_act": "mish"}, "hidden_act is 'mish'"),
        (BERT | {"architectures": ["BertForMultipleChoice"]}, "BertForMultipleChoice.*BertForMaskedLM"),
        (BERT | {"architectures": None}, "architectures is None"),
        (BERT | {"architectures": ["RobertaForMaskedLM"]}, "architectures is"),
        (BERT | {"classifier_dropout": 0.3}, "classifier_dropout is 0.3"),
        (BERT | {"tie_word_embeddings": False}, "tie_word_embeddings is False"),
        (ROBERTA | {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        (LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "type 'yarn'"),
        (LLAMA | {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "type 'dynamic'"),
        (LLAMA | {"rope_scaling": {"rope_type": "linear"}}, "type 'linear'"),
        (LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "beta_fast": 3}}, "beta_fast"),
        (LLAMA | {"rope_scaling": {"type": ["linear"], "factor": 2.0}}, "linear"),
        (LLAMA | {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        (LLAMA | {"attention_dropout": 0.1}, "attention_dropout is 0.1"),
        (LLAMA | {"hidden_act": "gelu_fast"}, "hidden_act is 'gelu_fast'"),
        (QWEN2 | SLIDING, "full_attention and sliding_attention"),
        (T5 | {"feed_forward_proj": "gated-tanh"}, "feed_forward_proj is 'gated-tanh'"),
        (FLAN | {"dense_act_fn": "gelu"}, "dense_act_fn is 'gelu'"),
        (FLAN | {"is_gated_act": False}, "is_gated_act is False"),
        (T5 | {"is_encoder_decoder": False}, "is_encoder_decoder is False"),
        (T5 | {"architectures": ["T5EncoderModel"]}, "architectures is"),
        (T5 | {"tie_encoder_decoder": True}, "tie_encoder_decoder is True"),
    ],
)
def test_what_is_refused(keys, error):
    with pytest.raises(WeightsError, match=error):
        config_from(keys)


PUBLISHED = {"GPT2": GPT2, "BERT": BERT, "ROBERTA": ROBERTA, "LLAMA": LLAMA, "MISTRAL": MISTRAL, "QWEN2": QWEN2,
             "QWEN3": QWEN3, "T5": T5, "FLAN": FLAN}  # fmt: skip


@pytest.mark.parametrize("keys", PUBLISHED.values(), ids=PUBLISHED)
def test_a_config_that_is_written_says_the_same_to_transformers(keys, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = config_from(keys).resolved()
    written = FAMILIES[keys["model_type"]].config_to(config)
    assert config_from(written).resolved() == config
    made = []
    for name, content in (("theirs", keys), ("ours", written)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(content))
        made.append(transformers.AutoConfig.from_pretrained(tmp_path / name).to_dict())
    theirs, ours = made
    silent = {"architectures", "dtype", "n_ctx", "_name_or_path", "pretraining_tp", "max_window_layers", "n_inner"}
    silent |= {name for name in theirs if name.endswith("_token_id")}
    changed = {name for name in theirs.keys() - silent if ours.get(name) != theirs[name]}
    # What is switched off, and a window that is, say the same in two ways.
    allowed = {"position_embedding_type", "dense_act_fn", "is_gated_act", "sliding_window", "head_dim"}
    assert changed <= allowed, {name: (theirs[name], ours.get(name)) for name in changed}


def saved(folder, keys):
    (folder / "config.json").write_text(keys if isinstance(keys, str) else json.dumps(keys))
    return folder


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        ({"model_type": "mamba"}, "model_type is 'mamba': Tessera has gpt2, bert, .*qwen3"),
        ({}, "model_type is None"),
        ({"model_type": ["gpt2"]}, "model_type is"),
        ({key: value for key, value in GPT2.items() if key != "n_embd"}, "has no 'n_embd'"),
        (GPT2 | {"n_layer": "12"}, "n_layer is '12': it must be of type int"),
        (GPT2 | {"n_layer": True}, "n_layer is True: it must be of type int"),
        (GPT2 | {"n_positions": 1024.0}, "n_positions is 1024.0: it must be of type int"),
        (GPT2 | {"n_embd": 770}, "not divisible"),
        (GPT2 | {"n_embd": 2**24 + 1}, "n_embd is 16777217: at most 16777216"),
        (GPT2 | {"n_inner": 2**25}, "n_inner is 33554432: at most"),
        (GPT2 | {"layer_norm_epsilon": 0.0}, "layer_norm_epsilon is 0.0: it must be positive"),
        (json.dumps(GPT2).replace("1e-05", "1e999"), "layer_norm_epsilon is inf: it must be positive and at most"),
        (GPT2 | {"initializer_range": -1.0}, "initializer_range is -1.0: it must not be negative"),
        (BERT | {"max_position_embeddings": 2**25}, "max_position_embeddings is 33554432: at most"),
        (LLAMA | {"head_dim": 2**25}, "head_dim is 33554432: at most"),
        (LLAMA | {"num_key_value_heads": 2**25}, "num_key_value_heads is 33554432: at most"),
        (MISTRAL | {"sliding_window": 2**25}, "sliding_window is 33554432: at most"),
        (LLAMA | {"rope_theta": -1.0}, "rope_theta is -1.0: it must be positive"),
        (LLAMA | {"rope_theta": 10**400}, "rope_theta is 1000+: it must be positive and at most"),
        (LLAMA | {"rope_scaling": {"type": "linear", "factor": -2.0}}, "factor is -2.0: it must be positive"),
        (QWEN2 | {"num_hidden_layers": 2**24, "use_sliding_window": True}, "full_attention and sliding_attention"),
        (GPT2 | {"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no': it must be of type bool"),
        (BERT | {"id2label": 7, "architectures": ["BertForTokenClassification"]}, "has no len"),
        ("[1, 2]", "is no object"),
        ("{", "unreadable JSON"),
    ],
)
def test_files_that_are_refused(keys, error, tmp_path):
    with pytest.raises(WeightsError, match=error):
        read_config(saved(tmp_path, keys))


def test_a_folder_without_a_config(tmp_path):
    with pytest.raises(WeightsError, match="config.json: there is no such file"):
        read_config(tmp_path)


def test_the_model_type_is_returned(tmp_path):
    one = {f"tensor{i}": np.zeros(1, np.float32) for i in range(32)}
    write_file(tmp_path / "model.safetensors", {k: (v.dtype, v.shape) for k, v in one.items()}, one.__getitem__)
    assert read_config(saved(tmp_path, QWEN3))[1] == "qwen3"
    with pytest.raises(WeightsError, match=r"num_hidden_layers is 33, more layers than the folder has tensors \(32\)"):
        read_config(saved(tmp_path, QWEN3 | {"num_hidden_layers": 33}))


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").symlink_to(saved(tmp_path, QWEN3) / "config.json")
    with pytest.raises(WeightsError, match="config.json is a link out of its folder"):
        read_config(tmp_path / "model")
