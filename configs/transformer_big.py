"""The Transformer of 2017, big (Vaswani et al. 2017, table 3), on span corruption; for accelerators.

tessera train --config=configs/transformer_big.py

Not run here.
"""

from ml_collections import ConfigDict

from configs import transformer_base


def get_config() -> ConfigDict:
    config = transformer_base.get_config()
    config.run.dir = "runs/transformer_big"
    config.model.update(embed_dim=1024, num_heads=16, dropout=0.3)
    config.optimizer.peak_lr = 5e-4
    config.train.steps = 300_000
    return config
