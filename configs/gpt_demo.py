"""A small GPT on the source of the Python standard library: what `make demo` trains.

tessera train --config=configs/gpt_demo.py
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.run.dir = "runs/gpt_demo"
    config.model.update(max_length=256, num_layers=4, embed_dim=256, num_heads=4, scan_unroll=0)
    config.optimizer.update(peak_lr=2e-3, warmup_steps=50)
    config.train.update(steps=450, global_batch=8, eval_every=150, eval_batches=20)
    config.train.sample_prompts = ("def ", "class ", "import ")
    config.checkpoint.update(every_steps=150, keep_last=2)
    return config
