"""GPT-2 small (Radford et al. 2019): 12 layers, width 768, 124M parameters, in bf16, half a million tokens a step.

tessera train --config=configs/gpt2_124m.py --config.data.path=corpus.jsonl

The tokeniser is a sentencepiece of GPT-2's vocabulary size, trained on the corpus. The table is padded to 50,304 rows,
a multiple of 128, which matrix units like and every usual tensor axis divides.

Not run yet: its parameter count is tested, its score is not known.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.run.dir = "runs/gpt2_124m"
    config.data.update(tokenizer_vocab=50_257, held_out=0.005)
    config.model.update(vocab_size=50_304, compute_dtype="bfloat16", remat="dots")
    config.optimizer.update(peak_lr=6e-4, warmup_steps=700, final_lr_fraction=0.0)
    config.train.update(steps=20_000, global_batch=512, microbatches=16, eval_every=500, eval_sequences=1024)
    config.checkpoint.update(every_steps=1000)
    return config
