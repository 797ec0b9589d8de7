"""BERT base for Chinese: 21,128 characters and word pieces. For accelerators.

tessera train --config=configs/bert_chinese.py --config.data.path=texts --config.data.tokenizer=folder

where folder has BERT's vocab.txt for Chinese. Without it, a sentencepiece of 20,000 ids is trained on the texts.
Not run here.
"""

from ml_collections import ConfigDict

from configs import bert_base


def get_config() -> ConfigDict:
    config = bert_base.get_config()
    config.run.dir = "runs/bert_chinese"
    config.model.vocab_size = 21_128
    config.data.tokenizer_vocab = 20_000  # and the special ids of masked_lm
    return config
