"""BERT large (Devlin et al. 2019): 24 layers of width 1024, 335M weights; for accelerators.

tessera train --config=configs/bert_large.py

Not run here.
"""

from ml_collections import ConfigDict

from configs import bert_base


def get_config() -> ConfigDict:
    config = bert_base.get_config()
    config.run.dir = "runs/bert_large"
    config.model.update(num_layers=24, embed_dim=1024, num_heads=16)
    return config
