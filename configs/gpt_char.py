"""A character-level GPT with the settings of nanoGPT's CPU recipe (4 layers, 4 heads, width 128, block 64, batch 12).

tessera train --config=configs/gpt_char.py --config.data.path=input.txt
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.run.dir = "runs/gpt_char"
    config.data.update(tokenizer="char", held_out=0.1, held_out_by="tail")
    config.model.update(max_length=64, num_layers=4, embed_dim=128, num_heads=4, bias=False, scan_unroll=0)
    config.optimizer.update(peak_lr=1e-3, warmup_steps=100, b2=0.99)
    config.train.update(steps=2000, global_batch=12, log_every=100, eval_every=500, eval_batches=0)
    config.train.update(sample_tokens=300)
    return config
