"""T5 1.1 base (Raffel et al. 2020; Shazeer 2020): gated GELU, untied output, 248M weights; for accelerators.

tessera train --config=configs/t5_base.py

Not run here.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.run.dir = "runs/t5_base"
    config.model.update(architecture="encoder_decoder", positions="relative", norm="rms", norm_epsilon=1e-6)
    config.model.update(bias="none", mlp="geglu", attention_scale=1.0, init_scheme="t5", tied_output=False)
    config.model.update(max_length=512, num_layers=12, embed_dim=768, num_heads=12, mlp_dim=2048)
    config.model.update(compute_dtype="bfloat16")
    config.data.tokenizer_vocab = 32_000
    config.objective.update(name="span_corruption", z_loss=1e-4)
    config.optimizer.update(name="adafactor", peak_lr=1e-2, schedule="inverse_sqrt", warmup_steps=10_000)
    config.optimizer.weight_decay = 0.0
    config.train.update(steps=1_000_000, global_batch=2048, log_every=100, eval_every=10_000)
    config.train.sample_prompts = ("import <extra_0>\nimport sys\n",)
    config.checkpoint.every_steps = 10_000
    return config
