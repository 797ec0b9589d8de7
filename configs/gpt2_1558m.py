"""GPT-2 XL (Radford et al. 2019): 48 layers, width 1600, 1558M parameters, otherwise as `gpt2_124m`.

tessera train --config=configs/gpt2_1558m.py --config.data.path=corpus.jsonl --config.mesh.fsdp=-1 --config.mesh.data=1

Not run yet: its parameter count is tested, its score is not known.
"""

from ml_collections import ConfigDict

from configs import gpt2_124m


def get_config() -> ConfigDict:
    config = gpt2_124m.get_config()
    config.run.dir = "runs/gpt2_1558m"
    config.model.update(num_layers=48, num_heads=25, embed_dim=1600)
    config.optimizer.update(peak_lr=2e-4)
    config.train.microbatches = 8  # each fetches all weights under fsdp: half of 16 is half the time on 16 chips of v5e
    return config
