"""Tiny published models and runs for tests, made without torch: our own random networks and tokenizers, exported."""

import dataclasses
import json
from pathlib import Path

import jax
import tokenizers

from data.tokenizers.pretrained import load_pretrained_tokenizer
from data.tokenizers.sentencepieces import SentencePieceTokenizer
from data.tokenizers.tokenizer import ByteTokenizer
from launch.count import TABLE
from launch.saved import RUN_FILE
from model import parameters
from model.build import build
from model.config import ModelConfig
from model.ngram_table import save_ngram
from model.pretrained.export import export
from tests import tiny
from train.checkpoint import save_params
from train.records import write_json

TEXT = "the quick brown fox jumps over the lazy dog while we count one two three and the dog sleeps on"
SMALL = {"max_length": 32, "num_layers": 2, "embed_dim": 16, "num_heads": 2, "init_std": 0.3}
CONFIGS = {
    "gpt2": ModelConfig(**SMALL),
    "llama": ModelConfig(
        **SMALL, positions="rotary", norm="rms", mlp="swiglu", bias="none", num_kv_heads=1, mlp_dim=24,
        tied_output=False,
    ),
    "bert": ModelConfig(
        **SMALL, architecture="encoder", head="masked_lm", token_types=2, embedding_norm=True, norm_placement="post",
        mlp="gelu_exact",
    ),
    "t5": ModelConfig(
        **SMALL, architecture="encoder_decoder", positions="relative", norm="rms", mlp="relu", bias="none",
        attention_scale=1.0, scale_output=True, relative_buckets=8, relative_max_distance=20, init_scheme="t5",
    ),
}  # fmt: skip
MORE_ROWS = 7  # of the embedding than the tokenizer has ids, as most published models have


def write_tokenizer(folder: Path, family: str) -> None:
    """The vocabulary files that the family is published with, of TEXT."""
    if family == "gpt2":
        bpe = tokenizers.ByteLevelBPETokenizer()
        bpe.train_from_iterator([TEXT] * 3, vocab_size=300, min_frequency=2, special_tokens=["<|endoftext|>"])
        bpe.save_model(str(folder))
    elif family == "bert":
        letters = sorted(set(TEXT) - {" "})
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
        words = [word for word in dict.fromkeys(TEXT.split()) if word not in pieces]
        (folder / "vocab.txt").write_text("\n".join(pieces + words) + "\n")
    else:
        model = SentencePieceTokenizer.train([TEXT] * 3, 300).model
        (folder / {"t5": "spiece.model", "llama": "tokenizer.model"}[family]).write_bytes(model)
        if family == "llama":  # ours have no <s>
            (folder / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False}))


def random_params(config: ModelConfig, seed: int = 0):
    """Random weights."""
    model = build(config)
    with jax.set_mesh(tiny.mesh()):
        return jax.jit(lambda: parameters.init(model, jax.random.key(seed)))()


def make(folder: Path, family: str, **changes):
    """A published model of `family` in `folder`; its parameters."""
    folder.mkdir()
    write_tokenizer(folder, family)
    tokenizer = load_pretrained_tokenizer(folder)
    rows = tokenizer.vocab_size + MORE_ROWS
    config = dataclasses.replace(CONFIGS[family], vocab_size=rows, **changes)
    params = random_params(config)
    export(params, config, folder, special_ids=tokenizer.special_ids)
    return params


def make_run(folder: Path, config: ModelConfig, params=None, tokenizer=None) -> Path:
    """A run, of bytes if nothing else is said, as training writes it, less its logs; `params` of an n-gram: a table."""
    tokenizer = tokenizer or ByteTokenizer()
    folder.mkdir()
    tokenizer.save(folder / "tokenizer")
    if config.architecture == "ngram":
        save_ngram(folder / TABLE, params)
    else:
        save_params(folder / "checkpoints", random_params(config) if params is None else params)
    record = {
        "config": {"seed": 0},
        "model": dataclasses.asdict(config.resolved()),
        "fingerprints": {"tokenizer": tokenizer.fingerprint},
    }
    write_json(folder / RUN_FILE, record)
    return folder


def edit(folder: Path, **keys) -> None:
    """Changes keys of config.json; None takes one away."""
    path = folder / "config.json"
    changed = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))
