"""What a run says of its rows."""

from types import SimpleNamespace

import numpy as np
import pytest

from data.objectives.causal import CausalLM
from data.objectives.denoising import UL2, SpanCorruption
from data.rows import store_rows
from launch.rows import described

SENTINELS = tuple(range(100, 200))


def rows_of(sizes, objective, packing):
    starts = np.concatenate([[0], np.cumsum(sizes)])
    tokens = np.zeros(starts[-1], np.uint16)
    store = SimpleNamespace(folder="x", document_starts=starts, num_tokens=len(tokens), tokens=tokens)
    return store_rows(store, objective, packing)


def test_what_is_filled_and_who_predicts_nothing():
    assert described(rows_of([9, 9], CausalLM(8), "chunk")) == ""
    full = "packed: 2 rows, filled 87.50 % of inputs"
    assert described(rows_of([9, 7], CausalLM(8), "isolate")) == full
    said = described(rows_of([1, 9, 0, 7, 1], CausalLM(8), "isolate"))
    assert said == full + "; documents of at most 1 token(s), which predict nothing: 3"


@pytest.mark.parametrize(
    ("objective", "word"),
    [(SpanCorruption(64, 0, 1, SENTINELS, 0), "filled"), (UL2(64, 0, 1, SENTINELS, 0), "reserved")],
)
def test_what_is_drawn_anew_is_reserved_not_filled(objective, word):
    rows = rows_of(np.random.default_rng(0).integers(2, 200, 100), objective, "best_fit")
    said = described(rows)
    assert word in said and ("filled 9" in said) == (word == "filled")
    rng = np.random.default_rng(0)
    drawn = [rows.example(row, rng) for row in range(len(rows))]
    filled = np.mean([(row["source_segments"] > 0).mean() for row in drawn])
    assert (filled < rows.utilisation["source"] - 0.01) == (word == "reserved")
