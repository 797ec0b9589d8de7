"""A small T5 on the source of the Python standard library.

tessera train --config=configs/t5_demo.py

Ends with 4.82 nats per target token on held-out files after 5 minutes on two CPU cores (tests ran beside it).
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.run.dir = "runs/t5_demo"
    config.model.update(
        architecture="encoder_decoder", positions="relative", norm="rms", norm_epsilon=1e-6, bias="none"
    )
    config.model.update(mlp="geglu", attention_scale=1.0, init_scheme="t5", tied_output=False)
    config.model.update(max_length=128, num_layers=3, embed_dim=192, num_heads=4, mlp_dim=512, scan_unroll=0)
    config.objective.update(name="span_corruption")
    config.optimizer.update(peak_lr=2e-3, warmup_steps=100)
    config.train.update(steps=1500, global_batch=8, log_every=50, eval_every=500, eval_sequences=400)
    config.train.update(sample_prompts=("import <extra_0>\nimport sys\n", "for i in <extra_0>:\n    print(<extra_1>)"))
    config.checkpoint.update(every_steps=500, keep_last=2)
    config.expect.update(loss=4.82, minutes=4.7, machine="2 cores of an Intel Xeon with AVX-512, busy with tests too")
    return config
