"""Tasks without a download: functions of the installed standard library, to summarise, to tag, to tell apart."""

import ast
import io
import keyword
import textwrap
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from inspect import cleandoc
from itertools import accumulate
from pathlib import Path

from data.config import SourceConfig
from data.errors import DataError
from data.sources.read import read_documents
from data.split import HELD_OUT, TRAIN, is_held_out
from data.tasks.examples import Labelled, Tagged, TextPair
from data.tasks.task import Task

HELD_OUT_FRACTION = 0.1
NUM_MODULES = 20  # that guess_module tells apart
TAGS = ("COMMENT", "KEYWORD", "NAME", "NUMBER", "OP", "STRING")

Repairs = Counter[str] | None


@dataclass(frozen=True)
class Function:
    """A function or method that is not within another: its source, moved to the left edge."""

    place: str  # file below the library, and line
    source: str
    docstring: str  # cleaned; "": it has none of its own lines
    undocumented: str  # the source without the lines of the docstring; "": nothing else is there

    @property
    def module(self) -> str:
        return self.place.split(":")[0].removesuffix(".py").split("/")[0]


def read_docstrings(split: str | Path, _: Repairs) -> Iterator[TextPair]:
    """Functions without their docstring, and its first line. `split`: "train" or "held_out", by a hash."""
    for function in _side(split):
        if function.docstring and function.undocumented:
            yield TextPair(function.place, function.undocumented, function.docstring.split("\n")[0])


def read_tokens(split: str | Path, _: Repairs) -> Iterator[Tagged]:
    """Functions with the kinds of their tokens, as `tokenize` tells them; a soft keyword is a NAME."""
    for function in _side(split):
        starts = [0, *accumulate(map(len, _lines(function.source)))]
        spans, tags = [], []
        for token in tokenize.generate_tokens(iter(_lines(function.source)).__next__):
            tag = "KEYWORD" if keyword.iskeyword(token.string) else tokenize.tok_name[token.type]
            tag = "STRING" if tag.startswith("FSTRING") else tag
            (row, column), (last_row, last_column) = token.start, token.end
            if tag in TAGS and token.string:
                spans.append((starts[row - 1] + column, starts[last_row - 1] + last_column))
                tags.append(tag)
        yield Tagged(function.place, function.source, tuple(spans), tuple(tags))


def read_modules(split: str | Path, _: Repairs) -> Iterator[Labelled]:
    """Functions of the NUM_MODULES top-level modules that have most of them, and which module each is of."""
    counts = Counter(function.module for function in _functions())
    modules = sorted(counts, key=lambda name: (-counts[name], name))[:NUM_MODULES]
    for function in _side(split):
        if function.module in modules:
            yield Labelled(function.place, function.source, function.module)


def _side(split: str | Path) -> Iterator[Function]:
    if split not in (TRAIN, HELD_OUT):
        raise DataError(f"{str(split)!r} is no part of the standard library's functions: use {TRAIN!r} or {HELD_OUT!r}")
    held_out = split == HELD_OUT
    # Functions that differ in their docstring alone are on one side, else an answer could be learned by heart.
    return (f for f in _functions() if is_held_out(f.undocumented or f.source, HELD_OUT_FRACTION) == held_out)


@cache
def _functions() -> tuple[Function, ...]:
    """Each function once, by its source, in the order of the files.

    Not those in which a string or a continued line starts left of the function: moved, they would not be Python.
    """
    found: dict[str, Function] = {}
    for document in read_documents(SourceConfig("python-stdlib")):
        source_lines = _lines(document.text)
        for node in _outermost(ast.parse(document.text)):
            function = _function(f"{document.id}:{node.lineno}", node, source_lines)
            if not function.source[0].isspace():
                found.setdefault(function.source, function)
    return tuple(found.values())


def _outermost(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        else:
            yield from _outermost(node)


def _function(place: str, node: ast.FunctionDef | ast.AsyncFunctionDef, source_lines: list[str]) -> Function:
    kept = source_lines[node.lineno - 1 : node.end_lineno]
    source, docstring = textwrap.dedent("".join(kept)), cleandoc(ast.get_docstring(node) or "")
    first, last = node.body[0].lineno - node.lineno, (node.body[0].end_lineno or 0) - node.lineno
    own_lines = first > 0 and len(node.body) > 1 and node.body[1].lineno - node.lineno > last
    undocumented = textwrap.dedent("".join([*kept[:first], *kept[last + 1 :]])) if docstring and own_lines else ""
    return Function(place, source, docstring, undocumented)


def _lines(text: str) -> list[str]:
    """The lines as Python counts them, each with "\\n"; `splitlines` would also cut at a form feed."""
    return io.StringIO(text, newline=None).readlines()


_CODE_PROMPT = "{text}\nThe module of this function:\n"

STANDARD_LIBRARY_TASKS = (
    Task(
        "summarise_docstring",
        "text_to_text",
        read_docstrings,
        "rouge",
        "summarize code: {source}",
        "{source}\nWhat this function does:\n",
    ),
    Task("tag_tokens", "tagging", read_tokens, "macro_f1", "tag: {text}", "{text}\nThe kinds of its tokens:\n", TAGS),
    Task("guess_module", "classification", read_modules, "macro_f1", "module of: {text}", _CODE_PROMPT),
)
