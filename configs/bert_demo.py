"""A small BERT on the source of the Python standard library.

tessera train --config=configs/bert_demo.py

not run yet
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.run.dir = "runs/bert_demo"
    config.model.update(architecture="encoder", head="masked_lm", positions="rotary", norm="rms", bias="none")
    config.model.update(max_length=128, num_layers=4, embed_dim=192, num_heads=4, scan_unroll=0)
    config.objective.update(name="masked_lm", mask_rate=0.3)
    config.optimizer.update(peak_lr=3e-3, warmup_steps=200)
    config.train.update(steps=1800, global_batch=8, log_every=50, eval_every=600, eval_sequences=400)
    config.train.update(sample_prompts=("import <mask>\n", "for i in <mask>(10):", "if x is <mask>:"))
    config.checkpoint.update(every_steps=600, keep_last=2)
    return config
