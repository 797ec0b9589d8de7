"""The `tessera` command. Imports nothing heavy until it knows what to do: `--help` answers at once."""

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from launch.config_file import UsageError, config_path, explain_config, unknown_key, wrong_type
from launch.memory import accelerated, keep_memory
from train.peers import START_AGAIN, Stopped, exit_now

OK, FAILED, USAGE, BAD_DATA, IO, CONFIG, INTERRUPTED = 0, 1, 2, 65, 74, 78, 130  # sysexits.h; and START_AGAIN

GROUPS = {  # commands of two words, `tessera data build`, each in a file of its own, launch/data_build.py
    "data": ("build", "clean", "tokenizer", "inspect", "augment"),
    "checkpoint": ("ls", "inspect", "verify", "prune"),
}
COMMANDS = {
    "train": (
        "train, or continue, the run of a config",
        "tessera train --config=configs/gpt_demo.py [--config.KEY=VALUE …]",
    ),
    "supervise": (
        "start a training again whenever it is killed, preempted or stuck",
        "tessera supervise [--restarts=5] [--backoff=5] -- train --config=… [--processes=2 …]",
    ),
    "generate": ("continue prompts with a trained run", 'tessera generate --run=runs/gpt_demo --prompt="def "'),
    "import": (
        "make a published model a run: a folder in the layout of Hugging Face, or a name of the hub",
        "tessera import PATH_OR_NAME runs/gpt2 [--param_dtype=bfloat16]",
    ),
    "export": ("write a run as a folder that transformers loads", "tessera export runs/x --to=FOLDER [--step=N]"),
    "history": (
        "unigram to GPT on one text for equal training time, in one picture",
        "tessera history --config=configs/gpt_demo.py [--minutes=3] [--out=runs/history]",
    ),
    "data": (f"from raw text to exact batches: {', '.join(GROUPS['data'])}", "tessera data COMMAND --help"),
    "checkpoint": (
        f"look after the checkpoints of a run: {', '.join(GROUPS['checkpoint'])}",
        "tessera checkpoint COMMAND --help",
    ),
    "plot": ("draw runs in one picture", "tessera plot runs/a runs/b [--out=runs.png]"),
    "plan": (
        "compile the step of a config for devices that are not here: does it fit, who waits for whom, how long",
        "tessera plan --config=configs/gpt_7b.py --topology=v5p:4x4x8 [--mesh=fsdp=128] [--config.KEY=VALUE …]",
    ),
    "doctor": ("look at this machine: versions, devices, mesh, disk", "tessera doctor [--devices=8]"),
}
CONFIGURED = ("train", "history", "data build", "plan")  # commands that take an experiment
# Commands with arguments that are no flags; those of two words look for themselves.
POSITIONAL = ("plot", "import", "export", "supervise")
FUNCTIONS = {"import": "import_model", "export": "export_model"}  # `import` is a word of Python


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code."""
    arguments = given = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        return OK if arguments else USAGE
    try:
        command, arguments = _command(arguments)
        if command in GROUPS:
            print(_group_overview(command))
            return OK
        values = _define(command, arguments)
        if any(argument in ("-h", "--help") for argument in arguments):
            print(_help(command, values))
            return OK
        rest = _parse(command, values, arguments)
        values.__dict__["command_line"] = given
        return _run(command, values, rest)
    except BaseException as error:
        if (code := explain(error)) is None:
            raise
        if code == INTERRUPTED and given[:1] == ["train"]:  # other commands save nothing in threads, nor wait
            exit_now(code)
        return code


def explain(error: BaseException) -> int | None:
    """Says what is wrong, in a line; the exit code. None, and nothing said, where only a traceback would help."""
    if isinstance(error, UsageError | flags.Error):
        return _fail(error, USAGE)
    if isinstance(error, TimeoutError | ChildProcessError):  # others did not come, or died
        return _fail(error, START_AGAIN)
    if isinstance(error, OSError):
        return _fail(error, IO)
    if isinstance(error, ValueError):
        return _fail(error, _exit_code(error))
    if isinstance(error, Stopped):
        return _fail(error, START_AGAIN)
    if isinstance(error, KeyboardInterrupt):
        return _fail(error, INTERRUPTED)
    return _fail(error, FAILED) if type(error).__name__ == "TrainingError" else None


def _command(arguments: list[str]) -> tuple[str, list[str]]:
    """The command, of two words in a group (or the group alone, at a call for help), and the arguments behind it."""
    command, rest, known = arguments[0], _joined(arguments[1:]), list(COMMANDS)
    group = command if command in GROUPS else None
    if group:
        if not rest or rest[0] in ("-h", "--help", "help"):
            return group, rest
        command, rest, known = f"{group} {rest[0]}", rest[1:], [f"{group} {name}" for name in GROUPS[group]]
    if command in known:
        return command, rest
    near = difflib.get_close_matches(command, known, n=1)
    overview = _group_overview(group) if group else _overview()
    raise UsageError(f"no command {command!r}" + (f": did you mean {near[0]!r}?" if near else f"\n{overview}"))


def _module(command: str) -> Any:
    """The file of a command of two words, which says its usage, its flags and what it does; None for one word."""
    return importlib.import_module(f"launch.{command.replace(' ', '_')}") if " " in command else None


def _usage(command: str) -> tuple[str, str]:
    return module.USAGE if (module := _module(command)) else COMMANDS[command]


def _run(command: str, values: flags.FlagValues, rest: Sequence[str]) -> int:
    if module := _module(command):
        return module.run(values, rest)
    if rest and command not in POSITIONAL:
        raise UsageError(f"tessera {command} takes no {rest[0]!r}: {COMMANDS[command][1]}")
    if command == "train" and values.print_config:
        print(explain_config(values.config, values.config_file, values.given))
        return OK
    if command == "generate" and not values.run:
        raise UsageError(f"which run? {COMMANDS['generate'][1]}")
    if command == "generate" and values.num_samples < 1:
        raise UsageError(f"--num_samples is {values.num_samples}: it must be at least 1")
    if command == "plot" and not rest:
        raise UsageError(f"which runs? {COMMANDS['plot'][1]}")
    if command == "import" and len(rest) != 2:
        raise UsageError(f"a model and the folder of a new run are needed: {COMMANDS['import'][1]}")
    if command == "export" and (len(rest) != 1 or not values.to):
        raise UsageError(f"a run and a new folder are needed: {COMMANDS['export'][1]}")
    if command == "plan" and not values.topology:
        raise UsageError(f"for which devices? {COMMANDS['plan'][1]}")
    if command == "supervise":
        from launch import supervise

        trained = _supervised(rest)  # a mistake is found before the first start
        return supervise.run(
            [sys.executable, "-m", "tessera", *rest],
            Path(trained.config.run.dir).expanduser(),
            restarts=values.restarts,
            backoff=values.backoff,
            again=values.command_line,
        )
    if command == "train" and values.verify_resume:
        from launch import verify_resume

        return verify_resume.run(values)
    if command == "train" and values.processes > 1:
        from launch import children

        folder = Path(values.config.run.dir).expanduser()
        return children.run(values.command_line, values.processes, values.devices, folder)
    emulated = command == "plan" or (command in CONFIGURED and values.devices)
    if not accelerated() or emulated:
        keep_memory()
    if command in ("train", "doctor", "history"):
        _emulate(values.devices)
    if command == "plan":
        os.environ["JAX_PLATFORMS"] = "cpu"
    from launch import commands
    from launch.compiled import keep_compiled

    keep_compiled()

    return getattr(commands, FUNCTIONS.get(command, command))(values, rest)


def _supervised(arguments: Sequence[str]) -> Any:
    """The flags of the command that is to be supervised."""
    if arguments[:1] != ["train"]:
        what = f"not {arguments[0]!r}" if arguments else "after --"
        raise UsageError(f"only train is supervised, {what}: {COMMANDS['supervise'][1]}")
    values = _define("train", arguments[1:])
    if rest := _parse("train", values, arguments[1:]):
        raise UsageError(f"tessera train takes no {rest[0]!r}: {COMMANDS['train'][1]}")
    return values


def _define(command: str, arguments: Sequence[str]) -> Any:
    """The flags of one command."""
    values = flags.FlagValues()
    if command in CONFIGURED:
        config_flags.DEFINE_config_file(
            "config", None, "the experiment, a Python file", flag_values=values, sys_argv=["tessera", *arguments]
        )
    if module := _module(command):
        module.define(values)
    if command in ("train", "doctor", "history"):
        flags.DEFINE_integer(
            "devices", 0, "emulate so many devices on the CPU; 0: the devices of this machine", 0, flag_values=values
        )
    if command == "train":
        flags.DEFINE_bool("fresh", False, "start over; the old run folder is renamed, not deleted", flag_values=values)
        flags.DEFINE_integer(
            "processes",
            0,
            "start so many processes on this machine; 0: be one of those of a cluster, if there is one; 1: train alone",
            0,
            flag_values=values,
        )
        flags.DEFINE_float("start_timeout", 60.0, "seconds to wait for all processes of a run", 1.0, flag_values=values)
        flags.DEFINE_float(
            "heartbeat_timeout", 60.0, "seconds of silence of one process after which all end", 2.0, flag_values=values
        )
        flags.DEFINE_string(
            "resume",
            "",
            "a run, or RUN/checkpoints/STEP, to begin from; where it is the run of the config: it must continue",
            flag_values=values,
        )
        flags.DEFINE_integer(
            "stop_after", 0, "save after this step and end; 0: after train.steps", 0, flag_values=values
        )
        flags.DEFINE_integer(
            "verify_resume",
            0,
            "try in folders beside the run whether so many steps are the same with a kill in the middle; 0: train",
            0,
            flag_values=values,
        )
        flags.DEFINE_string("profile", "", "trace steps into RUN/profile: steps:10-13", flag_values=values)
        flags.DEFINE_bool(
            "print_config", False, "show every value and where it comes from, and end", flag_values=values
        )
    elif command == "supervise":
        flags.DEFINE_integer(
            "restarts", 5, "give up after so many in a row without a newer checkpoint", 0, flag_values=values
        )
        flags.DEFINE_float(
            "backoff", 5.0, "seconds before a restart; doubled while no newer checkpoint comes", 0.0, flag_values=values
        )
    elif command == "generate":
        flags.DEFINE_string("run", None, "the folder of a run", flag_values=values)
        flags.DEFINE_multi_string("prompt", [], "a text to continue; may be given several times", flag_values=values)
        flags.DEFINE_string("prompts_file", None, "a file with one prompt a line", flag_values=values)
        flags.DEFINE_integer("max_tokens", 200, "most tokens to add", flag_values=values)
        flags.DEFINE_float("temperature", 0.8, "0: the most likely token; 1: as the model says", flag_values=values)
        flags.DEFINE_integer("top_k", 0, "draw among the k most likely tokens; 0: all", flag_values=values)
        flags.DEFINE_float("top_p", 1.0, "draw among the likeliest tokens with this probability", flag_values=values)
        flags.DEFINE_float("min_p", 0.0, "leave out tokens below this part of the highest", flag_values=values)
        flags.DEFINE_float("typical_p", 1.0, "draw among the most typical with this probability", flag_values=values)
        flags.DEFINE_float("repetition_penalty", 1.0, "above 1: avoid tokens that came before", flag_values=values)
        flags.DEFINE_integer("no_repeat_ngram", 0, "no n-gram of this length comes twice; 0: off", flag_values=values)
        flags.DEFINE_integer("min_tokens", 0, "no end before so many tokens", flag_values=values)
        flags.DEFINE_multi_string(
            "stop", [], "a string that ends the text; may be given more often", flag_values=values
        )
        flags.DEFINE_integer("num_beams", 0, "beam search with so many beams; 0: draw", flag_values=values)
        flags.DEFINE_float("length_penalty", 1.0, "of beam search: above 0 favours long texts", flag_values=values)
        flags.DEFINE_integer("num_samples", 1, "samples per prompt", flag_values=values)
        flags.DEFINE_integer("seed", 0, "of the first sample; the next ones count up", flag_values=values)
        flags.DEFINE_integer("step", None, "the checkpoint to use; the newest without", flag_values=values)
    elif command == "history":
        flags.DEFINE_float("minutes", 3.0, "training time of each network", flag_values=values)
        flags.DEFINE_string("out", "runs/history", "the folder of runs, table and picture", flag_values=values)
    elif command == "import":
        flags.DEFINE_enum(
            "param_dtype", "float32", ["float32", "bfloat16"], "type of the weights in the run", flag_values=values
        )
    elif command == "export":
        flags.DEFINE_string("to", None, "the folder to write", flag_values=values)
        flags.DEFINE_integer("step", None, "the checkpoint to use; the newest without", flag_values=values)
    elif command == "plan":
        flags.DEFINE_string("topology", None, "chips: v5e:4x4, v5p:4x4x8, h100:8, cpu:8", flag_values=values)
        flags.DEFINE_string("mesh", None, "axis sizes in place of the config's: fsdp=32,tensor=4", flag_values=values)
        flags.DEFINE_integer("slices", 1, "so many of the topology, joined by the network", flag_values=values)
        flags.DEFINE_float("tokens", 0.0, "a budget to train on, 1e12; 0: the config's steps", flag_values=values)
        flags.DEFINE_string("json", None, "also write the plan to this file", flag_values=values)
        flags.DEFINE_string("html", None, "also draw arrays, mesh and memory in this file", flag_values=values)
        flags.DEFINE_bool("search", False, "try meshes, remat and microbatches; plan the best", flag_values=values)
        flags.DEFINE_integer("search_compiles", 8, "layouts that a search compiles", flag_values=values)
    elif command == "plot":
        flags.DEFINE_string("out", "runs.png", "the picture to write", flag_values=values)
    return values


def _parse(command: str, values: Any, arguments: Sequence[str]) -> list[str]:
    """Parses, and says what is wrong in the words of the config."""
    try:
        path = config_path(arguments)
        arguments = [f"--config={path}" if a.startswith("--config=") else a for a in arguments]
        rest = values(["tessera", *arguments])[1:]
    except flags.IllegalFlagValueError as error:
        raise UsageError(wrong_type(str(error), path)) from error
    except AttributeError as error:  # from ml_collections: an unknown key, with the nearest name
        raise UsageError(unknown_key(str(error))) from error
    except (KeyError, TypeError) as error:
        if "Did you mean" in str(error):  # the same, of a section
            raise UsageError(unknown_key(str(error.args[0]))) from error
        raise UsageError(f"config: {error}") from error
    except (MemoryError, RecursionError) as error:  # from Python's parser of literals: it evaluates nothing
        raise UsageError("a value has brackets or signs nested too deep") from error
    if "config" in values and values.config is None:
        raise UsageError(f"which experiment? {_usage(command)[1]}")
    values.__dict__["config_file"] = path
    values.__dict__["given"] = [a[len("--config.") :].split("=")[0] for a in arguments if a.startswith("--config.")]
    return rest


def _joined(arguments: Sequence[str]) -> list[str]:
    """`--config FILE` as `--config=FILE`."""
    out: list[str] = []
    for argument in arguments:
        if out and out[-1] == "--config":
            out[-1] = f"--config={argument}"
        else:
            out.append(argument)
    return out


def _emulate(devices: int) -> None:
    """Before jax wakes up: as many CPU devices as asked for."""
    if devices:
        import jax

        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", devices)


def _exit_code(error: ValueError) -> int:
    from data.errors import DataError

    if isinstance(error, DataError) or type(error).__name__ in ("CheckpointError", "WeightsError"):
        return BAD_DATA
    return CONFIG


def _fail(error: BaseException, code: int) -> int:
    if os.environ.get("TESSERA_TRACEBACK"):
        traceback.print_exception(error)
    print(f"tessera: {'interrupted' if isinstance(error, KeyboardInterrupt) else error}", file=sys.stderr)
    return code


def _overview() -> str:
    return f"Tessera: language models in JAX and Flax\n\n{_listed(COMMANDS)}\n\ntessera COMMAND --help says more"


def _group_overview(group: str) -> str:
    usages = {name: _usage(f"{group} {name}") for name in GROUPS[group]}
    return f"tessera {group}: {COMMANDS[group][0]}\n\n{_listed(usages)}\n\n{COMMANDS[group][1]} says more"


def _listed(usages: Mapping[str, tuple[str, str]]) -> str:
    width = max(map(len, usages))
    return "\n".join(f"  {name:<{width}}  {what}\n  {'':<{width}}  {usage}" for name, (what, usage) in usages.items())


def _help(command: str, values: Any) -> str:
    what, usage = _usage(command)
    lines = [f"tessera {command}: {what}\n\n  {usage}\n"]
    for name in sorted(values):
        flag = values[name]
        lines.append(f"  --{name}={flag.default}\n      {flag.help}")
    if command in CONFIGURED:
        lines.append("  --config.KEY=VALUE\n      any leaf of the config; --print_config shows them all")
    return "\n".join(lines)
