"""`tessera checkpoint`: what is there, is it whole, and what may go."""

import dataclasses
import json
import shutil

import pytest
from etils import epath

from launch.cli import BAD_DATA, CONFIG, IO, OK, USAGE, main
from tests import tiny
from tests.train.test_checkpoint import CONFIG as KEEP
from tests.train.test_checkpoint import forget, fresh, saved
from tests.train.test_verify import LEAF, flip_a_bit
from train.records import open_run
from train.restore import finished_steps

POLICY = {"checkpoint.keep_last": 1, "checkpoint.keep_best": 1, "checkpoint.keep_every_steps": 10}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run with the steps 5, 10 and 15 and something set aside; 5 is older than checksums are."""
    folder = tmp_path_factory.mktemp("written") / "run"
    state = fresh(tiny.mesh(fsdp=8))
    checkpoints = folder / "checkpoints"
    saved(checkpoints, state, (5, 10, 15), dataclasses.replace(KEEP, keep_last=3), losses=[1.5, 3.0, 2.0]).close()
    forget(checkpoints / "5")
    (checkpoints / "12.corrupt").mkdir()
    (checkpoints / "12.corrupt" / "data").write_bytes(b"x" * 2048)
    (checkpoints / "notes").mkdir()
    (folder / "config.json").write_text(json.dumps({"config": POLICY}))
    start = {"started": "2026-01-01T00:00:00+0000", "packages": {"jax": "0.10.2"}}
    (folder / "environment.json").write_text(json.dumps([start]))
    return folder


@pytest.fixture
def run(written, tmp_path):
    return shutil.copytree(written, tmp_path / "run")


def tessera(capsys, *arguments):
    code = main(["checkpoint", *map(str, arguments)])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def files(run):
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def steps(run):
    return finished_steps(run / "checkpoints")


@pytest.mark.parametrize("where", ["", "checkpoints"])
def test_ls_says_what_is_there_and_why(run, capsys, where):
    (run / "checkpoints" / "20").mkdir()
    code, out, _ = tessera(capsys, "ls", run / where)
    lines = out.splitlines()
    assert code == OK and [line.split()[0] for line in lines[1:4]] == ["5", "10", "15"]
    assert lines[1].endswith("28,544     1.5000  no         best 1")
    assert lines[2].endswith("28,544     3.0000  yes        every 10, for good")
    assert lines[3].endswith("28,544     2.0000  yes        newest, last 1")
    assert lines[4:] == ["set aside: 12.corrupt, 2.0 KiB", "set aside: 20, 0 B"]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("[" * 100_000, "config.json is no JSON"),
        ('{"config": []}', "config.json is not what a run of Tessera writes"),
        ('{"config": {"checkpoint.keep_last": "2"}}', "says checkpoint.keep_last is '2'"),
    ],
)
def test_a_config_that_is_broken_is_a_clear_error(run, capsys, config, says):
    (run / "config.json").write_text(config)
    code, _, err = tessera(capsys, "ls", run)
    assert code == CONFIG and says in err


@pytest.mark.parametrize("file", ["metrics/metrics", "_CHECKPOINT_METADATA", "params/_METADATA"])
@pytest.mark.parametrize("text", ["[" * 100_000, "[]"])
def test_other_files_that_are_broken_cost_only_what_they_say(run, capsys, file, text):
    for path in (run / "checkpoints" / "15" / file, run / "environment.json"):
        path.write_text(text)
    assert tessera(capsys, "ls", run)[0] == OK
    code, out, _ = tessera(capsys, "inspect", run, "--step=10")
    assert code == OK and "by versions that are not known" in out
    assert tessera(capsys, "verify", run)[0] == (OK if file == "metrics/metrics" else BAD_DATA)


def test_inspect_lists_the_leaves(run, capsys):
    code, out, _ = tessera(capsys, "inspect", run, "--step=10")
    (line,) = [line for line in out.splitlines() if line.startswith(LEAF)]
    assert code == OK and line.split()[1:4] == ["2×32×128", "float32", "32,768"] and len(line.split()[4]) == 16
    assert "params     20 leaves, 28,544 numbers, 111.5 KiB" in out and "by jax 0.10.2" in out
    assert "  -" in tessera(capsys, "inspect", run, "--step=5")[1]


def test_verify_reads_all_and_changes_nothing(run, capsys):
    """Row 11: what was damaged since is found without training on it."""
    before = files(run)
    code, out, _ = tessera(capsys, "verify", run, "--all")
    assert code == OK and files(run) == before
    assert out.splitlines() == [
        "step 5: 62 leaves, 334.5 KiB, readable, not verifiable: it has no checksums",
        "step 10: 62 leaves, 334.5 KiB, all as they were written",
        "step 15: 62 leaves, 334.5 KiB, all as they were written",
    ]
    flip_a_bit(epath.Path(run / "checkpoints" / "10"))
    before = files(run)
    assert tessera(capsys, "verify", run)[0] == OK
    code, out, _ = tessera(capsys, "verify", run, "--all")
    assert code == BAD_DATA and files(run) == before
    assert [line.split(": ")[:3] for line in out.splitlines() if "DAMAGED" in line] == [["step 10", "DAMAGED", LEAF]]


@pytest.mark.parametrize("file", ["_CHECKPOINT_METADATA", "params/_METADATA"])
def test_verify_survives_an_emptied_description(run, capsys, file):
    """Row 12."""
    (run / "checkpoints" / "15" / file).write_bytes(b"")
    code, out, _ = tessera(capsys, "verify", run)
    assert code == BAD_DATA and out.startswith("step 15: DAMAGED: ")
    assert tessera(capsys, "ls", run)[0] == OK


@pytest.mark.parametrize(
    ("flags", "left"),
    [
        (["--keep=5,15"], [5, 15]),
        (["--keep_last=2"], [10, 15]),
        (["--keep_best=1"], [5]),
        (["--keep_best=1", "--keep_last=1"], [5, 15]),
        (["--aside"], [5, 10, 15]),
    ],
)
def test_prune_deletes_what_is_not_named_and_only_with_yes(run, capsys, flags, left):
    before = files(run)
    code, out, _ = tessera(capsys, "prune", run, *flags)
    assert code == OK and files(run) == before
    assert out.count("would delete") == (1 if flags == ["--aside"] else 3 - len(left)) and "--yes" in out
    assert ("go on from step 5, not from 15" in out) == (left == [5])
    assert tessera(capsys, "prune", run, *flags, "--yes")[0] == OK
    assert steps(run) == left and (run / "checkpoints" / "12.corrupt").exists() == (flags != ["--aside"])
    assert (run / "checkpoints" / "notes").exists()
    kept = {path: data for path, data in before.items() if path.exists()}
    assert {path: data for path, data in files(run).items() if path.name != ".lock"} == kept


def test_prune_keeps_the_only_good_step(run, capsys):
    flip_a_bit(epath.Path(run / "checkpoints" / "15"))
    code, out, err = tessera(capsys, "prune", run, "--keep_last=1", "--yes")
    assert code == BAD_DATA and "DAMAGED" in out and "nothing is deleted" in err and steps(run) == [5, 10, 15]
    assert tessera(capsys, "prune", run, "--keep_last=2", "--yes")[0] == OK and steps(run) == [10, 15]
    for step in (10, 15):
        (run / "checkpoints" / str(step)).rename(run / "checkpoints" / f"{step}.corrupt")
    code, _, err = tessera(capsys, "prune", run, "--aside", "--yes")
    assert code == BAD_DATA and "nothing is deleted" in err and (run / "checkpoints" / "10.corrupt").exists()


def test_prune_stays_out_of_a_run_that_trains(run, capsys):
    with open_run(run):
        code, _, err = tessera(capsys, "prune", run, "--keep=15", "--yes")
    assert code == CONFIG and "is in use by" in err and steps(run) == [5, 10, 15]


def test_a_step_whose_deletion_was_interrupted_is_none(run, capsys, monkeypatch):
    """Row 3. The deletion of files stops at the first."""

    def stop(path, **_):
        raise OSError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", stop)
        assert tessera(capsys, "prune", run, "--keep=15", "--yes")[0] == IO
    assert steps(run) == [10, 15]
    assert "set aside: .deleted" in tessera(capsys, "ls", run)[1]
    assert tessera(capsys, "prune", run, "--keep=15", "--aside", "--yes")[0] == OK
    assert "set aside" not in tessera(capsys, "ls", run)[1] and steps(run) == [15]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["verfy"], USAGE, "did you mean 'checkpoint verify'?"),
        (["ls"], USAGE, "one run is needed, 0 are given"),
        (["ls", "no/such"], CONFIG, "no/such does not exist"),
        (["verify", "RUN", "--step=7"], BAD_DATA, "no checkpoint of step 7"),
        (["verify", "RUN", "--step=5", "--all"], USAGE, "contradict"),
        (["prune", "RUN"], USAGE, "nothing says what to keep"),
        (["prune", "RUN", "--keep=5,7"], BAD_DATA, "--keep names 7"),
        (["prune", "RUN", "--keep_last=-1"], USAGE, "keep_last"),
    ],
)
def test_mistakes_get_a_clear_error(written, capsys, arguments, code, says):
    got, _, err = tessera(capsys, *[str(written) if a == "RUN" else a for a in arguments])
    assert got == code and says in err
