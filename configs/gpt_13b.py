"""A 13B decoder of the Llama shape (Touvron et al. 2023): RMS norm, rotary positions, SwiGLU, no biases.

tessera train --config=configs/gpt_13b.py --config.data.path=corpus.jsonl

Weights, gradients and optimiser are split over all devices (ZeRO-3), 4M tokens a step.

Not run: its parameter count is tested, its score is not known.
"""

from ml_collections import ConfigDict

from configs import gpt_7b


def get_config() -> ConfigDict:
    config = gpt_7b.get_config()
    config.run.dir = "runs/gpt_13b"
    config.model.update(num_layers=40, embed_dim=5120, num_heads=40, mlp_dim=13_824)
    return config
