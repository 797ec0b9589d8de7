"""`tessera train --verify_resume=20`: is a run that is killed and started again the same run, with this config, here?

The command of the user runs as processes of its own in two folders beside the run: in the one to step 20, in the other
it is killed when step 10 is saved, and started again. Then what both have saved is compared, in every bit.
"""

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.processes import CHILD, discover, machine_attribute
from train.console import Console, duration
from train.peers import Stopped
from train.records import read_metrics
from train.restore import finished_steps, saved_leaves

EQUAL, UNEQUAL = 0, 65
SHOWN = 10  # differences of each kind, and lines of what a process said last
TO_STOP = 60.0  # seconds


def run(values: Any) -> int:
    """Tries the command line in `values`: 0 if both runs are equal in every bit, 65 if not, with what differs.

    A trial run that fails gives its own exit code. The trial's folder goes, unless there is something to see in it.

    Raises:
        ValueError: a number of steps without a middle, or more than the run has; a run that cannot be tried so.
    """
    check(values)
    steps, console = values.verify_resume, Console()
    place = Path(values.config.run.dir).expanduser()
    place.parent.mkdir(parents=True, exist_ok=True)
    trial = Path(tempfile.mkdtemp(prefix=f"{place.name}.verify.", dir=place.parent))
    unbroken, broken = trial / "unbroken", trial / "broken"
    console.say(f"verify_resume: {steps} steps without a break, and with a kill after step {steps // 2}, in {trial}")
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        for what, folder, kill_at in (
            ("without a break", unbroken, 0),
            ("until the kill", broken, steps // 2),
            ("started again", broken, 0),
        ):
            console.start(0, kill_at or steps)
            began, said = time.monotonic(), trial / f"{what.replace(' ', '_')}.log"
            if code := _train(command(values, folder), folder, said, kill_at, console):
                last = said.read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN:]
                console.say("\n".join([*last, f"the trial run {what} failed with exit code {code}: see {trial}"]))
                return code
            console.stop()
            console.say(f"  {what}: {duration(time.monotonic() - began)}")
    except (KeyboardInterrupt, Stopped):
        shutil.rmtree(trial)
        raise
    finally:
        console.stop()
        signal.signal(signal.SIGTERM, before)
    if problems := differences(unbroken, broken, steps):
        console.say("\n  ".join(["not the same run:", *problems]))
        console.say(f"both runs are kept in {trial}")
        return UNEQUAL
    arrays = len(saved_leaves(unbroken / "checkpoints" / str(steps)))
    shutil.rmtree(trial)
    console.say(f"the same run: {arrays} arrays of parameters and optimiser are equal in every bit, and {steps} losses")
    return EQUAL


def check(values: Any) -> None:
    """Raises ValueError for what cannot be tried."""
    steps, config = values.verify_resume, values.config
    if steps < 2 or steps % 2:
        raise ValueError(f"--verify_resume={steps}: use an even number of steps, the kill comes after half of them")
    if config.model.architecture == "ngram":
        raise ValueError("an n-gram model is counted in one go: there are no steps for --verify_resume")
    if steps > config.train.steps:
        raise ValueError(f"--verify_resume={steps}: the run has {config.train.steps} steps, use no more")
    if values.resume:
        raise ValueError("--verify_resume begins at step 0: leave --resume out")
    if values.processes < 1:
        found = discover(os.environ, None if values.devices else machine_attribute())
        if found and found.count > 1:
            raise ValueError(
                f"--verify_resume starts the processes itself: this is one of {found.count} of {found.source}; run it "
                "on one machine, with --processes=N"
            )


def command(values: Any, folder: Path) -> list[str]:
    """The command of the user in another run folder: of two flags that are the same the last one counts."""
    steps = values.verify_resume
    changed = {
        "run.dir": folder,
        "run.tensorboard": False,
        "train.log_every": 1,
        "train.eval_every": 0,
        "train.sample_every": 0,
        "checkpoint.every_steps": steps // 2,
        "checkpoint.every_minutes": 0.0,
        "checkpoint.keep_last": 2,
        "checkpoint.keep_best": 0,
    }
    flags = ["--verify_resume=0", "--nofresh", "--profile=", f"--stop_after={steps}"]
    flags += [f"--config.{name}={value}" for name, value in changed.items()]
    return [sys.executable, "-m", "tessera", *values.command_line, *flags]


def differences(unbroken: Path, broken: Path, steps: int) -> list[str]:
    """What differs between two runs of so many steps, a line each: arrays, by their path, and losses."""
    one, other = (saved_leaves(run / "checkpoints" / str(steps)) for run in (unbroken, broken))
    losses, others = (
        {f"loss of step {record['step']}": repr(record["loss"]) for record in read_metrics(run) if "loss" in record}
        for run in (unbroken, broken)
    )
    lines = []
    for a, b in ((one, other), (losses, others)):
        names = [name for name in {**a, **b} if a.get(name) != b.get(name)]
        lines += [f"{name.lstrip('/')}: {a.get(name)}, after a kill {b.get(name)}" for name in names[:SHOWN]]
        lines += [f"… and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return lines


def _train(command: Sequence[str], run: Path, said: Path, kill_at: int, console: Console) -> int:
    """Trains to the end, or until step `kill_at` is saved, when the run is killed: 0, or the code of a failure.

    Raises:
        ValueError: the run ended before it was killed.
    """
    killed = False
    with open(said, "wb") as out:
        # A group of its own: Ctrl-C reaches it through this process. Its input ends with this process, and so does it.
        process = subprocess.Popen(
            command,
            env={**os.environ, CHILD: shlex.join(sys.argv[1:])},
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            process_group=0,
        )
    try:
        while (code := process.poll()) is None:
            if kill_at and not killed and kill_at in finished_steps(run / "checkpoints"):
                os.kill(_owner(run), signal.SIGKILL)
                killed = True
            console.step(_last_step(run), "")
            time.sleep(0.01)
    finally:
        _end(process)
    if killed and code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        for step in finished_steps(run / "checkpoints"):  # the run may have got further until it was dead
            if step > kill_at:
                shutil.rmtree(run / "checkpoints" / str(step))
        return 0
    if kill_at and not code:
        raise ValueError(f"the run of {run} was over before it could be killed: use more steps")
    return code


def _owner(run: Path) -> int:
    """The process that trains in a run folder: with --processes the first one, without which the others end."""
    return int((run / ".lock").read_text(encoding="utf-8").split()[1])


def _last_step(run: Path) -> int:
    """The newest step that was logged."""
    path = run / "metrics.jsonl"
    with contextlib.suppress(OSError, ValueError), open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 10_000))
        return max(int(step) for step in re.findall(rb'"step": (\d+)', file.read()))
    return 0


def _end(process: subprocess.Popen[bytes]) -> None:
    """Where this process is to stop: so that the run, which would save its last step, is not left alone."""
    process.terminate()
    try:
        process.wait(TO_STOP)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _stop(number: int, _: object) -> None:
    raise Stopped("stopped by SIGTERM: nothing is known of how the run resumes")
