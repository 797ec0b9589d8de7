"""Processes that are killed or stopped: the same command again gives the run that nobody disturbed, to the bit."""

import os
import re
import signal
import time

import pytest

from launch import cli
from tests.reliability import harness
from train.records import read_metrics


def test_a_frozen_a_killed_and_a_stopped_process_leave_the_run_whole(tmp_path, capsys):
    """Rows 1, 7 and 17."""
    folder = harness.write(tmp_path / "one")
    command = [*harness.command(folder)[3:]]
    owner = harness.start(folder, FAULT="between:13:sigstop")
    harness.wait_until_frozen(owner, folder)
    capsys.readouterr()
    assert cli.main([*command[:-1], "--devices=0"]) == cli.CONFIG
    assert re.search(rf"run folder .*/run is in use by pid {owner.pid} on \S+: wait for it", capsys.readouterr().err)

    owner.kill()
    assert owner.wait() == -signal.SIGKILL
    code, said = harness.run(folder, FAULT="between:13:sigstop,step:16:sigint")
    assert code == 75 and "resuming after step 10" in said, said
    assert f"stopped by SIGINT: step 16 is saved. The run continues with\n  tessera {' '.join(command)}" in said, said

    harness.here(folder, "run")
    assert "resuming after step 16" in capsys.readouterr().out
    whole = harness.here(folder)
    harness.assert_same_run(folder / "run", whole)
    lost = [read_metrics(run)[-1]["time/lost"] for run in (folder / "run", whole)]
    assert lost[0] > 0 == lost[1]  # what the killed process did behind its last checkpoint


@pytest.mark.slow
def test_a_start_after_one_that_left_no_checkpoint_begins_anew_and_says_so(tmp_path):
    """Row 4: killed while it compiles, and then in the very first save."""
    folder, anew = (
        harness.write(tmp_path / "one"),
        "an earlier start of this run left no checkpoint: starting at step 0",
    )
    faults = "compile:0:sigkill,write:5:sigkill"
    code, said = harness.run(folder, FAULT=faults)
    assert code == -signal.SIGKILL and "step 1/" not in said and anew not in said, said
    code, said = harness.run(folder, FAULT=faults)
    assert code == -signal.SIGKILL and "step 5/" in said and anew in said, said
    code, said = harness.run(folder, FAULT=faults)
    assert code == 0 and anew in said and "resuming" not in said, said
    harness.assert_same_run(folder / "run", harness.here(folder))


@pytest.mark.slow
def test_a_stop_saves_its_step_and_a_second_one_does_not_wait_for_the_save(tmp_path):
    """Rows 5 and 7: SIGTERM loses no step; a second Ctrl-C ends the process at once, here in a save that hangs."""
    folder = harness.write(tmp_path / "one", {"checkpoint.every_steps": 0})
    faults = "step:7:sigterm,step:13:sigint,write:13:hang"
    code, said = harness.run(folder, FAULT=faults)
    assert code == 75 and "stopped by SIGTERM: step 7 is saved" in said, said
    assert read_metrics(folder / "run")[-1]["step"] == 7

    process = harness.start(folder, FAULT=faults)
    until = time.monotonic() + harness.BUSY
    while not (folder / "fault.2").exists():
        assert process.poll() is None and time.monotonic() < until, harness.said(folder)
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    code, said = harness.end(process, folder, seconds=20)
    assert code == 130 and "resuming after step 7" in said and said.endswith("tessera: interrupted\n"), said
    assert os.listdir(folder / "run" / "checkpoints") != ["7"]

    code, said = harness.run(folder)
    assert code == 0 and "resuming after step 7" in said, said
    harness.assert_same_run(folder / "run", harness.here(folder))
