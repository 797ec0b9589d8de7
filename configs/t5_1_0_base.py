"""T5 1.0 base (Raffel et al. 2020): ReLU, tied and scaled output, 223M weights; for accelerators.

tessera train --config=configs/t5_1_0_base.py

Not run here.
"""

from ml_collections import ConfigDict

from configs import t5_base


def get_config() -> ConfigDict:
    config = t5_base.get_config()
    config.run.dir = "runs/t5_1_0_base"
    config.model.update(mlp="relu", mlp_dim=3072, tied_output=True, scale_output=True, dropout=0.1)
    return config
