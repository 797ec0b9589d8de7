"""GPT-2 medium (Radford et al. 2019): 24 layers, width 1024, 355M parameters, otherwise as `gpt2_124m`.

tessera train --config=configs/gpt2_355m.py --config.data.path=corpus.jsonl --config.mesh.fsdp=-1 --config.mesh.data=1

Not run yet: its parameter count is tested, its score is not known.
"""

from ml_collections import ConfigDict

from configs import gpt2_124m


def get_config() -> ConfigDict:
    config = gpt2_124m.get_config()
    config.run.dir = "runs/gpt2_355m"
    config.model.update(num_layers=24, num_heads=16, embed_dim=1024)
    config.optimizer.update(peak_lr=3e-4)
    return config
