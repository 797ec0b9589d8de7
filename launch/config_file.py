"""The config file of a command: found, explained, and what is wrong with its values in the words of a person."""

import difflib
import re
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class UsageError(ValueError):
    """A command line that cannot be understood."""


def config_path(arguments: Sequence[str]) -> str | None:
    """The config file, as given or among the configs that come with Tessera."""
    given = [a.split("=", 1)[1] for a in arguments if a.startswith("--config=")]
    if not given:
        return None
    path = Path(given[-1]).expanduser()
    shipped = Path(__file__).resolve().parent.parent / "configs"
    for candidate in (path, shipped / path.name, shipped / f"{path.name}.py"):
        if candidate.is_file():
            return str(candidate)
    names = sorted(p.stem for p in shipped.glob("*.py") if p.stem not in ("__init__", "defaults"))
    near = difflib.get_close_matches(path.stem, names, n=1)
    hint = f"did you mean configs/{near[0]}.py?" if near else f"there are {', '.join(names)}"
    raise UsageError(f"no config file {path} (tried {path.absolute()}): {hint}")


def explain_config(config: Any, path: str, given: Sequence[str]) -> str:
    """Every leaf with its value and its source."""
    from configs import defaults
    from launch.leaves import flat

    base, lines = flat(defaults.get_config()), []
    for name, value in flat(config).items():
        source = "command line" if name in given else ("defaults" if base.get(name) == value else path)
        lines.append(f"{name:<32} {value!r:<32} {source}")
    return "\n".join(lines)


def unknown_key(message: str) -> str:
    """ml_collections' "Did you mean …" in one line."""
    near = re.search(r'Did you mean "([^"]+)" instead of "([^"]+)"', message)
    if near:
        return f"unknown config key {near[2]!r}: did you mean {near[1]!r}? (--print_config shows all)"
    return f"unknown config key: {message} (--print_config shows all)"


def wrong_type(message: str, path: str | None) -> str:
    """`flag --config.train.steps=x: invalid literal …` in terms of the leaf: its name, the value, what it must be."""
    found = re.match(r"flag --config\.([\w.]+)=(.*?): ", message, re.DOTALL)
    if not found or path is None:
        return message.removeprefix("flag ")
    node = runpy.run_path(path)["get_config"]()
    for part in found[1].split("."):
        kind = node.get_type(part)
        node = node[part]
    return f"config.{found[1]}={found[2]!r}: it must be {_kind(kind)}, as {node!r} is"


def _kind(kind: type) -> str:
    return {int: "an int", float: "a float", bool: "true or false", tuple: "a tuple"}.get(kind, f"a {kind.__name__}")
