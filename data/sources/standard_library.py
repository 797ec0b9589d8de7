"""Real text on every machine with no download: the installed Python standard library, its sources or docstrings."""

import ast
import inspect
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from data.sources.documents import Document
from data.sources.files import File, files_below

SOURCES = "python-stdlib"
DOCSTRINGS = "python-docstrings"
# Installed beside the standard library without being its source; `encodings` is tables of characters, not text.
_NOT_SOURCE = {"encodings", "site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}

_DEFINITION = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def library_files() -> list[File]:
    """The `.py` files of the installed standard library, sorted by name; without tests and character tables."""
    return files_below(Path(sysconfig.get_paths()["stdlib"]), (".py",), _NOT_SOURCE)


def library_sources(files: Iterable[File]) -> Iterator[Document]:
    """Each file as one document; empty files and those not in UTF-8 are left out."""
    for file in files:
        if text := _text(file):
            yield Document(file.id, text)


def library_docstrings(files: Iterable[File]) -> Iterator[Document]:
    """The docstrings of modules, classes and functions, in the order in which they are written.

    Their indentation is taken off (`inspect.cleandoc`). The id is file and name, "json/decoder.py:JSONDecoder.decode";
    the second docstring under one name, as of a property's setter, has "#2" after it. Files that this Python cannot
    parse, and docstrings of white space, are left out.
    """
    for file in files:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes, which are the library's own business
            try:
                module = ast.parse(_text(file))
            except (SyntaxError, ValueError):
                continue
        seen = Counter()
        for name, docstring in _docstrings(module, ""):
            if text := inspect.cleandoc(docstring):
                seen[name] += 1
                id = f"{file.id}:{name}" if name else file.id
                yield Document(id if seen[name] == 1 else f"{id}#{seen[name]}", text)


def _docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """Names and docstrings at and below a node, whose own name is `name`."""
    if isinstance(node, ast.Module | _DEFINITION) and (docstring := ast.get_docstring(node, clean=False)):
        yield name, docstring
    for child in ast.iter_child_nodes(node):
        own = f"{name}.{child.name}".lstrip(".") if isinstance(child, _DEFINITION) else name
        yield from _docstrings(child, own)


def _text(file: File) -> str:
    try:
        return Path(file.place).read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return ""  # a few sources declare another encoding
