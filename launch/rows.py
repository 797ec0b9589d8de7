"""What a run reads: the rows of each part of its corpus, as the objective and the packing of the config cut them."""

from pathlib import Path

from data.corpus import Corpus
from data.mixture import Mixture
from data.objectives.denoising import UL2
from data.objectives.examples import Objective
from data.objectives.objectives import make_objective, special_names
from data.rows import PackedRows, Rows, StoreRows, store_rows
from data.store.store import TokenStore
from data.tokenizers.special_tokens import WithSpecials
from data.tokenizers.tokenizer import Tokenizer
from launch.experiment import Experiment


def objective_of(experiment: Experiment, tokenizer: Tokenizer) -> tuple[Tokenizer, Objective]:
    """The tokeniser of a corpus with the special ids that the objective needs, behind its own; and the objective."""
    if names := special_names(experiment.objective):
        tokenizer = WithSpecials(tokenizer, names)
    length = experiment.model.max_length
    return tokenizer, make_objective(experiment.objective, max_length=length, tokenizer=tokenizer)


def train_rows(experiment: Experiment, objective: Objective, corpus: Corpus) -> Rows | Mixture:
    """The rows to train on. Raises DataError for a mixture that does not work out over the steps of the run."""
    rows = part_rows(experiment, objective, corpus)
    if not experiment.data.mixture:
        (only,) = rows.values()
        return only
    t = experiment.train
    return Mixture(rows, experiment.data, global_batch=t.global_batch, seed=experiment.seed, steps=t.steps)


def part_rows(experiment: Experiment, objective: Objective, corpus: Corpus) -> dict[str, StoreRows]:
    """The training rows of each part."""
    return {name: _rows(experiment, objective, splits.train) for name, splits in corpus.parts.items()}


def held_out_rows(experiment: Experiment, objective: Objective, corpus: Corpus) -> dict[str, Rows]:
    """The held-out rows of each part."""
    return {name: _rows(experiment, objective, splits.held_out) for name, splits in corpus.parts.items()}


def described(rows: Rows | Mixture) -> str:
    """What the reader of a run should know of its rows: shares of a mixture, how full packed rows are; else ""."""
    if isinstance(rows, Mixture):
        full = [f"{name}: {_filled(part)}" for name, part in rows.parts.items() if _filled(part)]
        return "\n".join([rows.table(), *full])
    return _filled(rows)


def _filled(rows: Rows) -> str:
    if not isinstance(rows, PackedRows):
        return ""
    sides = ", ".join(f"{100 * share:.2f} % of {side}" for side, share in rows.utilisation.items())
    # UL2 draws a denoiser, and with it the sizes, whenever a piece is read.
    filled = "reserved (more than is filled)" if isinstance(rows.objective, UL2) else "filled"
    unpredicted, most = rows.plan.unpredicted, rows.objective.overlap
    silent = f"; documents of at most {most} token(s), which predict nothing: {unpredicted:,}" * (unpredicted > 0)
    return f"packed: {len(rows):,} rows, {filled} {sides}{silent}"


def _rows(experiment: Experiment, objective: Objective, store: TokenStore) -> StoreRows:
    plans = Path(experiment.data.cache_dir).expanduser() / "plans"
    return store_rows(store, objective, experiment.data.packing, plans)
