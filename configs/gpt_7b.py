"""A 7B decoder of the Llama shape (Touvron et al. 2023): RMS norm, rotary positions, SwiGLU, no biases.

tessera train --config=configs/gpt_7b.py --config.data.path=corpus.jsonl

Weights, gradients and optimiser are split over all devices (ZeRO-3), 4M tokens a step.

Not run yet: its parameter count is tested, its score is not known.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.run.dir = "runs/gpt_7b"
    config.data.update(tokenizer_vocab=32_000, held_out=0.001)
    config.model.update(vocab_size=32_000, max_length=4096, num_layers=32, embed_dim=4096, num_heads=32, mlp_dim=11_008)
    config.model.update(positions="rotary", norm="rms", mlp="swiglu", bias="none", tied_output=False)
    config.model.update(compute_dtype="bfloat16", remat="full")
    config.optimizer.update(peak_lr=3e-4, warmup_steps=2000)
    config.train.update(steps=250_000, global_batch=1024, eval_every=1000)
    config.checkpoint.update(every_steps=1000, keep_every_steps=10_000)
    config.mesh.update(data=1, fsdp=-1)
    return config
