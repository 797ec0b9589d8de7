"""A checkpoint is read back in parts, without a mesh, and every damaged leaf is named."""

import math

import jax
import numpy as np
import pytest
import tensorstore as ts
from etils import epath

from tests import tiny
from tests.train.test_checkpoint import CONFIG, assert_equal, fresh, saved, target
from train import checkpoint
from train.checksum import checksums
from train.verify import checksum, part_shape, read_about, read_leaves, verify

LEAF = "params/decoder/layers/mlp/up/kernel"


@pytest.fixture
def step(tmp_path):
    """A checkpoint that eight devices wrote, each its part."""
    saved(tmp_path, fresh(tiny.mesh(fsdp=8))).close()
    return epath.Path(tmp_path / "5")


def leaf_of(step, name=LEAF):
    return next(leaf for leaf in read_leaves(step) if leaf.name == name)


def wrong(step, recorded):
    return {verdict.name: verdict.problem for verdict in verify(step, recorded) if verdict.problem}


def flip_a_bit(step, name=LEAF):
    """The files stay as Orbax writes them; one bit of one number is another."""
    store = ts.open(leaf_of(step, name).store.spec(), open=True, read=True, write=True).result()
    values = store.read().result()
    values.reshape(-1).view(np.uint32)[-7] ^= 1 << 9
    store.write(values).result()


@pytest.mark.parametrize("part_bytes", [2**25, 4096, 300])
def test_what_eight_devices_wrote_is_verified_in_parts_of_bounded_size(step, part_bytes):
    """Row 11. Parts of chunks, one chunk, and several at once."""
    parts = []
    verdicts = list(verify(step, read_about(step)["recorded"], part_bytes, parts.append))
    state = fresh(tiny.mesh())
    leaves = len(jax.tree.leaves(state))
    assert len(verdicts) == leaves and all(v.verified and not v.problem for v in verdicts)
    assert max(parts) <= part_bytes
    assert sum(parts) == sum(v.nbytes for v in verdicts) == sum(x.nbytes for x in jax.tree.leaves(state))


def test_chunks_are_small_however_much_a_device_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "CHUNK_BYTES", 4096)
    state = fresh(tiny.mesh())
    saved(tmp_path, state).close()
    step = epath.Path(tmp_path / "5")
    chunks = [
        (leaf.store.chunk_layout.read_chunk.shape, leaf.dtype.itemsize) for leaf in read_leaves(step) if leaf.shape
    ]
    assert max(math.prod(shape) * itemsize for shape, itemsize in chunks) == 4096
    assert all(verdict.verified and not verdict.problem for verdict in verify(step, read_about(step)["recorded"]))
    assert_equal(checkpoint.Checkpoints(tmp_path, CONFIG).restore(5, target(tiny.mesh(fsdp=4, tensor=2))), state)


@pytest.mark.parametrize("part_bytes", [2**25, 1000])
def test_the_checksum_of_parts_is_that_of_the_arrays(step, part_bytes):
    expected = checksums({"params": fresh(tiny.mesh()).params})
    found = {f"/{x.name}": checksum(x, part_bytes) for x in read_leaves(step) if x.item == "params"}
    assert found == expected


def test_a_flipped_bit_is_named_by_its_leaf(step):
    """Row 11."""
    recorded = read_about(step)["recorded"]
    flip_a_bit(step)
    (problem,) = wrong(step, recorded).items()
    assert problem[0] == LEAF and f"{recorded[LEAF]} was recorded" in problem[1]


@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(file.read_bytes()[:99]), lambda file: file.unlink()])
def test_files_that_are_cut_short_or_gone_are_problems_of_their_leaves(step, damage):
    """Row 12."""
    recorded = read_about(step)["recorded"]
    for file in (step / "params").glob("ocdbt.process_0/d/*"):
        damage(file)
    found = wrong(step, recorded)
    assert LEAF in found
    assert all(name.startswith("params/") and "cannot be read" in why for name, why in found.items())


def test_a_chunk_that_is_gone_is_not_read_as_zeros(step):
    """Row 12, of a checkpoint without checksums."""
    chunks = leaf_of(step).store.kvstore
    chunks.write(next(key for key in chunks.list().result() if key != b".zarray"), None).result()
    assert wrong(step, {}).keys() == {LEAF}


def test_leaves_that_nobody_recorded_or_nobody_finds_are_problems(step):
    recorded = read_about(step)["recorded"]
    gone = {"params/gone": recorded.pop(LEAF)}
    assert wrong(step, {**recorded, **gone}).keys() == {LEAF, "params/gone"}
    verdicts = list(verify(step, {}))
    assert not any(v.problem or v.verified for v in verdicts)


@pytest.mark.parametrize(
    ("shape", "chunk", "part_bytes", "part"),
    [
        ((80, 8192, 28672), (80, 16, 28672), 2**25, (18, 16, 28672)),  # 147 MB of a leaf of 75 GB
        ((80, 8192, 28672), (1, 16, 28672), 2**25, (1, 288, 28672)),
        ((10, 6), (5, 3), 4 * 15, (5, 3)),
        ((10, 6), (5, 3), 4 * 45, (5, 6)),
        ((10, 6), (5, 3), 4 * 14, (4, 3)),
        ((10, 6), (5, 3), 4 * 2, (1, 2)),
        ((0, 6), (1, 6), 4, (1, 1)),
        ((), (), 1, ()),
    ],
)
def test_parts_are_whole_chunks_or_parts_of_one(shape, chunk, part_bytes, part):
    assert part_shape(shape, chunk, 4, part_bytes) == part
