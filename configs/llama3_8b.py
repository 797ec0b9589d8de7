"""Llama 3.1 8B (Dubey et al. 2024): grouped queries, rotary scaling for 131,072 tokens, trained
on 8,192; for a pod.

tessera train --config=configs/llama3_8b.py

Not run here.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.run.dir = "runs/llama3_8b"
    config.model.update(positions="rotary", rope_theta=500_000.0, rope_scaling="llama3", rope_factor=8.0)
    config.model.update(norm="rms", mlp="swiglu", bias="none", tied_output=False)
    config.model.update(vocab_size=128_256, max_length=8192, num_layers=32, embed_dim=4096, num_heads=32)
    config.model.update(num_kv_heads=8, mlp_dim=14_336, compute_dtype="bfloat16", remat="full")
    config.data.tokenizer_vocab = 128_000
    config.optimizer.update(peak_lr=3e-4, warmup_steps=2000, clip_norm=1.0)
    config.train.update(steps=500_000, global_batch=512, log_every=10, eval_every=2000)
    config.checkpoint.every_steps = 1000
    config.mesh.update(data=1, fsdp=-1)
    return config
