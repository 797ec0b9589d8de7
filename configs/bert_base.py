"""BERT base (Devlin et al. 2019): about 109M weights with the masked-LM head; for accelerators.

tessera train --config=configs/bert_base.py

Not run here.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.run.dir = "runs/bert_base"
    config.model.update(architecture="encoder", head="masked_lm", token_types=2, embedding_norm=True)
    config.model.update(max_length=512, norm_placement="post", norm_epsilon=1e-12, mlp="gelu_exact", dropout=0.1)
    config.model.update(compute_dtype="bfloat16")
    config.data.tokenizer_vocab = 30_000
    config.objective.name = "masked_lm"
    config.optimizer.update(peak_lr=1e-4, schedule="linear", final_lr_fraction=0.0, warmup_steps=10_000)
    config.optimizer.update(b2=0.999, epsilon=1e-6, weight_decay=0.01)
    config.train.update(steps=1_000_000, global_batch=256, log_every=100, eval_every=10_000)
    config.train.sample_prompts = ("import <mask>\n",)
    config.checkpoint.every_steps = 10_000
    return config
