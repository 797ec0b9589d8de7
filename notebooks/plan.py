# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A network on a mesh
#
# Where does each weight lie, what fills a device, and who talks to whom? GPT-2 (124M parameters) planned for eight
# devices that this machine does not have: they are emulated. Nothing is trained and no corpus is read.
# With `pip install tessera-lm[tpu]` the same call compiles for real chips: `topology = "v5e:2x4"`.

# %%
import jax
import pandas as pd

import tessera
from configs import gpt2_124m

jax.config.update("jax_num_cpu_devices", 8)  # before the first use of jax
config = gpt2_124m.get_config()
mesh = {"data": 2, "fsdp": 2, "tensor": 2}
tessera.picture(config, mesh=mesh)

# %% [markdown]
# A tile is what one device holds, in the colour of its place; hatched tiles have copies elsewhere. The same in numbers:

# %%
laid = tessera.picture(config, mesh=mesh).arrays
arrays = pd.DataFrame(
    {"array": one.name, "tiles": one.tiles, "copies": one.copies, "bytes a device": one.device_bytes} for one in laid
)
arrays.sort_values("bytes a device", ascending=False).head(10)

# %% [markdown]
# ## The plan
#
# The training step that `tessera train` would run is compiled; a smaller batch here, so that it takes a minute. What a
# step is given is exact; what it makes is counted where the devices are emulated.

# %%
config.update_from_flattened_dict({"train.global_batch": 16, "train.microbatches": 2})
plan = tessera.plan(config, "cpu:8", mesh=mesh)
memory = pd.DataFrame({"MiB": {kind: held / 2**20 for kind, held in plan.bytes.items()}})
memory.round(1)

# %% [markdown]
# Collectives: bytes that a device exchanges in one step along each axis of the mesh.

# %%
collectives = pd.DataFrame(
    {"kind": one.kind, "along": " + ".join(one.axes), "times": one.times, "MiB": one.bytes * one.times / 2**20}
    for one in plan.collectives
)
collectives.groupby(["along", "kind"]).sum(numeric_only=True).round(1)

# %% [markdown]
# All of it on one page, which `tessera plan --config=configs/gpt2_124m.py --topology=cpu:8 --html=plan.html` writes
# to a file. `--search` tries the other meshes.

# %%
tessera.picture(config, plan)
