"""GPT-2 large (Radford et al. 2019): 36 layers, width 1280, 774M parameters, otherwise as `gpt2_124m`.

tessera train --config=configs/gpt2_774m.py --config.data.path=corpus.jsonl --config.mesh.fsdp=-1 --config.mesh.data=1

Not run yet: its parameter count is tested, its score is not known.
"""

from ml_collections import ConfigDict

from configs import gpt2_124m


def get_config() -> ConfigDict:
    config = gpt2_124m.get_config()
    config.run.dir = "runs/gpt2_774m"
    config.model.update(num_layers=36, num_heads=20, embed_dim=1280)
    config.optimizer.update(peak_lr=2.5e-4)
    return config
