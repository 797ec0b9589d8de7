"""One of two processes fails, or does not come: all end soon, and say why."""

import os
import re
import socket
import subprocess
import sys
import time

import pytest

from tests.reliability import harness


@pytest.mark.slow
def test_an_error_in_one_process_ends_all_with_its_traceback_and_is_not_tried_again(tmp_path):
    """Row 9."""
    folder = harness.write(tmp_path / "two", {"train.steps": 100_000})
    process = harness.start(folder, "--processes=2", before=("supervise", "--"), FAULT="step:7:raise@1")
    code, said = harness.end(process, folder)
    assert code == 1 and time.time() - (folder / "fault.0").stat().st_mtime < 30, said
    before, after = said.split("Traceback (most recent call last)")  # there is but one
    error = "RuntimeError: a fault that was placed here"
    assert "step 5/" in before and f"[process 1] {error}" in after
    # Process 0 may still log the step before; what ends it is the last line.
    told = rf"tessera: process 1 \(.*\) has ended, so this one ends: {error}"
    assert re.fullmatch(told, after.splitlines()[-1]), said


def test_who_does_not_come_and_a_port_that_is_taken_are_named():
    """Row 32. The exit codes: another start may meet the others, but not free the port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, said = started_alone(address, 0)
        assert code == 74 and f"process 0 cannot listen at {address}" in said and "in use" in said
    code, said = started_alone(address, 0)
    assert code == 75 and f"1 of 2 processes did not come to {address} within 1 s; missing: 1" in said
    code, said = started_alone(address, 1)
    assert code == 75 and "process 0 is missing" in said and address in said


def started_alone(address: str, index: int) -> tuple[int, str]:
    """One of two processes: the exit code, and what it said."""
    place = {"TESSERA_COORDINATOR": address, "TESSERA_PROCESSES": "2", "TESSERA_PROCESS": str(index)}
    command = [sys.executable, "-m", "tessera", "train", "--config=gpt_demo", "--start_timeout=1"]
    done = subprocess.run(
        command, env={**os.environ, **place}, stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    return done.returncode, done.stderr
