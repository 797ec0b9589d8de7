"""A character-level GPT with nanoGPT's GPU recipe: 6 layers, 6 heads, width 384, block 256, batch 64, dropout 0.2.

tessera train --config=configs/gpt_char_large.py --config.data.path=input.txt
"""

from ml_collections import ConfigDict

from configs import gpt_char


def get_config() -> ConfigDict:
    config = gpt_char.get_config()
    config.run.dir = "runs/gpt_char_large"
    config.model.update(max_length=256, num_layers=6, embed_dim=384, num_heads=6, dropout=0.2)
    config.train.update(steps=5000, global_batch=64, log_every=50, eval_every=250)
    return config
