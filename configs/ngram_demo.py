"""An interpolated Kneser-Ney 5-gram model of the source of the Python standard library, counted in seconds.

tessera train --config=configs/ngram_demo.py

Not run here.
"""

from ml_collections import ConfigDict

from configs import gpt_demo


def get_config() -> ConfigDict:
    config = gpt_demo.get_config()
    config.run.dir = "runs/ngram_demo"
    config.model.update(architecture="ngram", ngram_order=5)
    return config
