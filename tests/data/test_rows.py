import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.objectives.causal import CausalLM
from data.objectives.denoising import UL2, SpanCorruption
from data.objectives.examples import assemble
from data.objectives.masking import MaskedLM
from data.packing import METHODS
from data.rows import ChunkRows, PackedRows, row_features, store_rows
from data.store.store import open_store
from data.tokenizers.tokenizer import ByteTokenizer
from tests.data.tiny_stores import write_store

PAD, EOS, MASK, CLS, SEP, START = 500, 501, 502, 503, 504, 505
SENTINELS = tuple(range(600, 700))
PACKINGS = ("chunk", *METHODS)
OBJECTIVES = {
    "causal": lambda length: CausalLM(length),
    "prefix": lambda length: CausalLM(length, random_prefix=True),
    "masked": lambda length: MaskedLM(length, PAD, MASK, np.arange(600) < 500, CLS, SEP),
    "spans": lambda length: SpanCorruption(length, PAD, EOS, SENTINELS, START),
    "ul2": lambda length: UL2(length, PAD, EOS, SENTINELS, START, (506, 507, 508)),
}


def store_of(sizes):
    """Documents of ids that rise by 1 from 0 on: each id says where it stands (below 500)."""
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    tokens = np.arange(starts[-1], dtype=np.uint16)
    return SimpleNamespace(folder="somewhere", document_starts=starts, num_tokens=len(tokens), tokens=tokens)


@pytest.fixture
def written(tmp_path):
    """A store on disk, of 40 documents of up to 49 tokens with their end."""

    class Ids(ByteTokenizer):
        vocab_size = 700
        eos_id = EOS

    rng = np.random.default_rng(0)
    documents = [(rng.integers(0, 500, rng.integers(0, 49)), 1) for _ in range(40)]
    return write_store(tmp_path / "store", documents, tokenizer=Ids(), source_fingerprint="s", split="train")


def example(rows, row, seed=0):
    return {name: values.tolist() for name, values in rows.example(row, np.random.default_rng(seed)).items()}


def test_documents_of_a_causal_row_have_segments_and_positions_of_their_own():
    rows = store_rows(store_of([4, 3, 9]), CausalLM(8), "best_fit")
    assert len(rows) == 2 and rows.utilisation == {"inputs": 13 / 16}
    assert [example(rows, row) for row in (0, 1)] == [
        {
            "inputs": [7, 8, 9, 10, 11, 12, 13, 14],
            "targets": [8, 9, 10, 11, 12, 13, 14, 15],
            "weights": [1] * 8,
            "segments": [1] * 8,
            "positions": [0, 1, 2, 3, 4, 5, 6, 7],
        },
        {
            "inputs": [0, 1, 2, 4, 5, 0, 0, 0],
            "targets": [1, 2, 3, 5, 6, 0, 0, 0],
            "weights": [1, 1, 1, 1, 1, 0, 0, 0],
            "segments": [1, 1, 1, 2, 2, 0, 0, 0],
            "positions": [0, 1, 2, 0, 1, 0, 0, 0],
        },
    ]


def test_isolated_documents_of_a_causal_row():
    rows = store_rows(store_of([4, 9]), CausalLM(5), "isolate")
    first = example(rows, 0)
    assert first["inputs"] == [0, 1, 2, 4, 5] and first["targets"] == [1, 2, 3, 5, 6]
    assert first["segments"] == [1, 1, 1, 2, 2] and first["positions"] == [0, 1, 2, 0, 1]
    second = example(rows, 1)  # goes on where the document was cut
    assert second["inputs"] == [6, 7, 8, 9, 10] and second["segments"] == [1] * 5
    assert second["positions"] == [0, 1, 2, 3, 4]


def test_each_document_of_a_masked_row_is_wrapped():
    row = example(store_rows(store_of([3, 2]), OBJECTIVES["masked"](12), "first_fit"), 0)
    assert row["targets"] == [CLS, 0, 1, 2, SEP, CLS, 3, 4, SEP, PAD, PAD, PAD]
    assert row["segments"] == [1] * 5 + [2] * 4 + [0] * 3
    assert row["positions"] == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 0, 0]
    assert row["inputs"][9:] == [PAD] * 3 and [sum(row["weights"][a:b]) for a, b in ((0, 5), (5, 9))] == [1, 1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["spans", "ul2"])
def test_source_and_targets_of_each_document_have_the_same_number(name, method):
    store = store_of([7, 30, 3, 11, 5, 40, 1])
    rows, shown = store_rows(store, OBJECTIVES[name](24), method), []
    many = 0
    for number in range(len(rows)):
        row = rows.example(number, np.random.default_rng(number))
        for segment in range(1, int(row["segments"].max()) + 1):
            source = row["source"][row["source_segments"] == segment]
            targets, inputs = (row[name][row["segments"] == segment] for name in ("targets", "inputs"))
            assert inputs.tolist() == [START, *targets[:-1]] and source[-1] == targets[-1] == EOS
            text = np.sort(np.concatenate([source, targets]))
            text = text[text < 500]
            assert len(text) and (np.diff(text) == 1).all()  # of one document, whole
            shown += text.tolist()
            for side, kind in (("source", "source_"), ("inputs", "")):
                at = row[f"{kind}segments"] == segment
                assert row[f"{kind}positions"][at].tolist() == list(range(at.sum())), side
        many += segment > 1
        assert row["source_segments"].max() == segment
        assert (row["weights"] == (row["segments"] > 0)).all()
        assert (row["source"][row["source_segments"] == 0] == PAD).all()
    assert many and sorted(shown) == list(range(store.num_tokens))


@pytest.mark.parametrize("name", ["spans", "ul2"])
@given(sizes=st.lists(st.integers(1, 45), min_size=1, max_size=12), length=st.integers(9, 40), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=15)
def test_no_draw_overflows_the_room_that_was_planned(name, sizes, length, seed):
    objective = OBJECTIVES[name](length)
    for size in {*range(1, 5), *range(5, objective.stride, 3), objective.stride}:
        piece, planned = objective(np.arange(size), np.random.default_rng(seed)), objective.sizes(size)
        for side in ("source", "inputs"):
            assert len(piece[side]) <= planned[side]
            assert name == "ul2" or len(piece[side]) == planned[side]
    rows = store_rows(store_of(sizes), objective, "best_fit")
    made = [rows.example(row, np.random.default_rng(seed)) for row in range(len(rows))]
    assert sum(int((row[side] < 500).sum()) for row in made for side in ("source", "targets")) == sum(sizes)


@pytest.mark.parametrize("packing", PACKINGS)
@given(sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12), length=st.integers(3, 20))
@settings(deadline=None, max_examples=30)
def test_each_next_token_is_predicted_once_from_its_own_document(packing, sizes, length):
    if max(sizes) < 2:
        return
    store = store_of(sizes)
    rows, found = store_rows(store, CausalLM(length), packing), []
    for number in range(len(rows)):
        row = rows.example(number, np.random.default_rng(0))
        used = row["weights"] > 0
        assert (row["targets"][used] == row["inputs"][used] + 1).all()
        found += row["targets"][used].tolist()
    first = {0, *store.document_starts.tolist()} if packing != "chunk" else {0}
    assert sorted(found) == [token for token in range(store.num_tokens) if token not in first]


def generators(rows_B):
    return [np.random.default_rng(int(row)) for row in rows_B]


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_many_rows_at_once_are_the_pieces_one_by_one(written, name, packing):
    """Bit for bit: each piece alone, from the generator of its row, put side by side."""
    objective = OBJECTIVES[name](24)
    rows = store_rows(written, objective, packing)
    every = np.arange(len(rows))
    for chosen in (every, np.array([2, 0, 2]), every[-1:]):
        made = rows.examples(chosen, generators(chosen))
        for place, (row, rng) in enumerate(zip(chosen.tolist(), generators(chosen), strict=True)):
            if packing == "chunk":
                start = row * objective.stride
                spans = [(start, min(objective.stride + objective.overlap, written.num_tokens - start))]
            else:
                pieces = slice(*rows.plan.row_starts[row : row + 2])
                spans = zip(rows.plan.starts[pieces], rows.plan.lengths[pieces], strict=True)
            pieces = [objective(written.tokens[start : start + length], rng) for start, length in spans]
            alone = assemble(pieces, rows.features, objective.pad_id)
            assert {n: (a[place].tolist(), a.dtype, a.shape[1:]) for n, a in made.items()} == {
                n: (a.tolist(), a.dtype, a.shape) for n, a in alone.items()
            }


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_rows_have_the_features_that_were_promised(written, name, packing):
    objective = OBJECTIVES[name](24)
    rows = store_rows(written, objective, packing)
    made = rows.example(0, np.random.default_rng(0))
    assert {name: (a.shape, a.dtype.type) for name, a in made.items()} == rows.features
    assert rows.features == row_features(objective, packing)
    assert ("positions" in made) == (packing != "chunk") and ("source_positions" in made) == (
        packing != "chunk" and name in ("spans", "ul2")
    )


@pytest.mark.parametrize("packing", PACKINGS)
def test_rows_travel_without_their_tokens(written, tmp_path, packing):
    rows = store_rows(written, CausalLM(16), packing, tmp_path / "plans")
    sent = pickle.dumps(rows)
    assert len(sent) < 1000
    again = pickle.loads(sent)  # noqa: S301 (our own)
    assert type(again) is type(rows) and len(again) == len(rows)
    chosen = np.arange(len(rows))
    assert {n: a.tolist() for n, a in again.examples(chosen, []).items()} == {
        n: a.tolist() for n, a in rows.examples(chosen, []).items()
    }


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_remote_store_gives_the_rows_of_its_copy(written, packing):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.put(str(written.folder), "/rows-test", recursive=True)
    try:
        remote = store_rows(open_store("memory://rows-test"), CausalLM(16), packing)
        local = store_rows(written, CausalLM(16), packing)
        assert len(remote) == len(local)
        assert all(example(remote, row) == example(local, row) for row in range(len(local)))
    finally:
        memory.rm("/rows-test", recursive=True)


def test_every_document_has_a_prefix_of_its_own():
    rows = store_rows(store_of([6, 5, 7]), OBJECTIVES["prefix"](15), "first_fit")
    for seed in range(20):
        row = {name: np.array(values) for name, values in example(rows, 0, seed).items()}
        assert row["segments"].max() == 3
        for segment in (1, 2, 3):
            at = row["segments"] == segment
            cut = int(row["prefix"][at].sum())
            assert 1 <= cut <= at.sum() and row["prefix"][at].tolist() == [1] * cut + [0] * (at.sum() - cut)
            assert row["weights"][at].tolist() == [0] * (cut - 1) + [1] * (at.sum() - cut + 1)


def test_means_of_documents():
    values = np.array([1.0, 2, 4, 100, 8])
    chunks = ChunkRows(store_of([6, 1, 2, 0, 6]), CausalLM(5))  # tokens 0-5, 5-10, 10-14
    assert chunks.document_means(values).tolist() == [1, (1 + 2 + 4 + 8) / 4, 8]
    packed = store_rows(store_of([4, 3, 2, 0, 6]), CausalLM(5), "best_fit")  # documents 4 | 0, 1 | 2
    assert packed.document_means(values).tolist() == [8, 1.5, 4]


def test_nothing_to_predict_is_refused():
    with pytest.raises(DataError, match=r"holds 1 token\(s\): the first prediction needs 2"):
        store_rows(store_of([1]), CausalLM(4))
    with pytest.raises(DataError, match=r"holds 2 document\(s\), none of more than 1 token"):
        store_rows(store_of([1, 1]), CausalLM(4), "best_fit")


def test_pieces_longer_than_their_row_are_an_error():
    objective = CausalLM(4)
    piece = objective(np.arange(4), np.random.default_rng(0))
    with pytest.raises(ValueError, match="could not broadcast"):
        assemble([piece, piece], objective.features, 0)


def test_utilisation_counts_both_sides():
    objective = OBJECTIVES["spans"](24)
    rows = store_rows(store_of([7, 30, 3, 11, 5, 40, 1]), objective, "best_fit")
    assert isinstance(rows, PackedRows)
    filled = {"source": 0, "inputs": 0}
    for row in range(len(rows)):
        made = rows.example(row, np.random.default_rng(0))
        filled["source"] += int((made["source_segments"] > 0).sum())
        filled["inputs"] += int((made["segments"] > 0).sum())
    for side, slots in filled.items():
        assert rows.utilisation[side] == pytest.approx(slots / (len(rows) * objective.features[side][0][0]), abs=1e-12)
