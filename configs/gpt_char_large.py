"""A character-level GPT with nanoGPT's GPU recipe: 6 layers, 6 heads, width 384, block 256, batch 64, dropout 0.2.

tessera train --config=configs/gpt_char_large.py --config.data.path=input.txt

nanoGPT's README says a held-out loss of 1.47 for it on tiny Shakespeare, after 3 minutes on an A100. Not run here yet.
"""

from ml_collections import ConfigDict

from configs import gpt_char


def get_config() -> ConfigDict:
    config = gpt_char.get_config()
    config.run.dir = "runs/gpt_char_large"
    config.model.update(max_length=256, num_layers=6, embed_dim=384, num_heads=6, dropout=0.2)
    config.optimizer.peak_lr = 1e-3
    config.train.update(steps=5000, global_batch=64, log_every=50, eval_every=250)
    config.expect.loss = 1.47
    return config
