"""T5 1.1 small: 77M weights; for accelerators.

tessera train --config=configs/t5_small.py

Not run here.
"""

from ml_collections import ConfigDict

from configs import t5_base


def get_config() -> ConfigDict:
    config = t5_base.get_config()
    config.run.dir = "runs/t5_small"
    config.model.update(num_layers=8, embed_dim=512, num_heads=6, head_dim=64, mlp_dim=1024)
    return config
