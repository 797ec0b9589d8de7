"""A character-level GPT with nanoGPT's CPU recipe: 4 layers, 4 heads, width 128, block 64, batch 12, 2000 updates.

tessera train --config=configs/gpt_char.py --config.data.path=input.txt

On tiny Shakespeare it ends with a held-out loss of 1.81 nats (over all of the last tenth of the text) after 2 minutes
on two CPU cores. nanoGPT's README says 1.88 for these sizes, an estimate from 20 batches, with a learning rate of 1e-3;
with 1e-3 this one ends at 1.91 over the whole text. The rest of the settings are nanoGPT's.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.run.dir = "runs/gpt_char"
    config.data.update(tokenizer="char", held_out=0.1, held_out_by="tail")
    config.model.update(max_length=64, num_layers=4, embed_dim=128, num_heads=4, bias="none", scan_unroll=0)
    config.optimizer.update(peak_lr=2e-3, warmup_steps=100, b2=0.99)
    config.train.update(steps=2000, global_batch=12, log_every=100, eval_every=500, eval_sequences=0)
    config.train.update(sample_tokens=300)
    config.expect.update(loss=1.81, minutes=2.0, machine="2 cores of an Intel Xeon with AVX-512")
    return config
