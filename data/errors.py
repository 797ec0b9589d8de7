"""What a reader of data says when it cannot go on: always with numbers and the way out."""

import difflib
from collections.abc import Iterable
from pathlib import Path


class DataError(ValueError):
    """Data that is missing, malformed, too short, or not what it says it is."""


def nearest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """A hint for a name that is unknown: the nearest of the `known`, or else `otherwise` (by default, all of them)."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else otherwise or f"there are {', '.join(known)}"


def missing_path(what: str, path: str, known: tuple[str, ...] = ()) -> DataError:
    """The error for a path that does not exist: names the absolute path tried and the nearest name beside it.

    `known` are names that would have been accepted in place of a path.
    """
    tried = Path(path).expanduser().absolute()
    # Climb to the part of the path that exists: the typing error sits right below it.
    missing, parent = tried, tried.parent
    while not parent.is_dir() and parent != parent.parent:
        missing, parent = parent, parent.parent
    beside = {entry.name: str(entry) for entry in parent.iterdir()} if parent.is_dir() else {}
    names = {**beside, **{name: name for name in known}}
    near = difflib.get_close_matches(missing.name, names, n=1) or difflib.get_close_matches(path, names, n=1)
    if near:
        hint = f"did you mean {names[near[0]]!r}?"
    elif known:
        hint = f"give an existing path or one of {', '.join(map(repr, known))}"
    else:
        hint = f"nothing in {parent} has a similar name"
    return DataError(f"{what} {path!r} does not exist (tried {tried}): {hint}")
