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
# # A first look at a trained language model
#
# `make demo` trains a small GPT on the source code of the Python standard library and leaves a *run* behind: a folder
# with its configuration, its measurements, its tokeniser and its weights. This notebook opens such a folder, lets the
# network write, looks at what it believes about the next token, and draws how it learned.
#
# Everything here takes seconds on a laptop. Another run? Start Jupyter with `TESSERA_RUN=/path/to/the/run`.

# %%
import os
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import tessera

run = Path(os.environ.get("TESSERA_RUN", "../runs/gpt_demo"))
if not (run / "config.json").is_file():
    raise FileNotFoundError(f"no run in {run.resolve()}: train one with `make demo`, or set TESSERA_RUN to its folder")

lm = tessera.load(run)

# %% [markdown]
# ## What is it?
#
# `lm.config` holds every size and choice of the network.

# %%
lm.config

# %% [markdown]
# `lm.params` is a tree of plain arrays. All blocks share one array per weight, stacked along a first axis, `layers`:
# so the whole network fits into a short table.

# %%
leaves = jax.tree_util.tree_leaves_with_path(lm.params)
parameters = pd.DataFrame(
    {
        "weight": [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves],
        "shape": [weight.shape for _, weight in leaves],
        "count": [weight.size for _, weight in leaves],
    }
)
parameters["percent"] = (100 * parameters["count"] / parameters["count"].sum()).round(1)
print(f"{parameters['count'].sum():,} parameters")
parameters.sort_values("count", ascending=False)

# %% [markdown]
# Text becomes ids before the network sees it, and ids become text again.

# %%
ids = lm.tokenizer.encode("import os")
print(ids, [lm.tokenizer.decode([token]) for token in ids])

# %% [markdown]
# ## Let it write
#
# A string gives a string, a list of strings gives a list. The same seed gives the same text. At temperature 0 the
# network takes the likeliest token each time and soon repeats itself; at 1 it draws from its own distribution.

# %%
for temperature in (0.0, 0.8, 1.0):
    text = lm.generate("def ", max_tokens=60, temperature=temperature, seed=0)
    print(f"--- temperature {temperature}\ndef {text}\n")

# %% [markdown]
# ## What comes next?
#
# `lm.logits` takes ids of shape (batch, length) and returns a score for every token of the vocabulary after each of
# them. The softmax of the last row is what the network believes about the next token.

# %%
prompt = "for i in "
logits_BTV = lm.logits(np.array([lm.tokenizer.encode(prompt)]))
last_V = logits_BTV[0, -1].astype(np.float64)
probabilities_V = np.exp(last_V - last_V.max())
probabilities_V /= probabilities_V.sum()

likeliest = np.argsort(probabilities_V)[::-1][:10]
labels = [repr(lm.tokenizer.decode([token])) for token in likeliest.tolist()]

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.barh(range(len(likeliest)), probabilities_V[likeliest])
axes.set_yticks(range(len(likeliest)), labels, family="monospace", parse_math=False)
axes.invert_yaxis()
axes.set_xlabel("probability")
axes.set_title(f"after {prompt!r}")
plt.show()

# %% [markdown]
# ## How surprised is it?
#
# `lm.loss` is the mean surprise in nats per token. It depends on what a token is, so models with different tokenisers
# are compared by `lm.bits_per_byte`: the bits that the network needs to store one byte of the text. Without any model a
# byte takes 8. Text like that of its training is cheap, other text is not.

# %%
texts = {
    "Python": "def __init__(self, name):\n    self.name = name\n",
    "the same, backwards": "def __init__(self, name):\n    self.name = name\n"[::-1],
    "English": "The quick brown fox jumps over the lazy dog.\n",
}
scores = pd.DataFrame(
    {
        "loss": {name: lm.loss(text) for name, text in texts.items()},
        "bits_per_byte": {name: lm.bits_per_byte(text) for name, text in texts.items()},
    }
)
scores.round(3)

# %% [markdown]
# ## How did it learn?
#
# `tessera.read_runs` makes one table of a run, or of many: `tessera.read_runs("../runs/*")`. A row is a logged step;
# the columns are what was measured, and every value of the configuration as `config.NAME`, ready to group by.

# %%
history = tessera.read_runs(run)
history[["step", "tokens", "loss", "learning_rate", "tokens_per_second", "config.optimizer.peak_lr"]].tail()

# %%
figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
history.plot(x="tokens", y="loss", ax=axes, label="training")
history.dropna(subset=["eval/loss"]).plot(x="tokens", y="eval/loss", ax=axes, marker="o", label="held-out text")
axes.set_ylabel("nats per token")
axes.set_title(run.name)
axes.grid(alpha=0.3)
plt.show()

# %% [markdown]
# ## Next
#
# Change one thing, train again beside the first run, and compare:
#
# ```
# tessera train --config=gpt_demo --config.run.dir=runs/wide --config.model.embed_dim=384
# tessera plot runs/gpt_demo runs/wide
# ```
