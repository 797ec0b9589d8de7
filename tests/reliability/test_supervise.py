"""`tessera supervise`: what is started again, when it gives up, and that nothing is left behind."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import cli, supervise
from tests.reliability import harness
from train.records import read_metrics

# A process that ends as the next word of plan.txt says, with a code or by a signal (-9).
CHILD = """
import fcntl, os, signal, subprocess, sys
from pathlib import Path
here = Path(sys.argv[1])
words = (here / "plan.txt").read_text().split()
(here / "plan.txt").write_text(" ".join(words[1:]))
with open(here / "starts.txt", "a") as starts:
    print(*sys.argv[2:], file=starts)
what, _, code = words[0].rpartition(":")
run = here / "run"
run.mkdir(exist_ok=True)
if what == "save":
    step = run / "checkpoints" / str(1 + len(list(run.glob("checkpoints/*"))))
    step.mkdir(parents=True)
    (step / "_CHECKPOINT_METADATA").touch()
if what == "fresh":
    run.rename(here / "old")
    run.mkdir()
if what == "leave":
    lock = open(run / ".lock", "a")
    fcntl.flock(lock, fcntl.LOCK_EX)
    late = "import time; time.sleep(1); print('saved', file=open('starts.txt', 'a'))"
    subprocess.Popen([sys.executable, "-c", late], cwd=here, pass_fds=[lock.fileno()])
if what == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    print("waiting", flush=True)
    sys.stdin.read()
    print("alone", flush=True)
if int(code) < 0:
    os.kill(os.getpid(), -int(code))
sys.exit(int(code))
"""


def supervised(here: Path, plan: str, *flags: str, restarts: int = 2) -> tuple[int, int]:
    """The exit code, and how often the child was started."""
    (here / "plan.txt").write_text(plan)
    command = [sys.executable, "-c", CHILD, str(here), *flags]
    code = supervise.run(command, here / "run", restarts=restarts, backoff=0.01, again=["supervise"])
    return code, len((here / "starts.txt").read_text().splitlines())


def apart(here: Path) -> subprocess.Popen[str]:
    """A supervisor in a process of its own, whose child waits."""
    call = f"from tests.reliability.test_supervise import *; sys.exit(supervised(Path({str(here)!r}), 'wait:0 0')[0])"
    process = subprocess.Popen([sys.executable, "-c", call], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "waiting\n"
    return process


def test_signals_and_75_are_started_again_and_nothing_else(tmp_path):
    assert supervised(tmp_path, "75 -9 -6 -11 -15 134 137 0", restarts=9) == (0, 8)
    for code in (1, 2, 65, 74, 78, 130, -2):  # the last two: Ctrl-C in the child
        here = tmp_path / str(code)
        here.mkdir()
        assert supervised(here, f"{code} 0") == (code if code > 0 else 130, 1)


def test_it_gives_up_without_a_newer_checkpoint_and_waits_longer_each_time(tmp_path, capfd):
    assert supervised(tmp_path, "-9 save:-9 -9 save:75 75 -9 save:134 -6 -9 -11 0") == (139, 10)
    said = capfd.readouterr().err
    waits = [float(seconds) for seconds in re.findall(r"starting again in (\S+) s", said)]
    assert waits == [0.01, 0.01, 0.01, 0.0, 0.01, 0.02, 0.01, 0.01, 0.02]
    assert "SIGSEGV at step 0, the newest checkpoint is 3: giving up after 2 restarts without a newer one" in said
    lines = [json.loads(line) for line in (tmp_path / "run" / "restarts.jsonl").read_text().splitlines()]
    assert [line["ended"] for line in lines[:4]] == ["SIGKILL", "SIGKILL", "SIGKILL", "code 75"]
    assert [line["continues_after"] for line in lines] == [0, 1, 1, 2, 2, 2, 3, 3, 3]
    assert all(0.01 <= line["seconds_down"] < 60 for line in lines if line["ended"] != "code 75")


def test_fresh_holds_until_the_old_folder_has_stepped_aside(tmp_path):
    (tmp_path / "run" / "checkpoints" / "100").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "100" / "_CHECKPOINT_METADATA").touch()
    assert supervised(tmp_path, "-9 fresh:-9 save:-9 -9 -9 0", "--fresh", restarts=2) == (0, 6)
    assert (tmp_path / "starts.txt").read_text().splitlines() == ["--fresh", "--fresh", "", "", "", ""]


def test_a_signal_is_passed_on_and_ends_it(tmp_path):
    process = apart(tmp_path)
    process.terminate()
    assert process.wait(60) == 75 and len((tmp_path / "starts.txt").read_text().splitlines()) == 1


def test_a_child_knows_when_its_supervisor_is_killed(tmp_path):
    process = apart(tmp_path)
    process.kill()
    assert process.stdout and process.stdout.read() == "alone\n"  # all that had this pipe have ended


def test_it_waits_for_what_a_dead_child_left_behind(tmp_path):
    assert supervised(tmp_path, "leave:-9 0") == (0, 3)
    assert (tmp_path / "starts.txt").read_text().splitlines() == ["", "saved", ""]


def test_the_command_line(tmp_path, capfd):
    """It starts `train` alone, finds its mistakes before the first start, and does not wake up jax."""
    for words in (["supervise"], ["supervise", "--", "generate", "--run=x"], ["supervise", "--", "train"]):
        assert cli.main(words) == cli.USAGE
    assert cli.main(["supervise", "--", "train", "--config=gpt_demo", "--config.train.step=3"]) == cli.USAGE
    assert "only train is supervised" in (said := capfd.readouterr().err) and "did you mean 'steps'" in said
    words = ["supervise", "--", "train", "--config=gpt_demo", "--print_config"]
    call = f"import sys; from launch.cli import main; code = main({words}); sys.exit(code or 'jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", call], stdout=subprocess.DEVNULL, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_that_is_killed_stuck_and_frozen_is_started_again_to_the_bit(tmp_path):
    """Rows 8 and 10. Stuck: first Python waits for ever, then C code that keeps the interpreter's lock."""
    folder = harness.write(tmp_path / "two", {"train.stuck_after": 15.0})
    began = time.monotonic()
    process = harness.start(
        folder,
        "--processes=2",
        before=("supervise", "--backoff=0", "--"),
        FAULT="step:4:sigkill@1,step:7:hang@1,step:12:hold@1,step:17:sigstop@1",
    )
    (code, said), ended = harness.end(process, folder, 2 * harness.BUSY), time.monotonic()
    assert code == 0, said
    assert re.search(r"tessera: process 1 \(pid \d+\) was ended by SIGKILL", said)
    why = r"no step, evaluation batch or save for \d+ s \(train.stuck_after is 15\)"
    assert re.search(rf"tessera: {why}: this is what each thread does", said)
    assert re.search(r'\[process 1\]   File ".*faults.py", line \d+ in _hang', said)
    assert re.search(rf"(\[process 1\] tessera|this one ends): {why}", said)  # it saw by itself, or was told first
    assert re.search(r'\[process 1\]   File ".*faults.py", line \d+ in _hold', said)
    assert re.search(r"waiting for \d+ s at step 1\d: process 1 \(.*\): last at step 1\d, no sign of life", said)
    lines = [json.loads(line) for line in (folder / "run" / "restarts.jsonl").read_text().splitlines()]
    assert lines[0]["ended"] == "SIGKILL" and lines[0]["continues_after"] == 0
    assert {"code 75", "SIGALRM"} <= {line["ended"] for line in lines[1:]}
    lost = [record["time/lost"] for record in read_metrics(folder / "run") if "time/lost" in record][-1]
    assert 30 < lost < ended - began  # at least the time in which two watchdogs waited

    whole = harness.write(tmp_path / "whole")
    code, said = harness.run(whole, "--processes=2")
    assert code == 0, said
    harness.assert_same_run(folder / "run", whole / "run")


@pytest.mark.slow
def test_all_save_and_stop_when_the_supervisor_is_killed(tmp_path):
    """Row 8."""
    folder = harness.write(tmp_path / "two", {"train.steps": 100_000})
    process = harness.start(folder, "--processes=2", before=("supervise", "--"))
    children = harness.wait_for_step(process, folder, 20)
    process.kill()
    process.wait()
    until = time.monotonic() + 150
    while not all(map(harness.gone, children)):
        assert time.monotonic() < until, harness.said(folder)
        time.sleep(0.1)
    assert "stopped by SIGTERM: step" in harness.said(folder)
