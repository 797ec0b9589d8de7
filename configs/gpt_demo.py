"""A small GPT on the source of the Python standard library: what `make demo` trains.

tessera train --config=configs/gpt_demo.py

Ends with 1.63 bits per byte on held-out files after 3 minutes on two CPU cores.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.run.dir = "runs/gpt_demo"
    config.model.update(max_length=128, num_layers=4, embed_dim=192, num_heads=4, scan_unroll=0)
    config.model.update(positions="rotary", norm="rms", bias="none")
    config.optimizer.update(peak_lr=3e-3, warmup_steps=100)
    config.train.update(steps=1100, global_batch=8, log_every=50, eval_every=400, eval_sequences=400)
    config.train.update(sample_prompts=("def", "class", "import"))
    config.checkpoint.update(every_steps=400, keep_last=2)
    config.expect.update(bits_per_byte=1.63, minutes=3.0, machine="2 cores of an Intel Xeon with AVX-512")
    return config
