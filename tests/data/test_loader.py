import dataclasses
import itertools
import multiprocessing
import os
import signal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.loader import BatchLoader, held_out_batches
from data.objectives.causal import CausalLM
from data.objectives.denoising import UL2, SpanCorruption
from data.objectives.many import counted
from data.objectives.masking import MaskedLM
from data.order import Order
from data.rows import ChunkRows, store_rows
from data.tokenizers.tokenizer import ByteTokenizer
from tests.data.tiny_stores import write_store


def loader(store, length=4, global_batch=6, seed=0, **options):
    return BatchLoader(store_rows(store, CausalLM(length)), global_batch=global_batch, seed=seed, **options)


def noisy_loader(store, seed=0, objective=UL2(16, 0, 1, tuple(range(9)), 0), **options):  # noqa: B008 (frozen)
    """A loader whose objective draws all that it can: denoiser, spans, lengths."""
    return BatchLoader(store_rows(store, objective), global_batch=8, seed=seed, **options)


def share(process, count, global_batch=8):
    """The rows of one of `count` processes that cut a batch into equal parts."""
    return range(process * global_batch // count, (process + 1) * global_batch // count)


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def blocks(batch, length=4):
    """Which block each row is, in a store of 0, 1, 2, ...; checks that it is that block entirely."""
    first = batch["inputs"][:, 0]
    assert (batch["inputs"] == first[:, None] + np.arange(length)).all()
    assert (batch["targets"] == batch["inputs"] + 1).all()
    assert (first % length == 0).all()
    return (first // length).tolist()


def test_shapes_and_types(counting_store):
    batch = loader(counting_store(101)).batch(3)
    assert {name: (a.shape, a.dtype.name) for name, a in batch.items()} == {
        "inputs": ((6, 4), "int32"),
        "targets": ((6, 4), "int32"),
        "weights": ((6, 4), "float32"),
    }
    assert (batch["weights"] == 1).all()


def test_blocks_are_counted_with_the_token_that_closes_them(counting_store):
    assert [len(store_rows(counting_store(n), CausalLM(4))) for n in (25, 28, 29)] == [6, 7, 7]


def test_every_block_comes_once_an_epoch(counting_store):
    made = loader(counting_store(45))  # 11 blocks, 6 rows: most batches straddle two epochs
    order = [block for step in range(11) for block in blocks(made.batch(step))]
    epochs = [order[start : start + 11] for start in range(0, 66, 11)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6


@given(
    num_blocks=st.integers(1, 300),
    global_batch=st.integers(1, 40),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 99),
)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_epoch_is_a_permutation(counting_store, num_blocks, global_batch, seed, epoch):
    store = counting_store(301)
    store = dataclasses.replace(store, manifest=store.manifest | {"num_tokens": num_blocks + 1})
    made = loader(store, length=1, global_batch=min(global_batch, num_blocks), seed=seed)
    first, batch = epoch * num_blocks, made._global_batch
    rows = [b for step in range(first // batch, (first + num_blocks) // batch + 1) for b in blocks(made.batch(step), 1)]
    assert sorted(rows[first % batch :][:num_blocks]) == list(range(num_blocks))


def test_order_is_the_one_recorded(counting_store):
    """A change here changes the data of every run that is resumed: only ever on purpose, with a note in the log."""
    made = loader(counting_store(45))
    assert [blocks(made.batch(step)) for step in (0, 1, 1000)] == GOLDEN


GOLDEN = [[3, 7, 1, 8, 4, 5], [0, 9, 6, 10, 2, 8], [7, 10, 9, 3, 8, 4]]


def test_seeds_share_no_epoch(counting_store):
    store = counting_store(401)
    epochs = {}
    for seed in range(4):
        made = loader(store, global_batch=100, seed=seed)
        for step in range(4):
            epochs[tuple(blocks(made.batch(step)))] = (seed, step)
    assert len(epochs) == 16  # Grain's own seeds would repeat: epoch 1 of seed 0 is epoch 0 of seed 1


@pytest.mark.parametrize("process_count", [1, 2, 4])
def test_batches_do_not_depend_on_the_number_of_processes(counting_store, process_count):
    """Row 19 of docs/reliability.md."""
    store = counting_store(101)
    whole = loader(store, global_batch=8)
    parts = [loader(store, global_batch=8, local_rows=share(index, process_count)) for index in range(process_count)]
    for step in (0, 2, 3, 50):
        rows = [blocks(part.batch(step)) for part in parts]
        assert {len(of_process) for of_process in rows} == {8 // process_count}
        assert list(itertools.chain(*rows)) == blocks(whole.batch(step))


def test_rows_of_a_process_may_lie_apart_and_may_be_those_of_another(counting_store):
    """Rows on a mesh whose outer axis is within a process, and on one whose processes hold the same rows."""
    store = counting_store(101)
    whole = blocks(loader(store, global_batch=8).batch(3))
    for rows in ((0, 1, 4, 5), (2, 3, 6, 7), (2, 3, 6, 7)):
        assert blocks(loader(store, global_batch=8, local_rows=rows).batch(3)) == [whole[row] for row in rows]


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_resuming_anywhere_equals_the_unbroken_run(counting_store, prefetch):
    """Row 20 of docs/reliability.md: in mid-epoch and at its edge."""
    store = counting_store(45)
    unbroken = [blocks(batch) for batch in itertools.islice(loader(store, prefetch=prefetch).iterate(0), 12)]
    for start in (1, 5, 11):
        resumed = itertools.islice(loader(store, prefetch=prefetch).iterate(start), 12 - start)
        assert [blocks(batch) for batch in resumed] == unbroken[start:]
        assert blocks(loader(store).batch(start)) == unbroken[start]


@pytest.fixture
def documents(tmp_path):
    """A store of 60 documents of up to 29 tokens with their end: ids 0, 1, 2, …, and 60,000 for each end."""

    class Numbers(ByteTokenizer):
        vocab_size = 2**16
        eos_id = 60_000

    sizes = np.random.default_rng(0).integers(1, 29, 60).tolist()
    starts = np.cumsum([0, *sizes]).tolist()
    texts = [(np.arange(start, start + size), size) for start, size in zip(starts, sizes, strict=False)]
    return write_store(tmp_path / "documents", texts, tokenizer=Numbers(), source_fingerprint="s", split="train")


def packed_rows(store, objective, packing, cache=None):
    made = {"causal": CausalLM(16), "masked": MASKED, "ul2": UL2(16, 60_003, 60_000, tuple(range(60_010, 60_040)), 0)}
    return store_rows(store, made[objective], packing, cache)


MASKED = MaskedLM(16, 60_003, 60_001, np.arange(2**16) < 60_000, 60_002, 60_002)


@pytest.mark.parametrize("packing", ["chunk", "isolate", "first_fit", "best_fit"])
@pytest.mark.parametrize("objective", ["causal", "masked", "ul2"])
def test_packed_batches_do_not_depend_on_the_number_of_processes(documents, objective, packing):
    rows = packed_rows(documents, objective, packing)
    whole = BatchLoader(rows, global_batch=8, seed=0)
    parts = [BatchLoader(rows, global_batch=8, seed=0, local_rows=share(index, 4)) for index in range(4)]
    for step in (0, 9):
        made = [part.batch(step) for part in parts]
        assert same({name: np.concatenate([rows[name] for rows in made]) for name in made[0]}, whole.batch(step))


def test_a_packed_batch_is_the_one_recorded(documents):
    """A change here changes the data of every run that is resumed."""
    batch = BatchLoader(packed_rows(documents, "causal", "best_fit"), global_batch=2, seed=1).batch(1)
    assert {name: batch[name].tolist() for name in ("inputs", "segments", "positions")} == PACKED


PACKED = {
    "inputs": [
        [76, 77, 78, 702, 703, 704, 705, 706, 707, 708, 709, 710, 711, 712, 713, 714],
        [74, 75, 606, 607, 608, 640, 641, 642, 643, 644, 645, 646, 647, 648, 649, 650],
    ],
    "segments": [[1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2], [1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4]],
    "positions": [
        [0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
        [0, 1, 0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7],
    ],
}


@pytest.mark.slow  # processes start with an interpreter of their own
def test_batches_of_workers_are_those_of_the_thread(documents, tmp_path):
    for rows in (packed_rows(documents, "masked", "best_fit", tmp_path), packed_rows(documents, "causal", "chunk")):
        alone = itertools.islice(BatchLoader(rows, global_batch=4, seed=0).iterate(5), 7)
        helped = itertools.islice(BatchLoader(rows, global_batch=4, seed=0, workers=2, prefetch=1).iterate(5), 7)
        assert all(same(*pair) for pair in zip(alone, helped, strict=True))


@pytest.mark.slow
def test_workers_hear_no_signal_and_end_with_the_iterator(documents):
    rows = packed_rows(documents, "causal", "chunk")
    alone = BatchLoader(rows, global_batch=4, seed=0)
    batches = BatchLoader(rows, global_batch=4, seed=0, workers=2, prefetch=1).iterate(0)
    assert same(next(batches), alone.batch(0))
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker, number in itertools.product(workers, (signal.SIGINT, signal.SIGTERM)):
        os.kill(worker.pid, number)
    for step in range(1, 40):
        assert same(next(batches), alone.batch(step))
    batches.close()
    assert not any(worker.is_alive() for worker in workers)


def test_a_curriculum_reaches_the_batches(documents):
    rows = packed_rows(documents, "causal", "isolate")
    first = Order(rows, 0, curriculum="length")(np.arange(8))
    batch = BatchLoader(rows, global_batch=8, seed=0, curriculum="length").batch(0)
    assert batch["inputs"].tolist() == rows.examples(first, [])["inputs"].tolist()
    assert batch["inputs"].tolist() != BatchLoader(rows, global_batch=8, seed=0).batch(0)["inputs"].tolist()


def test_an_error_in_the_objective_reaches_the_caller(counting_store):
    class Broken(CausalLM):
        def many(self, ids_N, lengths_P, random_N):
            raise RuntimeError("bad block")

    made = BatchLoader(ChunkRows(counting_store(45), Broken(4)), global_batch=2, seed=0, prefetch=2)
    with pytest.raises(RuntimeError, match="bad block"):
        next(made.iterate(0))


def test_epochs_are_counted_in_blocks(counting_store):
    made = loader(counting_store(49))  # 12 blocks, 6 rows
    assert [made.epochs(step)[""] for step in (0, 1, 2, 5)] == [0.0, 0.5, 1.0, 2.5]


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        (
            21,
            {},
            r"5 row\(s\) of 4, fewer than global_batch 6: use global_batch 5 or less, or a max_length of about 2",
        ),
        (4, {}, r"1 row\(s\) of 4, fewer than global_batch 6: use global_batch 1 or less, or more text"),
        (45, {"local_rows": (4, 5, 6)}, r"local_rows \[4, 5, 6\] are not rising numbers of rows from 0 to 5"),
        (45, {"local_rows": (-1, 0)}, r"local_rows \[-1, 0\] are not rising numbers"),
        (45, {"local_rows": (1, 1)}, r"local_rows \[1, 1\] are not rising numbers"),
        (45, {"local_rows": ()}, r"local_rows \[\] are not rising numbers"),
        (45, {"global_batch": 0}, r"global_batch 0 must be 1 or more"),
        (45, {"length": 0}, r"length 0 must be 1 or more"),
        (45, {"prefetch": -1}, r"prefetch -1 is negative"),
        (45, {"workers": -1}, r"workers -1 is negative: use 0 for none"),
    ],
)
def test_what_cannot_be_loaded_is_refused_with_numbers(counting_store, tokens, options, message):
    with pytest.raises(DataError, match=message):
        loader(counting_store(tokens), **options)


def test_the_way_out_that_errors_name_works(counting_store):
    store = counting_store(21)
    loader(store, global_batch=5)
    loader(store, length=2)
    with pytest.raises(DataError):
        loader(store, length=4)


def test_negative_steps_are_refused(counting_store):
    made = loader(counting_store(45))
    for call in (made.batch, made.iterate):
        with pytest.raises(DataError, match="step -1 is negative"):
            call(-1)


@pytest.mark.parametrize("process_count", [2, 4])
def test_noise_does_not_depend_on_the_number_of_processes(counting_store, process_count):
    store = counting_store(301)
    whole = noisy_loader(store)
    parts = [noisy_loader(store, local_rows=share(i, process_count)) for i in range(process_count)]
    for step in (0, 1, 7):
        rows = [part.batch(step) for part in parts]
        assert same({name: np.concatenate([row[name] for row in rows]) for name in rows[0]}, whole.batch(step))


def test_noise_is_resumed_and_is_new_in_every_epoch(counting_store):
    store, spans = counting_store(300), SpanCorruption(16, 0, 1, tuple(range(9)), 0, noise_density=0.5, mean_span=2.0)
    made = noisy_loader(store, objective=spans)
    unbroken = list(itertools.islice(made.iterate(0), 6))
    for start in (1, 4):
        resumed = itertools.islice(noisy_loader(store, objective=spans).iterate(start), 6 - start)
        assert all(same(*pair) for pair in zip(resumed, unbroken[start:], strict=True))
    rows = [row.tobytes() for batch in unbroken for row in batch["source"]]
    assert made.epochs(6)[""] > 3 and len(set(rows)) == len(rows)


def test_each_example_has_its_own_stream(counting_store):
    """Example i draws what a Philox made for i alone draws, whatever was drawn before it."""

    class Draws(CausalLM):
        is_random = True

        def many(self, ids_N, lengths_P, random_N):
            made = super().many(ids_N, lengths_P, random_N)
            made.arrays["targets"] = np.delete(random_N >> 33, np.cumsum(lengths_P) - 1)
            return made

    made = BatchLoader(ChunkRows(counting_store(101), Draws(4)), global_batch=4, seed=5)
    rows = np.concatenate([made.batch(step)["targets"] for step in (3, 0)])
    for index, row in zip((12, 13, 14, 15, 0, 1, 2, 3), rows, strict=True):
        alone = np.random.Generator(np.random.Philox(key=made._key, counter=[0, 0, 0, index]))
        assert row.tolist() == (alone.bit_generator.random_raw(5)[:4] >> 33).tolist()
    other = BatchLoader(ChunkRows(counting_store(101), Draws(4)), global_batch=4, seed=6)
    assert not np.isin(other.batch(0)["targets"], rows).any()


def held_out(store, length=4, batch_size=3, max_sequences=0):
    rows = store_rows(store, CausalLM(length))
    return list(held_out_batches(rows, batch_size=batch_size, max_sequences=max_sequences))


@pytest.mark.parametrize("num_tokens", [2, 4, 5, 6, 13, 14, 24, 25, 26])
def test_every_held_out_token_is_predicted_once(counting_store, num_tokens):
    batches = held_out(counting_store(num_tokens))
    assert len(batches) == -(-(num_tokens - 1) // 12)
    assert {array.shape for batch in batches for array in batch.values()} == {(3, 4)}
    weights, targets, inputs = (
        np.concatenate([b[n].ravel() for b in batches]) for n in ("weights", "targets", "inputs")
    )
    assert targets[weights == 1].tolist() == list(range(1, num_tokens))
    assert inputs[weights == 1].tolist() == list(range(num_tokens - 1))
    assert weights.sum() == num_tokens - 1 and weights.dtype == np.float32


def test_max_sequences_are_evenly_spaced_and_the_same_for_every_batch_size(counting_store):
    store = counting_store(60)  # 15 blocks of 4 targets, the last of 3

    def blocks(**options):
        batches = held_out(store, **options)
        firsts = np.concatenate([b["targets"][:, 0] for b in batches])
        return firsts[np.concatenate([b["weights"][:, 0] for b in batches]) > 0].tolist()

    assert blocks(max_sequences=3) == [1, 29, 57]
    assert blocks(max_sequences=3, batch_size=1) == blocks(max_sequences=3, batch_size=5) == [1, 29, 57]
    assert blocks(max_sequences=99) == blocks() == list(range(1, 60, 4))


def test_held_out_weights_of_the_objective_are_kept(counting_store):
    class LastOnly(CausalLM):
        def many(self, ids_N, lengths_P, random_N):
            made = super().many(ids_N, lengths_P, random_N)
            made.arrays["weights"] *= counted(lengths_P - 1) == 3
            return made

    batches = held_out_batches(ChunkRows(counting_store(7), LastOnly(4)), batch_size=2, max_sequences=0)
    assert next(batches)["weights"].tolist() == [[0, 0, 0, 1], [0, 0, 0, 0]]


def test_held_out_noise_is_the_same_for_every_batch_size_and_every_time(counting_store):
    store, objective = counting_store(301), UL2(16, 0, 1, tuple(range(9)), 0)

    def rows(batch_size):
        made = held_out_batches(store_rows(store, objective), batch_size=batch_size, max_sequences=0)
        every = list(made)
        return {name: np.concatenate([batch[name] for batch in every])[:18] for name in objective.features}

    assert -(-301 // objective.stride) == 18
    assert same(rows(3), rows(7)) and same(rows(3), rows(3))
    assert rows(7)["weights"].any(axis=1).all()


@pytest.mark.parametrize("num_tokens", [1, 17, 33, 34, 35])
def test_every_held_out_token_is_in_one_denoised_block(counting_store, num_tokens):
    objective = UL2(16, 60_000, 60_001, tuple(range(60_002, 60_012)), 60_000)
    assert objective.stride == 17
    batches = list(held_out_batches(store_rows(counting_store(num_tokens), objective), batch_size=3, max_sequences=0))
    shown = [batch[name][batch[of] > 0] for batch in batches for name, of in SHOWN]
    ids = np.concatenate(shown)
    assert sorted(ids[ids < 60_000].tolist()) == list(range(num_tokens))


SHOWN = (("source", "source_segments"), ("targets", "weights"))


@pytest.mark.parametrize("packing", ["isolate", "best_fit"])
def test_every_held_out_document_is_predicted_once_when_packed(documents, packing):
    batches = list(held_out_batches(packed_rows(documents, "causal", packing), batch_size=7, max_sequences=0))
    targets = np.concatenate([batch["targets"][batch["weights"] > 0] for batch in batches])
    starts = documents.document_starts
    expected = np.delete(np.asarray(documents.tokens), starts[:-1])  # all but the first of each document
    assert sorted(targets.tolist()) == sorted(expected.tolist())
    assert all(not values[-1].any() for values in batches[-1].values())  # rows of padding


def test_held_out_errors_name_their_numbers(counting_store):
    store = counting_store(10)
    for options, message in (
        ({"batch_size": 0}, "batch_size 0 must be"),
        ({"max_sequences": -1}, "max_sequences -1 is negative"),
    ):
        with pytest.raises(DataError, match=message):
            held_out(store, **options)
    with pytest.raises(DataError, match=r"holds 1 token\(s\): the first prediction needs 2"):
        store_rows(counting_store(1), CausalLM(4))
    with pytest.raises(DataError, match=r"holds 0 token\(s\): the first prediction needs 1"):
        objective = UL2(16, 0, 1, tuple(range(9)), 0)
        store_rows(dataclasses.replace(store, manifest=store.manifest | {"num_tokens": 0}), objective)
