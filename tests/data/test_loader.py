import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.errors import DataError
from data.loader import BatchLoader, held_out_batches
from data.objectives import causal_lm


def loader(store, length=4, global_batch=6, seed=0, **options):
    return BatchLoader(store, length=length, global_batch=global_batch, seed=seed, objective=causal_lm, **options)


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
    assert [loader(counting_store(n)).blocks_per_epoch for n in (25, 28, 29)] == [6, 6, 7]


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
    store = counting_store(101)
    whole = loader(store, global_batch=8)
    parts = [
        loader(store, global_batch=8, process_index=index, process_count=process_count)
        for index in range(process_count)
    ]
    for step in (0, 2, 3, 50):
        rows = [blocks(part.batch(step)) for part in parts]
        assert {len(of_process) for of_process in rows} == {8 // process_count}
        assert list(itertools.chain(*rows)) == blocks(whole.batch(step))


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_resuming_anywhere_equals_the_unbroken_run(counting_store, prefetch):
    store = counting_store(45)
    unbroken = [blocks(batch) for batch in itertools.islice(loader(store, prefetch=prefetch).iterate(0), 12)]
    for start in (1, 5, 11):
        resumed = itertools.islice(loader(store, prefetch=prefetch).iterate(start), 12 - start)
        assert [blocks(batch) for batch in resumed] == unbroken[start:]
        assert blocks(loader(store).batch(start)) == unbroken[start]


def test_an_error_in_the_objective_reaches_the_caller(counting_store):
    def broken(_):
        raise RuntimeError("bad block")

    made = BatchLoader(counting_store(45), length=4, global_batch=2, seed=0, objective=broken, prefetch=2)
    with pytest.raises(RuntimeError, match="bad block"):
        next(made.iterate(0))


def test_epochs_are_counted_in_blocks(counting_store):
    made = loader(counting_store(49))  # 12 blocks, 6 rows
    assert [made.epoch(step) for step in (0, 1, 2, 5)] == [0.0, 0.5, 1.0, 2.5]


@pytest.mark.parametrize(
    ("tokens", "options", "message"),
    [
        (
            21,
            {},
            r"21 tokens, 5 block\(s\) of length 4, fewer than global_batch 6: use global_batch 5 or less, or length 3 ",
        ),
        (4, {}, r"4 tokens, 0 block\(s\) of length 4, fewer than global_batch 6: use more text"),
        (45, {"process_count": 4}, r"global_batch 6 is not divisible by 4 processes: use 4 or 8"),
        (45, {"process_count": 8}, r"global_batch 6 is not divisible by 8 processes: use 8"),
        (45, {"process_count": 2, "process_index": 2}, r"process_index 2 is not one of 2 processes"),
        (45, {"global_batch": 0}, r"global_batch 0 must be 1 or more"),
        (45, {"length": 0}, r"length 0 must be 1 or more"),
        (45, {"prefetch": -1}, r"prefetch -1 is negative"),
    ],
)
def test_what_cannot_be_loaded_is_refused_with_numbers(counting_store, tokens, options, message):
    with pytest.raises(DataError, match=message):
        loader(counting_store(tokens), **options)


def test_the_way_out_that_errors_name_works(counting_store):
    store = counting_store(21)
    assert loader(store, global_batch=5).blocks_per_epoch == 5
    assert loader(store, length=3).blocks_per_epoch == 6
    with pytest.raises(DataError):
        loader(store, length=4)


def test_negative_steps_are_refused(counting_store):
    made = loader(counting_store(45))
    for call in (made.batch, made.iterate):
        with pytest.raises(DataError, match="step -1 is negative"):
            call(-1)


def held_out(store, length=4, batch_size=3, max_sequences=0):
    made = held_out_batches(
        store, length=length, batch_size=batch_size, max_sequences=max_sequences, objective=causal_lm
    )
    return list(made)


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
    def last_only(block_ids):
        example = causal_lm(block_ids)
        return {**example, "weights": np.array([0, 0, 0, 1], np.float32)}

    batches = held_out_batches(counting_store(7), length=4, batch_size=2, max_sequences=0, objective=last_only)
    assert next(batches)["weights"].tolist() == [[0, 0, 0, 1], [0, 0, 0, 0]]


def test_held_out_errors_name_their_numbers(counting_store):
    for options, message in (
        ({"length": 0}, "length 0 must be"),
        ({"batch_size": 0}, "batch_size 0 must be"),
        ({"max_sequences": -1}, "max_sequences -1 is negative"),
    ):
        with pytest.raises(DataError, match=message):
            held_out(counting_store(10), **options)
    with pytest.raises(DataError, match=r"holds 1 token\(s\): the first prediction needs 2"):
        held_out_batches(counting_store(1), length=4, batch_size=1, max_sequences=0, objective=causal_lm)
