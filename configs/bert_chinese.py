"""BERT base for Chinese: 21,128 characters and word pieces. Set data.path, and data.tokenizer to its vocab.txt.

tessera train --config=configs/bert_chinese.py

Not run here.
"""

from ml_collections import ConfigDict

from configs import bert_base


def get_config() -> ConfigDict:
    config = bert_base.get_config()
    config.run.dir = "runs/bert_chinese"
    config.model.vocab_size = 21_128
    return config
