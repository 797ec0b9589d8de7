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
# # From text to batches
#
# What a language model reads, followed from the documents to the arrays of one training step. The corpus is built in: the
# docstrings of the Python standard library. Any file, folder, glob or URL may stand in its place
# (`TESSERA_SOURCE=books/*.txt`).

# %%
import os
import tempfile

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import tessera
from configs import defaults
from data.corpus import prepare
from data.config import DataConfig, SourceConfig
from data.loader import BatchLoader
from data.objectives.objectives import ObjectiveConfig, make_objective
from data.packing import METHODS
from data.rows import store_rows
from data.sources.read import read_documents

source = os.environ.get("TESSERA_SOURCE", "python-docstrings")
first = next(read_documents(SourceConfig(source)))
print(f"{first.id}\n\n{first.text[:400]}")

# %% [markdown]
# ## What is in it?
#
# Sizes, languages, repetitions, and random examples as a model sees them: hover over a token for its id.

# %%
inspection = tessera.inspect_data(source, max_documents=500, max_length=64, examples=3)
inspection

# %% [markdown]
# ## Tokens, once
#
# `prepare` splits the documents, trains a tokeniser on the training side, and writes a store for each side. It is kept in
# `cache_dir`: the second call takes milliseconds.

# %%
cache = tempfile.mkdtemp()
settings = {**defaults.get_config().data, "path": source, "tokenizer_vocab": 1024, "cache_dir": cache}
corpus = prepare(DataConfig(**settings))
print(f"{corpus.train.num_bytes / corpus.train.num_tokens:.2f} bytes per token")

# %% [markdown]
# ## Rows
#
# A network reads rows of a fixed length. Chunks cut documents anywhere and let them see each other; packed rows hold
# whole documents that do not. How many rows does each way need, and how full are they?

# %%
objective = make_objective(ObjectiveConfig(), max_length=256, tokenizer=corpus.tokenizer)
rows = {packing: store_rows(corpus.train, objective, packing, f"{cache}/plans") for packing in ("chunk", *METHODS)}
filled = {packing: getattr(made, "utilisation", {"inputs": 1.0})["inputs"] for packing, made in rows.items()}
packings = pd.DataFrame({"rows": {packing: len(made) for packing, made in rows.items()}, "filled": filled})
packings

# %% [markdown]
# One packed row a line, a colour for each document in it; dark is padding.

# %%
batch = BatchLoader(rows["best_fit"], global_batch=16, seed=0).batch(0)
shown = np.where(batch["segments"] > 0, batch["segments"] % 7 + 2, 0)
figure, axes = plt.subplots(figsize=(9, 3))
axes.imshow(shown, aspect="auto", cmap="nipy_spectral", interpolation="nearest")
axes.set(xlabel="token of the row", ylabel="row of the batch", title="documents in a batch (best_fit)")
plt.show()

# %% [markdown]
# ## Batches
#
# Batch n is a function of the seed and n: whoever asks, whenever, gets the same. This is what makes a run that was killed
# go on as if it had not been.

# %%
loader = BatchLoader(rows["best_fit"], global_batch=16, seed=0)
far = loader.batch(1_000_000_000)
again = BatchLoader(rows["best_fit"], global_batch=16, seed=0).batch(1_000_000_000)
print(all(np.array_equal(far[name], again[name]) for name in far))
print(corpus.tokenizer.decode(far["inputs"][0][far["segments"][0] == 1])[:300])
