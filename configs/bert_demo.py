"""A small BERT on the source of the Python standard library, with the parts of its younger kin: pre-norm, rotary
positions, 30 % of the tokens masked (Wettig et al. 2023).

tessera train --config=configs/bert_demo.py

Ends with 4.36 nats per masked token on held-out files after 7 minutes on two CPU cores (tests ran beside it).
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
    config.train.sample_prompts = (
        "class Point:\n    def __init__(self, x):\n        self.<mask> = x\n",
        "    for i in <mask>(10):\n        print(i)\n",
        "    try:\n        return int(text)\n    <mask> ValueError:\n        return None\n",
    )
    config.checkpoint.update(every_steps=600, keep_last=2)
    config.expect.update(loss=4.36, minutes=6.7, machine="2 cores of an Intel Xeon with AVX-512, busy with tests too")
    return config
