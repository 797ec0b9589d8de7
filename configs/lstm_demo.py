"""An LSTM on the source of the Python standard library.

tessera train --config=configs/lstm_demo.py

Not run here.
"""

from ml_collections import ConfigDict

from configs import gpt_demo


def get_config() -> ConfigDict:
    config = gpt_demo.get_config()
    config.run.dir = "runs/lstm_demo"
    config.model.update(architecture="lstm", embed_dim=256, num_layers=1, norm="layer")
    config.optimizer.update(peak_lr=3e-3)
    return config
