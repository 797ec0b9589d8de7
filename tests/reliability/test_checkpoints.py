"""Checkpoints that were damaged, cut short, half deleted, or written by an older release."""

import json
import random
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from launch import train
from tests import tiny
from tests.reliability import harness
from tests.train.test_checkpoint import CONFIG, assert_equal, forget, fresh, saved, target
from train import checkpoint, restore
from train.checkpoint import Checkpoints
from train.checksum import checksums
from train.records import read_metrics
from train.restore import METADATA, CheckpointError, Damaged, finished_steps, load_params, read
from train.verify import read_about, verify

OLD = Path(__file__).parent / "release_0_1"


@pytest.fixture(scope="module")
def states():
    """What was saved at the steps 5 and 10."""
    state = fresh(tiny.mesh())
    return {5: state, 10: jax.tree.map(lambda x: x + 1, state)}


@pytest.fixture(scope="module")
def written(states, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    checkpoints = Checkpoints(folder, CONFIG)
    for step, state in states.items():
        checkpoints.save(step, state)
    checkpoints.wait()
    checkpoints.close()
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "checkpoints")


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != checkpoint.DELETED)


def data_files(step, item="*", least=1000):
    """The files in which the numbers are."""
    found = [path for path in step.glob(f"{item}/**/d/*") if path.stat().st_size >= least]
    return sorted(found, key=lambda path: -path.stat().st_size)


def resume(folder):
    """What a run would go on from: state, step, and the warnings."""
    said = []
    state, step = Checkpoints(folder, CONFIG, warn=said.append).resume(target(tiny.mesh()))
    return state, step, "\n".join(said)


def test_no_flipped_bit_of_a_data_file_goes_unseen(folder, states):
    """Row 11. Whatever bit of whatever large file: it is found, or no number depends on it."""
    wanted, rng, found = target(tiny.mesh()).params, random.Random(0), 0
    for path in data_files(folder / "10", "params"):
        whole = path.read_bytes()
        for _ in range(8):
            broken = bytearray(whole)
            broken[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            path.write_bytes(broken)
            try:
                assert_equal(read(folder / "10", {"params": wanted})["params"], states[10].params)
            except Damaged:
                found += 1
        path.write_bytes(whole)
    assert found >= 8  # of the file with the parameters alone


def flip_a_bit(step):
    """A bit of a parameter, in the middle of the largest file."""
    path = data_files(step, "params")[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "flipped": (flip_a_bit, "not what was saved, by their checksums: params/"),
    "cut": (lambda step: [path.write_bytes(path.read_bytes()[:100]) for path in data_files(step)], "params: "),
    "deleted": (lambda step: [path.unlink() for path in data_files(step, "training", 0)], "training: "),
    "manifest": (lambda step: (step / "params" / "manifest.ocdbt").write_bytes(b""), "params: "),
    "leaves": (lambda step: (step / "training" / "_METADATA").write_bytes(b""), "training: "),
    "metadata": (lambda step: (step / METADATA).write_bytes(b""), "metadata: "),
    "no metadata": (lambda step: (step / METADATA).unlink(), "metadata: "),
    "half deleted": (lambda step: shutil.rmtree(step / "params"), "params: "),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_step_steps_aside_and_an_older_one_is_used(folder, states, damage):
    """Rows 11 and 12."""
    harm, says = DAMAGES[damage]
    harm(folder / "10")
    (folder / "10.corrupt").mkdir()  # of another time
    state, step, said = resume(folder)
    assert step == 5 and "checkpoint 10 is damaged: " + says in said and str(folder / "10.corrupt.2") in said
    assert_equal(state, states[5])
    assert names(folder) == ["10.corrupt", "10.corrupt.2", "5"]
    saved(folder, states[10], (10,)).close()  # the run comes to this step again
    assert_equal(resume(folder)[0], states[10])


def test_where_all_are_damaged_there_is_no_fresh_start(folder):
    """Row 13. Nothing is renamed, so the next start says the same."""
    for step in ("5", "10"):
        flip_a_bit(folder / step)
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"no whole checkpoint in .*\n  step 10: .*params/.*\n  step 5: "):
            resume(folder)
    assert names(folder) == ["10", "5"]


def test_what_is_no_checkpoint_is_ignored(folder, states):
    """Row 14."""
    (folder / "20").mkdir()
    (folder / "21").write_text("notes")
    (folder / "22").symlink_to(folder / "22")
    (folder / "loop").symlink_to(folder / "loop")
    shutil.copytree(folder / "5", folder / "0030")
    shutil.copytree(folder / "5", folder / "40.orbax-checkpoint-tmp")
    assert finished_steps(folder) == [5, 10]
    state, step, said = resume(folder)
    assert step == 10 and not said
    assert_equal(state, states[10])
    saved(folder, states[5], (20, 21, 22, 30)).close()
    assert finished_steps(folder) == [22, 30]
    assert not list(folder.glob("*tmp"))


def test_a_checkpoint_that_does_not_fit_is_not_damaged(folder):
    """Row 28. Nothing is renamed; tests/train/test_checkpoint.py looks at what is listed."""
    wanted = target(tiny.mesh())
    del wanted.params["decoder"]["norm"]
    with pytest.raises(CheckpointError, match=r"does not fit .*\n  params/decoder/norm/bias: .*this run missing"):
        Checkpoints(folder, CONFIG).resume(wanted)
    assert names(folder) == ["10", "5"]


def test_a_checkpoint_without_checksums_is_used_with_a_note(folder, states):
    """Row 30."""
    forget(folder / "10")
    state, step, said = resume(folder)
    assert step == 10 and "has no checksums" in said
    assert_equal(state, states[10])


def test_a_reader_takes_an_older_step_and_changes_nothing(folder, states):
    """Row 11, for generate, export and evaluate: a step that was asked for is not replaced."""
    flip_a_bit(folder / "10")
    wanted = target(tiny.mesh()).params
    with pytest.warns(UserWarning, match="checkpoint 10 .* is damaged, .*params/"):
        params, step = load_params(folder, wanted)
    assert step == 5
    assert_equal(params, states[5].params)
    with pytest.raises(CheckpointError, match=r"step 10: .*params/"):
        load_params(folder, wanted, 10)
    assert names(folder) == ["10", "5"]


def test_a_step_that_is_deleted_while_it_is_read_gives_way_to_a_newer_one(folder, states, monkeypatch, recwarn):
    """Row 33. As the run does it: a newer step appears, then the one that is being read goes, in one stroke."""
    shutil.move(folder / "10", folder / "10.orbax-checkpoint-tmp")
    reading = restore._restored

    def prune(path, wanted):
        if path == folder / "5" / "params":
            (folder / "10.orbax-checkpoint-tmp").rename(folder / "10")
            saved(folder, states[5], (15,)).close()  # keeps two
        return reading(path, wanted)

    monkeypatch.setattr(restore, "_restored", prune)
    assert finished_steps(folder) == [5]
    params, step = load_params(folder, target(tiny.mesh()).params)
    assert step == 15 and finished_steps(folder) == [10, 15]
    assert not [warning for warning in recwarn if "damaged" in str(warning.message)]
    assert_equal(params, states[5].params)


def test_a_deletion_that_is_cut_short_leaves_no_step(folder, states, monkeypatch):
    """Row 3. A step leaves its number before its files go; the next start takes up the deletion."""
    with monkeypatch.context() as killed:
        killed.setattr(checkpoint, "_delete", lambda _: None)
        saved(folder, states[5], (15,)).close()
    (folder / checkpoint.DELETED / "5" / METADATA).unlink()
    assert finished_steps(folder) == [10, 15] and names(folder) == ["10", "15"]
    assert resume(folder)[1] == 15
    assert not list((folder / checkpoint.DELETED).iterdir())


def test_an_emptied_score_costs_only_the_score(folder, states):
    """Row 12. Orbax would not start."""
    saved(folder, states[5], (15,), losses=[1.0]).close()
    (folder / "15" / "metrics" / "metrics").write_bytes(b"")
    assert resume(folder)[1] == 15


def test_a_run_of_release_0_1_goes_on(tmp_path, monkeypatch):
    """Row 30. Four steps were done by its code, which kept no checksums; the next four come out as there."""
    monkeypatch.chdir(tmp_path)
    config = tiny.config(Path(), "the quick brown fox jumps over the lazy dog. " * 60)
    config.data.tokenizer = "char"
    config.model.update(num_layers=1, embed_dim=4, num_heads=2, mlp_dim=8, max_length=16)
    config.model.update(bias="none", norm="rms", positions="rotary")
    config.train.update(steps=8, eval_every=0, eval_sequences=8, sample_prompts=())
    config.optimizer.schedule = "constant"
    config.checkpoint.update(every_steps=4, keep_last=1)
    shutil.copytree(OLD, "run")
    assert checksums(harness.params(Path("run"))) == json.loads((OLD.parent / "release_0_1.json").read_text())["params"]
    assert train.run(config) == train.DONE
    there = json.loads((OLD.parent / "release_0_1.json").read_text())["losses"]
    losses = [record["loss"] for record in read_metrics(Path("run")) if "loss" in record]
    np.testing.assert_allclose(losses, there, rtol=1e-6)


@pytest.mark.slow
def test_killed_in_ten_saves(tmp_path):
    """Rows 2 and 3. A run that saves all the time and keeps one step is killed at ten moments of a save, and of the
    deletion that follows it: each step that counts as finished is whole, there is always one, and leftovers go."""
    large = {"model.embed_dim": 512, "data.workers": 0, "optimizer.schedule": "constant"}
    harness.write(tmp_path, {**large, "train.steps": 1000, "checkpoint.every_steps": 1, "checkpoint.keep_last": 1})
    checkpoints, rng, done, torn, left = tmp_path / "run" / "checkpoints", random.Random(0), 0, 0, set()
    for number in range(10):
        process = harness.start(tmp_path, devices=1)
        until = time.monotonic() + harness.BUSY
        while max(finished_steps(checkpoints), default=0) <= done:
            assert process.poll() is None and time.monotonic() < until, harness.said(tmp_path)
            time.sleep(0.002)
        time.sleep(0.001 * 500 ** ((number + rng.random()) / 10))  # seconds, from 0.001 to 0.5
        process.kill()
        assert process.wait() == -signal.SIGKILL
        gone, left = left, {*checkpoints.glob("*tmp*"), *checkpoints.glob(f"{checkpoint.DELETED}/*")}
        assert not gone & left  # no step is saved or deleted twice
        torn += bool(left)
        steps = finished_steps(checkpoints)
        assert max(steps) > done
        done = max(steps)
        for step in steps:
            path = epath.Path(checkpoints / str(step))
            verdicts = list(verify(path, read_about(path)["recorded"]))
            assert verdicts and all(verdict.verified and not verdict.problem for verdict in verdicts)
    assert torn and done < 1000
    harness.here(tmp_path, "run", **{"train.steps": done + 2})
    assert names(checkpoints) == [str(done + 2)] and not list(checkpoints.glob(f"{checkpoint.DELETED}/*"))
