"""A 70B decoder of the Llama 2 shape (Touvron et al. 2023): grouped queries, RMS norm, rotary positions, SwiGLU.

tessera train --config=configs/gpt_70b.py --config.data.path=corpus.jsonl

Weights, gradients and optimiser are split over all devices (ZeRO-3), 4M tokens a step. What it needs on a pod:

tessera plan --config=configs/gpt_70b.py --topology=v5p:8x8x8

Not run: its parameter count is tested, its score is not known.
"""

from ml_collections import ConfigDict

from configs import gpt_7b


def get_config() -> ConfigDict:
    config = gpt_7b.get_config()
    config.run.dir = "runs/gpt_70b"
    config.model.update(num_layers=80, embed_dim=8192, num_heads=64, num_kv_heads=8, mlp_dim=28_672)
    config.optimizer.update(peak_lr=1.5e-4)
    config.train.update(steps=500_000)
    return config
