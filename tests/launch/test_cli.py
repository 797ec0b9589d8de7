"""The command line: quick help, clear errors, exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest

import tessera


def run(capsys, *arguments):
    code = tessera.main(arguments)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_help_wakes_nothing_heavy():
    code = (
        "import sys, tessera; assert tessera.main(['--help']) == 0; assert tessera.main(['train', '--help']) == 0; "
        "assert tessera.main(['train', '--config=gpt_demo', '--print_config']) == 0; "
        "heavy = {'jax', 'flax', 'numpy', 'pandas', 'grain'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, ""),
        (["trian"], 2, "did you mean 'train'?"),
        (["train"], 2, "which experiment?"),
        (
            ["train", "--config=configs/gpt_demo.py", "--config.modle.num_layers=1"],
            2,
            "unknown config key 'modle': did you mean 'model'?",
        ),
        (["train", "--config=configs/gpt_dem.py"], 2, "did you mean configs/gpt_demo.py?"),
        (
            ["train", "--config=gpt_demo", "--config.optimizer.peaklr=1"],
            2,
            "unknown config key 'peaklr': did you mean 'peak_lr'?",
        ),
        (
            ["train", "--config=gpt_demo", "--config.train.steps=many"],
            2,
            "config.train.steps='many': it must be an int",
        ),
        (["train", "--config=gpt_demo", "--config.train.steps=1.5"], 2, "config.train.steps='1.5': it must be an int"),
        (["train", "--config=gpt_demo", "--steps=3"], 2, "steps"),
        (["train", "--config=gpt_demo", "more"], 2, "takes no 'more'"),
        (["train", "--config=gpt_demo", "--config.model.num_heads=7"], 78, "embed_dim 192 is not divisible"),
        (["train", "--config=gpt_demo", "--config.mesh.fsdp=16"], 78, "asks for 16 devices, there are 8"),
        (["train", "--config=gpt_demo", "--config.data.path=/no/such.txt"], 65, "/no/such.txt"),
        (["generate", "--run=runs/nothing", "--prompt=x"], 78, "is not the folder of a run"),
        (["generate", "--prompt=x"], 2, "which run?"),
        (["plot", "runs/nothing"], 78, "no metrics.jsonl in runs/nothing"),
    ],
)
def test_mistakes_get_a_clear_error(capsys, tmp_path, monkeypatch, arguments, code, says):
    monkeypatch.chdir(tmp_path)
    got, _, err = run(capsys, *arguments)
    assert got == code and says in err
    assert err.count("\n") <= 12 and "Traceback" not in err
    assert not list(tmp_path.glob("runs/*/checkpoints"))


def test_a_traceback_changes_no_exit_code(capsys, monkeypatch):
    monkeypatch.setenv("TESSERA_TRACEBACK", "1")
    code, _, err = run(capsys, "trian")
    assert code == 2 and "Traceback" in err and err.rstrip().endswith("did you mean 'train'?")


def test_arguments_from_python_reach_the_children_and_the_message(capsys, monkeypatch):
    """Not those of the program that called: here pytest's."""
    given, started, again = ["train", "--config=gpt_demo", "--processes=2", "--devices=2"], [], []
    monkeypatch.setattr("launch.children.run", lambda *arguments: started.append(arguments) or 0)
    assert tessera.main(given) == 0 and started == [(given, 2, 2, Path("runs/gpt_demo"))]
    monkeypatch.setattr("launch.train.run", lambda config, **known: again.append(known["again"]) or 0)
    assert tessera.main(["train", "--fresh", "--config=gpt_demo"]) == 0
    assert again == ["tessera train --config=gpt_demo"]


def test_print_config_says_where_each_value_comes_from(capsys):
    code, out, _ = run(capsys, "train", "--config=gpt_demo", "--config.train.steps=7", "--print_config")
    source = {line.split()[0]: line.split()[-1] for line in out.splitlines()}
    assert code == 0 and source["optimizer.b1"] == "defaults"
    assert source["model.num_layers"].endswith("gpt_demo.py") and out.split("train.steps")[1].split("\n")[0].endswith(
        "command line"
    )


def test_doctor_says_which_process_this_is(capsys, monkeypatch):
    monkeypatch.setattr("launch.doctor._mesh_test", lambda: "")
    assert "processes  one" in run(capsys, "doctor")[1]
    for name, value in {"COORDINATOR": "10.0.0.1:8476", "PROCESSES": "4", "PROCESS": "2"}.items():
        monkeypatch.setenv(f"TESSERA_{name}", value)
    assert "process 2 of 4, 10.0.0.1:8476 is process 0 (says TESSERA_COORDINATOR)" in run(capsys, "doctor")[1]
    monkeypatch.delenv("TESSERA_PROCESS")
    assert "PROBLEM    processes: TESSERA_PROCESS not set" in run(capsys, "doctor")[1]


def test_doctor_finds_the_machine_ready(capsys):
    code, out, _ = run(capsys, "doctor")
    assert (
        code == 0 and "8 × cpu" in out and "a sum over 8 device(s) is right" in out and out.rstrip().endswith("ready")
    )
