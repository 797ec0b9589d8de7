import dataclasses
import itertools
import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.atomic import LEFTOVER_AGE
from data.errors import DataError
from data.objectives.causal import CausalLM
from data.objectives.denoising import UL2, SpanCorruption
from data.objectives.masking import MaskedLM
from data.packing import METHODS, make_plan, slots
from data.rows import PackedRows

OBJECTIVES = {
    "causal": lambda length: CausalLM(length),
    "masked": lambda length: MaskedLM(length, 0, 1, np.arange(300) >= 5, 2, 3),
    "spans": lambda length: SpanCorruption(length, 0, 1, tuple(range(100, 200)), 0),
    "ul2": lambda length: UL2(length, 0, 1, tuple(range(100, 200)), 0, (5, 6, 7)),
}
SIZES = st.lists(st.integers(0, 60), min_size=1, max_size=60)


def store_of(sizes):
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return SimpleNamespace(
        folder="somewhere", document_starts=starts, num_tokens=int(starts[-1]), tokens=np.arange(starts[-1])
    )


def rows_of(plan):
    """The pieces (start, length) of each row."""
    pieces = list(zip(plan.starts.tolist(), plan.lengths.tolist(), strict=True))
    ends = plan.row_starts.tolist()
    return [pieces[a:b] for a, b in itertools.pairwise(ends)]


def one_by_one(sizes, needed, tightest):
    """First- or best-fit decreasing as the books have it: pieces in turn, each looking at every row."""
    stride, pieces, start = needed.longest - needed.overlap, [], 0
    for size in sizes:
        pieces += [
            (start + at, min(size - at, needed.longest)) for at in range(0, max(size - needed.overlap, 0), stride)
        ]
        start += size
    rows, rooms = [], []
    for piece in sorted(pieces, key=lambda piece: -piece[1]):
        takes = needed.taken_NS[piece[1]]
        fitting = [row for row, room in enumerate(rooms) if (room >= takes).all()]
        if tightest:
            fitting.sort(key=lambda row: (rooms[row] / needed.room_S).sum())
        if not fitting:
            fitting = [len(rows)]
            rows.append([])
            rooms.append(needed.room_S.copy())
        rows[fitting[0]].append(piece)
        rooms[fitting[0]] -= takes
    return [sorted(row) for row in rows]


@pytest.mark.parametrize("method", ["first_fit", "best_fit"])
@pytest.mark.parametrize("name", OBJECTIVES)
@given(sizes=SIZES, length=st.integers(12, 40))
@settings(deadline=None, max_examples=25)
def test_pieces_are_where_placing_them_one_by_one_puts_them(name, method, sizes, length):
    objective = OBJECTIVES[name](length)
    if max(sizes) <= objective.overlap:
        return
    plan = make_plan(store_of(sizes), objective, method)
    assert rows_of(plan) == one_by_one(sizes, slots(objective), method == "best_fit")


def test_first_and_best_fit_by_hand():
    """Pieces of 12, 9, 9 and 2 slots in rows of 20: the last one finds 8 free in the first row, 2 in the second."""
    store = store_of([13, 10, 10, 3])
    assert rows_of(make_plan(store, CausalLM(20), "first_fit")) == [[(0, 13), (33, 3)], [(13, 10), (23, 10)]]
    assert rows_of(make_plan(store, CausalLM(20), "best_fit")) == [[(0, 13)], [(13, 10), (23, 10), (33, 3)]]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", OBJECTIVES)
@given(sizes=SIZES, length=st.integers(12, 40))
@settings(deadline=None, max_examples=25)
def test_every_token_is_planned_once_and_no_row_overflows(name, method, sizes, length):
    objective = OBJECTIVES[name](length)
    if max(sizes) <= objective.overlap:
        return
    store, overlap = store_of(sizes), objective.overlap
    plan = make_plan(store, objective, method)
    rows = rows_of(plan)
    predicted = sorted(t for row in rows for start, n in row for t in range(start + overlap, start + n))
    starts = store.document_starts.tolist()
    assert predicted == [t for a, b in itertools.pairwise(starts) for t in range(a + overlap, b)]
    assert plan.unpredicted == sum(size <= overlap for size in sizes)
    edges = {*starts}
    for row in rows:
        assert row and row == sorted(row)
        for side, room in zip(slots(objective).sides, slots(objective).room_S, strict=True):
            assert sum(objective.sizes(n)[side] for _, n in row) <= room
        for start, n in row:  # of one document
            assert n > overlap and not edges & {*range(start + 1, start + n)}


@given(sizes=SIZES, length=st.integers(2, 30))
@settings(deadline=None, max_examples=50)
def test_fitted_documents_are_cut_only_where_they_are_too_long(sizes, length):
    if max(sizes) < 2:
        return
    for method in ("first_fit", "best_fit"):
        found = make_plan(store_of(sizes), CausalLM(length), method).lengths.tolist()
        whole = [size for size in sizes if 2 <= size <= length + 1]
        rests = [1 + (size - 1) % length for size in sizes if size > length + 1 and (size - 1) % length]
        full = [length + 1] * sum((size - 1) // length for size in sizes if size > length + 1)
        assert sorted(found) == sorted(whole + rests + full)


def test_isolated_documents_keep_their_order_and_fill_every_row_but_the_last():
    plan = make_plan(store_of([4, 1, 9, 3, 2]), CausalLM(5), "isolate")
    # Predictions 3, -, 8, 2, 1 in rows of 5: 3 + 2 of 8, 5, the last of 8 with 2 and 1.
    assert rows_of(plan) == [[(0, 4), (5, 3)], [(7, 6)], [(12, 2), (14, 3), (17, 2)]]
    assert plan.unpredicted == 1


def test_a_plan_is_kept_and_reused_and_depends_on_all_that_matters(tmp_path):
    store, objective = store_of([5, 9, 2, 7, 31]), CausalLM(10)
    fresh = make_plan(store, objective, "best_fit")
    made = make_plan(store, objective, "best_fit", tmp_path)
    (folder,) = tmp_path.iterdir()
    stamp = (folder / "starts.npy").stat().st_mtime_ns
    again = make_plan(store, objective, "best_fit", tmp_path)
    assert rows_of(fresh) == rows_of(made) == rows_of(again) and again.unpredicted == 0
    assert (folder / "starts.npy").stat().st_mtime_ns == stamp and isinstance(again.starts, np.memmap)
    for store_, objective_, method in (
        (store_of([5, 9, 2, 8, 30]), objective, "best_fit"),
        (store, CausalLM(11), "best_fit"),
        (store, OBJECTIVES["masked"](10), "best_fit"),
        (store, MaskedLM(10, 0, 1, np.arange(300) >= 5, 2), "best_fit"),  # the same room, one slot less around the text
        (store, objective, "first_fit"),
    ):
        before = len(list(tmp_path.iterdir()))
        make_plan(store_, objective_, method, tmp_path)
        assert len(list(tmp_path.iterdir())) == before + 1


def test_what_killed_planners_left_is_removed(tmp_path):
    for name, age in ((".plan.1.old.tmp", LEFTOVER_AGE + 60), (".plan.2.new.tmp", 60)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "starts.npy").write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    make_plan(store_of([5, 9]), CausalLM(10), "best_fit", tmp_path)
    assert sorted(path.name for path in tmp_path.glob(".*")) == [".plan.2.new.tmp"]


@pytest.mark.parametrize("harm", ["cut", "gone", "count"])
def test_a_plan_that_was_harmed_is_refused_with_the_way_out(tmp_path, harm):
    store, objective = store_of([5, 9, 2, 7, 31]), CausalLM(10)
    make_plan(store, objective, "best_fit", tmp_path)
    (folder,) = tmp_path.iterdir()
    if harm == "cut":
        (folder / "starts.npy").write_bytes((folder / "starts.npy").read_bytes()[:-9])
    elif harm == "gone":
        (folder / "plan.json").unlink()
    else:
        np.save(folder / "lengths.npy", np.zeros(2, np.int32))
    with pytest.raises(DataError, match="cannot be read .* delete the folder to make it again"):
        make_plan(store, objective, "best_fit", tmp_path)


def test_what_cannot_be_planned_is_refused_with_numbers():
    with pytest.raises(DataError, match="the packing 'bestfit' is not one of isolate, first_fit, best_fit"):
        make_plan(store_of([9]), CausalLM(10), "bestfit")
    with pytest.raises(DataError, match=r"holds 3 document\(s\), none of more than 1 token\(s\)"):
        make_plan(store_of([1, 0, 1]), CausalLM(10), "best_fit")

    @dataclasses.dataclass(frozen=True)
    class Greedy(CausalLM):
        def sizes(self, num_tokens):
            return {"inputs": 2 * num_tokens}

    with pytest.raises(DataError, match="a piece of 6 tokens takes 12 inputs slots of 10"):
        make_plan(store_of([20]), Greedy(10), "best_fit")


def lines_of(path):
    return [len(line) + 1 for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("length", [512, 1024])
@pytest.mark.parametrize("name", ["generated", "gutenberg/11.txt", "wikitext2/valid.txt"])
def test_span_corruption_fills_99_of_100_slots_of_both_sides(test_data, name, length, method):
    if name == "generated":
        sizes = np.random.default_rng(0).lognormal(5.7, 1, 2000).astype(int)
    else:
        sizes = [len(test_data(name).read_text())] if name.startswith("gutenberg") else lines_of(test_data(name))
    store, objective = store_of(sizes), SpanCorruption(length, 0, 1, tuple(range(100, 200)), 0)
    rows = PackedRows(store, objective, make_plan(store, objective, method))
    assert rows.utilisation.keys() == {"inputs", "source"} and min(rows.utilisation.values()) >= 0.99


@pytest.mark.parametrize("length", [512, 1024])
@pytest.mark.parametrize("name", ["gutenberg/11.txt", "wikitext2/valid.txt", "csl_ts/dev.tsv", "tatoeba_cmn/cmn.txt"])
def test_real_text_fills_99_of_100_slots(test_data, name, length):
    """Tokens are characters, a document is a line, but of a book the whole."""
    text = test_data(name).read_text(encoding="utf-8")
    documents = [text] if name.startswith("gutenberg") else [line for line in text.splitlines() if line.strip()]
    store = store_of([len(document) + 1 for document in documents])
    fewest = -(-(store.num_tokens - len(documents)) // length)
    for method in METHODS:
        plan = make_plan(store, CausalLM(length), method)
        (filled,) = PackedRows(store, CausalLM(length), plan).utilisation.values()
        assert filled >= 0.99 and fewest <= len(plan) <= 1 + 1.01 * fewest
        assert filled == pytest.approx((store.num_tokens - len(documents)) / (len(plan) * length))
