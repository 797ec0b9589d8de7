"""Folders that cannot be written, from the start or in mid-run: told at once, and no finished step is lost."""

import shutil
import subprocess

import pytest

from launch import cli
from tests.reliability import harness
from train.records import read_lines


@pytest.fixture
def folder(tmp_path):
    """The folder of a run on a disk of 8 MiB."""
    asides = {"run.tensorboard": True, "train.sample_every": 9, "train.sample_prompts": ("ab",)}
    folder = harness.write(tmp_path / "one", asides)
    (folder / "run").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tessera", str(folder / "run")]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may make a small disk, and some containers do not let it")
    yield folder
    subprocess.run(["umount", str(folder / "run")], check=True)


def test_a_full_disk_ends_the_run_and_with_space_again_it_goes_on(folder):
    """Rows 15 and 31: metrics and samples may fail, a checkpoint may not; no line is torn, the older step is whole."""
    code, said = harness.run(folder, FAULT="between:7:full,between:11:nothing")
    assert code == cli.IO, said
    words = "no space left on device, 0 B of 8.0 MiB are free. Make room"
    assert f"tessera: run folder {folder}/run: {words}" in said, said
    assert "the same command goes on after step 5, which is whole" in said and "step 11/" not in said, said
    assert said.count("training goes on") == 2 and "Traceback" not in said, said
    assert [record["step"] for record in read_lines(folder / "run")] == list(range(1, 7))
    assert (folder / "run" / "metrics.jsonl").read_bytes().endswith(b"\n")

    with pytest.raises(OSError, match=r"0 B of 8\.0 MiB are free\. Make room"):
        harness.here(folder, "run")
    (folder / "run" / "filler").unlink()
    harness.here(folder, "run")
    harness.assert_same_run(folder / "run", harness.here(folder))


def test_a_folder_that_cannot_be_made_or_written_is_told_before_anything_is_compiled(tmp_path, monkeypatch, capsys):
    """Row 16."""
    monkeypatch.setattr("launch.program.Program.compile", lambda self: pytest.fail("compiled"))
    folder = harness.write(tmp_path / "one")
    for place in (folder / "config.py" / "run", "/proc/self"):
        assert cli.main(["train", f"--config={folder}/config.py", f"--config.run.dir={place}"]) == cli.IO
        assert f"run folder {place} cannot be written: " in capsys.readouterr().err
