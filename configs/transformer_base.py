"""The Transformer of 2017, base (Vaswani et al. 2017, table 3), on span corruption; for accelerators.

tessera train --config=configs/transformer_base.py

Not run here.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.run.dir = "runs/transformer_base"
    config.model.update(architecture="encoder_decoder", positions="sinusoidal", norm_placement="post", mlp="relu")
    config.model.update(max_length=512, num_layers=6, embed_dim=512, num_heads=8, dropout=0.1, scale_embeddings=True)
    config.data.tokenizer_vocab = 37_000
    config.objective.update(name="span_corruption", label_smoothing=0.1)
    config.optimizer.update(peak_lr=7e-4, schedule="inverse_sqrt", warmup_steps=4_000, b1=0.9, b2=0.98)
    config.optimizer.update(epsilon=1e-9, weight_decay=0.0)
    config.train.update(steps=100_000, global_batch=256, log_every=100, eval_every=5_000)
    config.train.sample_prompts = ("import <extra_0>\nimport sys\n",)
    config.checkpoint.every_steps = 5_000
    return config
