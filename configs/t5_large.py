"""T5 1.1 large: 783M weights; for accelerators.

tessera train --config=configs/t5_large.py

Not run here.
"""

from ml_collections import ConfigDict

from configs import t5_base


def get_config() -> ConfigDict:
    config = t5_base.get_config()
    config.run.dir = "runs/t5_large"
    config.model.update(num_layers=24, embed_dim=1024, num_heads=16, head_dim=64, mlp_dim=2816)
    return config
