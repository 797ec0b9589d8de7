"""What a run continues from: itself, a checkpoint of another run, or nothing at all where nothing is there."""

import json
import shutil

import numpy as np
import pytest

from configs import defaults
from data.errors import DataError
from data.loader import BatchLoader
from launch import train
from launch.verify_resume import differences
from tests import tiny
from tests.reliability import harness
from train.records import RunError
from train.restore import CheckpointError


def small(folder, **changes):
    config = tiny.config(folder)
    config.train.update(eval_every=0, eval_sequences=8, sample_prompts=(), steps=12)
    config.model.update(num_layers=1, embed_dim=16, num_heads=2, dropout=0.1)
    config.checkpoint.update(every_steps=4, keep_last=3)
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def spiked(tmp_path_factory):
    """A run of 12 steps, with checkpoints of steps 4, 8 and 12."""
    folder = tmp_path_factory.mktemp("spiked")
    assert train.run(small(folder)) == train.DONE
    return folder


def test_a_run_begins_from_a_checkpoint_of_another(spiked, tmp_path, capsys):
    """Row 29: it counts on, reads the batches that come next, and the same command again does not begin anew."""
    before = sorted(path.name for path in (spiked / "run" / "checkpoints").iterdir())
    run = tmp_path / "back"
    back = small(spiked, **{"run.dir": str(run), "checkpoint.every_steps": 2})
    start = str(spiked / "run" / "checkpoints" / "4")
    assert train.run(back, resume=start, stop_after=6) == train.DONE
    assert "beginning from step 4 of" in capsys.readouterr().out
    # Killed before its first save, it begins there again; the flag is not needed, as the run folder says it.
    shutil.rmtree(run / "checkpoints")
    assert train.run(back, stop_after=6) == train.DONE
    assert "beginning from step 4 of" in capsys.readouterr().out
    # What it has saved itself is newer.
    assert train.run(back, resume=start) == train.DONE
    assert "resuming after step 6" in capsys.readouterr().out
    # The same batches and the same numbers as in the other run, which nobody touched.
    missing = [line for line in differences(spiked / "run", run, 12) if not line.endswith("after a kill None")]
    assert missing == [] and list(harness.losses(run)) == harness.losses(spiked / "run")[4:]
    assert json.loads((run / "config.json").read_text())["origin"] == {"run": str(spiked / "run"), "step": 4}
    assert sorted(path.name for path in (spiked / "run" / "checkpoints").iterdir()) == before


@pytest.mark.parametrize(
    ("resume", "changes", "error", "says"),
    [
        ("no/such/path", {}, DataError, "--resume '.*no/such/path' does not exist"),
        ("cache", {}, CheckpointError, r"no finished checkpoint in .*cache/checkpoints, there are none"),
        ("run/checkpoints/8", {}, RunError, "goes on from step 12, its newest; to go back to step 8, begin another"),
        ("run", {"run.dir": "empty", "train.steps": 12}, ValueError, "and train.steps is 12: use more steps"),
        ("run", {"run.dir": "empty", "model.embed_dim": 32}, CheckpointError, r"params/.*: checkpoint .*16.*32"),
        ("run", {"run.dir": "empty", "optimizer.name": "lion"}, CheckpointError, r"training/opt_state.*missing"),
        ("run/checkpoints/4", {"run.dir": "other"}, RunError, "holds a run that began at step 0, not from"),
    ],
)
def test_what_cannot_be_continued_is_never_begun_anew(spiked, tmp_path, monkeypatch, resume, changes, error, says):
    """Row 29; and row 27 for a run that begins from another: what its checkpoint does not fit is listed."""
    monkeypatch.setattr("launch.program.Program.compile", lambda self: pytest.fail("compiled"))
    (spiked / "other").mkdir(exist_ok=True)
    shutil.copy(spiked / "run" / "config.json", spiked / "other")
    config = small(spiked, **{"train.steps": 16, **changes})
    if "run.dir" in changes:
        config.run.dir = str(spiked / changes["run.dir"])
    with pytest.raises(error, match=says):
        train.run(config, resume=str(spiked / resume))
    assert not (spiked / "empty" / "config.json").exists()


SHIFTED = """
    from data.loader import BatchLoader
    iterate = BatchLoader.iterate
    BatchLoader.iterate = lambda loader, step: iterate(loader, step and step + 1)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "more", "code"), [(2, "", 0), (1, SHIFTED, 65)])
def test_verify_resume_says_whether_a_kill_changes_the_run(tmp_path, processes, more, code):
    """Row 1, with the command of a user, also of two processes; where the loader forgets a batch it says so."""
    folder = harness.write(tmp_path / "a", more=more)
    found, said = harness.run(folder, f"--processes={processes}", "--verify_resume=4")
    assert found == code, said
    kept = list(folder.glob("run*"))
    if code:
        assert "not the same run:\n  params/" in said and "loss of step 4" in said and "loss of step 2" not in said
        assert len(kept) == 1 and f"both runs are kept in {kept[0]}" in said
    else:
        assert "arrays of parameters and optimiser are equal in every bit, and 4 losses" in said and not kept


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda lines: [*lines[:-2], lines[-1]],
            r"bytes of files \d+ -> \d+, documents 60 -> 59, bytes of text \d+ -> ",
        ),
        (
            lambda lines: [lines[0].replace("a", "b"), *lines[1:]],
            "60 documents as before, of which some were changed or",
        ),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "60 documents as before, of which some were changed or moved"),
    ],
    ids=["cut short", "changed", "reordered"],
)
def test_other_data_is_refused_with_what_differs(tmp_path, monkeypatch, change, says):
    """Row 21."""
    source = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": f"banana {number} " * 9}) + "\n" for number in range(60)]
    source.write_text("".join(lines))
    config = small(tmp_path, **{"data.path": str(source), "data.held_out_by": "document"})
    monkeypatch.setattr("launch.program.Program.compile", lambda self: (_ for _ in ()).throw(Compiled))
    with pytest.raises(Compiled):
        train.run(config)
    source.write_text("".join(change(lines)))
    with pytest.raises(RunError, match=rf"holds another run:\n  corpus: \w+ -> \w+\n    data of {source}: {says}"):
        train.run(config)
    source.write_text("".join(lines))
    with pytest.raises(Compiled):
        train.run(config)


class Compiled(Exception):
    """The run was accepted."""


def test_batches_go_on_in_mid_epoch_at_its_edge_and_twice_in_a_row(tmp_path, monkeypatch):
    """Row 20: a mixture of packed rows; what is read is what the unbroken run reads. One epoch ends in step 5."""
    iterate, read, loaders = BatchLoader.iterate, [], []

    def recorded(loader, start_step):
        loaders.append(loader)
        for batch in iterate(loader, start_step):
            read.append(batch)
            yield batch

    monkeypatch.setattr(BatchLoader, "iterate", recorded)
    config = small(tmp_path, **{"data.path": "", "data.packing": "best_fit", "train.steps": 9})
    config.data.update(held_out=0.3, held_out_by="document")
    for name in ("first", "second"):
        texts = [f"{name} {number} {number * '='}"[: 10 + number % 9] for number in range(60)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config.data.mixture = {
        name: defaults.source(str(tmp_path / f"{name}.jsonl"), weight=(0.5,), max_epochs=9.0)
        for name in ("first", "second")
    }
    assert train.run(config) == train.DONE
    whole = read[:9]
    before, behind = (loaders[0].epochs(step)["first"] for step in (4, 5))
    assert before < 1 < behind
    config.run.dir = str(tmp_path / "pieces")
    for begin, end in ((0, 4), (4, 5), (5, 9)):
        read.clear()
        assert train.run(config, stop_after=end) == train.DONE
        for one, other in zip(whole[begin:end], read, strict=False):  # some are read ahead
            assert one.keys() == other.keys()
            for name in one:
                np.testing.assert_array_equal(one[name], other[name])
