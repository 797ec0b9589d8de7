import ast
import io
import itertools
import keyword
import tokenize

import pytest

from data.errors import DataError
from data.sources.read import Document
from data.tasks import standard_library
from data.tasks.tasks import TASKS

DOCUMENT = '''"""Module."""
\x0c
import os


class Sum:
    @property
    def value(self):
        """The sum
        of all.

        Slowly.
        """

        def inner():
            pass

        return 5 if self else "five"  # or so


def one_line(x): "doc"; return x


def only_doc():
    """Nothing else."""


async def plain():
    return 0x1F
'''


@pytest.fixture
def document(monkeypatch):
    """The standard library is one file, all of it for training."""
    text = Document("pkg/sums.py", DOCUMENT)
    monkeypatch.setattr(standard_library, "read_documents", lambda source: iter([text]))
    monkeypatch.setattr(standard_library, "is_held_out", lambda source, fraction: False)
    standard_library._functions.cache_clear()
    yield
    standard_library._functions.cache_clear()


def test_functions_lose_their_docstring_whose_first_line_is_the_summary(document):
    (example,) = TASKS["summarise_docstring"].read("train")
    assert example.place == "pkg/sums.py:8"
    assert example.target == "The sum"
    code = 'def value(self):\n\n    def inner():\n        pass\n\n    return 5 if self else "five"  # or so\n'
    assert example.source == code


def test_tokens_have_the_kinds_of_tokenize(document):
    examples = TASKS["tag_tokens"].read("train")
    assert [example.place.split(":")[1] for example in examples] == ["8", "21", "24", "28"]
    last = examples[-1]
    assert list(zip(last.tokens, last.tags, strict=True)) == [
        *[("async", "KEYWORD"), ("def", "KEYWORD"), ("plain", "NAME"), ("(", "OP"), (")", "OP"), (":", "OP")],
        *[("return", "KEYWORD"), ("0x1F", "NUMBER")],
    ]
    assert {"STRING", "COMMENT"} <= set(examples[0].tags)


def test_modules_are_the_top_level_ones(document):
    assert [example.label for example in TASKS["guess_module"].read("train")] == ["pkg"] * 4


def test_the_installed_library_is_split_by_hash_and_agrees_with_the_parser():
    with pytest.raises(DataError, match="'test' is no part of .*: use 'train' or 'held_out'"):
        TASKS["tag_tokens"].read("test")
    sides = [TASKS["summarise_docstring"].read(split) for split in ("train", "held_out")]
    sources = [{example.source for example in side} for side in sides]
    assert len(sides[0]) > 3000 and not sources[0] & sources[1]
    assert 0.07 < len(sides[1]) / (len(sides[0]) + len(sides[1])) < 0.13
    for example in sides[1]:
        assert not ast.get_docstring(ast.parse(example.source).body[0]) and "\n" not in example.target
    for example in itertools.islice(TASKS["tag_tokens"].reader("held_out", None), 200):
        tokens = list(zip(example.tokens, example.tags, strict=True))
        assert all(keyword.iskeyword(token) == (tag == "KEYWORD") for token, tag in tokens)
        words = [t for t in tokenize.generate_tokens(io.StringIO(example.text).readline) if t.type == tokenize.NAME]
        assert [token for token, tag in tokens if tag in ("NAME", "KEYWORD")] == [word.string for word in words]
    modules = [{example.label for example in TASKS["guess_module"].read(split)} for split in ("train", "held_out")]
    assert modules[0] == modules[1] and len(modules[0]) == 20
