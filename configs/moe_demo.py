"""A small GPT with eight experts a layer, of which each token takes two, on the source of the Python standard library.

tessera train --config=configs/moe_demo.py

As configs/gpt_demo.py, with MLPs of half its width: a token passes as many weights, of a network with four times as
many in its MLPs. The lines of progress tell the share of the busiest expert (12.5 % where all are even) and how many
choices found their expert full.

Ends with 1.65 bits per byte on held-out files, the busiest expert with 17 % and 4 % of the choices dropped, after 9
minutes on two CPU cores that other programs used as well (0.18 s a step when they did not).
"""

from ml_collections import ConfigDict

from configs import gpt_demo


def get_config() -> ConfigDict:
    config = gpt_demo.get_config()
    config.run.dir = "runs/moe_demo"
    config.model.update(experts=8, experts_per_token=2, mlp_dim=384)
    config.expect.update(bits_per_byte=1.65, minutes=8.6, machine="2 cores of an Intel Xeon, beside other programs")
    return config
