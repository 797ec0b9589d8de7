"""Every leaf that an experiment has, with the value it takes where a config says nothing.

The experiments beside this file start from these values and state what differs. The meaning and unit of each leaf
stand at the frozen dataclass that it becomes: `ModelConfig`, `DataConfig`, `ObjectiveConfig`, `OptimizerConfig`,
`TrainConfig`, `CheckpointConfig`, `ChecksConfig`, `MeshConfig`, `ShardingRules`, `RunConfig`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of weights, order of the data, dropout and samples

    config.run = ConfigDict({"dir": "runs/default", "tensorboard": True})

    config.data = ConfigDict(
        {
            "path": "python-stdlib",
            "text_field": "text",
            "id_field": "id",
            "score_field": "",
            "document_separator": "",
            "dataset_split": "train",
            "skip_broken": 0,
            "language": "",
            "licence": "",
            "mixture": ConfigDict(),
            "mixture_stages": (),
            "mixture_temperature": 1.0,
            "tokenizer": "sentencepiece",
            "tokenizer_vocab": 4096,
            "held_out": 0.05,
            "held_out_by": "document",
            "packing": "chunk",
            "curriculum": "",
            "cache_dir": "~/.cache/tessera",
            "prefetch": 2,
            "workers": 0,
        }
    )

    config.model = ConfigDict(
        {
            "architecture": "decoder",
            "head": "lm",
            "num_labels": 0,
            "ngram_order": 5,
            "vocab_size": 0,  # the tokeniser's
            "max_length": 1024,
            "num_layers": 12,
            "num_encoder_layers": 0,
            "embed_dim": 768,
            "num_heads": 12,
            "num_kv_heads": 0,
            "head_dim": 0,
            "mlp_dim": 0,
            "token_types": 0,
            "scale_embeddings": False,
            "embedding_norm": False,
            "positions": "learned",
            "position_offset": 0,
            "rope_theta": 10_000.0,
            "rope_scaling": "none",
            "rope_factor": 1.0,
            "rope_low_factor": 1.0,
            "rope_high_factor": 4.0,
            "rope_original_length": 8192,
            "relative_buckets": 32,
            "relative_max_distance": 128,
            "norm": "layer",
            "norm_epsilon": 1e-05,
            "norm_placement": "pre",
            "mlp": "gelu",
            "bias": "all",
            "attention_scale": 0.0,
            "qk_norm": False,
            "attention_softcap": 0.0,
            "window": 0,
            "experts": 0,
            "experts_per_token": 2,
            "capacity_factor": 1.25,
            "load_balance_loss": 0.01,
            "router_z_loss": 0.001,
            "tied_output": True,
            "scale_output": False,
            "logits_softcap": 0.0,
            "prefix_lm": False,
            "decoder_start_id": 0,
            "base_width": 0,
            "base_head_dim": 0,
            "dropout": 0.0,
            "init_std": 0.02,
            "init_scheme": "gpt2",
            "attention_impl": "auto",
            "compute_dtype": "float32",
            "param_dtype": "float32",
            "remat": "none",
            "remat_bytes": 0.0,
            "remat_offload": "",
            "pipeline_microbatches": 0,
            "scan_unroll": 1,
        }
    )

    config.objective = ConfigDict(
        {
            "name": "causal_lm",
            "mask_rate": 0.15,
            "whole_words": False,
            "noise_density": 0.15,
            "mean_span": 3.0,
            "label_smoothing": 0.0,
            "z_loss": 0.0,
        }
    )

    config.optimizer = ConfigDict(
        {
            "name": "adamw",
            "peak_lr": 6e-4,
            "schedule": "cosine",
            "warmup_steps": 100,
            "final_lr_fraction": 0.1,
            "decay_fraction": 0.2,
            "b1": 0.9,
            "b2": 0.95,
            "epsilon": 1e-8,
            "moments_dtype": "float32",
            "stochastic_rounding": False,
            "offload": False,
            "muon_momentum": 0.95,
            "weight_decay": 0.1,
            "clip_norm": 1.0,
        }
    )

    config.train = ConfigDict(
        {
            "steps": 1000,
            "global_batch": 16,
            "microbatches": 1,
            "loss_chunks": 1,
            "log_every": 10,
            "eval_every": 250,
            "eval_sequences": 320,
            "sample_every": 0,
            "sample_prompts": ("\n",),
            "sample_tokens": 200,
            "sample_temperature": 0.8,
            "max_skipped": 20,
            "spike_window": 0,
            "spike_sigmas": 6.0,
            "stuck_after": 1800.0,  # longer than the longest save or sample of most
        }
    )

    config.checkpoint = ConfigDict(
        {"every_steps": 500, "every_minutes": 10.0, "keep_last": 2, "keep_best": 1, "keep_every_steps": 0}
    )

    config.checks = ConfigDict({"replicas_every": 0, "repeat_every": 0})

    # -1: all the devices that the other axes leave.
    config.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1, "context": 1, "expert": 1, "stage": 1, "slices": -1})

    # The preset, and rules that replace its: mesh axes joined by commas, "" for replicated, None for the preset's.
    config.sharding = ConfigDict({"preset": "fsdp_tensor"})
    for axis in ("batch", "length", "sequence", "residual", "heads", "kv_heads", "head_dim", "mlp", "vocab", "embed"):
        config.sharding[axis] = placeholder(str)
    for axis in ("position", "experts", "norm", "layers", "head", "gates"):
        config.sharding[axis] = placeholder(str)

    # What the run ends with, and where it was seen; `machine` empty: not run yet.
    config.expect = ConfigDict(
        {"loss": placeholder(float), "bits_per_byte": placeholder(float), "minutes": placeholder(float), "machine": ""}
    )
    return config


def source(path: str, *, weight: tuple[float, ...] = (), max_epochs: float = 1.0, **changes: str | int) -> ConfigDict:
    """One source of `data.mixture`: `config.data.mixture = ConfigDict({"code": source("python-stdlib"), …})`."""
    own = ("text_field", "id_field", "score_field", "document_separator", "dataset_split")
    own += ("skip_broken", "language", "licence")
    leaves = {name: get_config().data[name] for name in own}
    if unknown := sorted(changes.keys() - leaves.keys()):
        raise ValueError(f"a source has no {', '.join(unknown)}: it has {', '.join(own)}, weight and max_epochs")
    return ConfigDict({"path": path, **leaves, **changes, "weight": weight, "max_epochs": max_epochs})
