import inspect
import json

from data.config import SourceConfig
from data.sources.documents import Document
from data.sources.files import find_files
from data.sources.read import read_documents
from data.sources.standard_library import library_docstrings, library_files, library_sources


def written(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return find_files(str(folder), ())


def test_sources_are_real_text_in_sorted_order():
    documents = list(read_documents(SourceConfig("python-stdlib")))
    ids = [document.id for document in documents]
    assert ids == sorted(ids) and len(ids) == len(set(ids))
    assert len(ids) > 400 and sum(len(document.text) for document in documents) > 5_000_000
    assert {"json/decoder.py", "pydoc_data/topics.py", "tokenize.py"} <= set(ids)
    assert not [id for id in ids if {"site-packages", "test", "tests", "__pycache__"} & set(id.split("/"))]
    assert all(document.text for document in documents)


def test_files_leave_out_what_their_definition_says(tmp_path, monkeypatch):
    names = ("b.py", "a/z.py", "test/t.py", "a/tests/t.py", "site-packages/s.py", ".hidden/h.py", "a/notes.txt")
    written(tmp_path, {name: "x" for name in names})
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    assert [file.id for file in library_files()] == ["a/z.py", "b.py"]


def test_sources_leave_out_empty_files_and_other_encodings(tmp_path):
    files = written(tmp_path, {"a.py": "é = 1", "c.py": b"# -*- coding: latin-1 -*-\n# \xe9"})
    (tmp_path / "a.py").with_name("b.py").touch()
    assert list(library_sources(files)) == [Document("a.py", "é = 1")]


CODE = '''"""The module.

    Indented.
"""

if True:
    class Outer:
        """A class."""
        x = 1

        class Inner:
            def method(self):
                """Of the inner one."""

        @property
        def size(self):
            """First."""

        @size.setter
        def size(self, value):
            """Second."""

        async def wait(self):
            "One \\
line."


def plain():
    """"""

    def nested():
        """Nested."""


def spaces():
    """   """
    """not one"""


def bytes_are_none():
    b"""no"""
'''


def test_docstrings_have_qualified_names_and_come_in_order(tmp_path):
    assert list(library_docstrings(written(tmp_path, {"m/a.py": CODE}))) == [
        Document("m/a.py", "The module.\n\nIndented."),
        Document("m/a.py:Outer", "A class."),
        Document("m/a.py:Outer.Inner.method", "Of the inner one."),
        Document("m/a.py:Outer.size", "First."),
        Document("m/a.py:Outer.size#2", "Second."),
        Document("m/a.py:Outer.wait", "One line."),
        Document("m/a.py:plain.nested", "Nested."),
    ]


def test_docstrings_skip_files_that_do_not_parse_and_warn_of_nothing(tmp_path, recwarn):
    files = written(
        tmp_path, {"a.py": '"""A\\d."""', "b.py": "def", "c.py": b"\xff", "d.py": '"""D."""', "e.py": b"\0"}
    )
    assert list(library_docstrings(files)) == [Document("a.py", "A\\d."), Document("d.py", "D.")]
    assert not recwarn.list


def test_docstrings_of_the_installed_library_are_those_that_python_shows():
    files = [file for file in library_files() if file.id in ("json/decoder.py", "textwrap.py")]
    documents = {document.id: document.text for document in library_docstrings(files)}
    assert documents["json/decoder.py:JSONDecoder.decode"] == inspect.getdoc(json.JSONDecoder.decode)
    assert documents["textwrap.py"].startswith("Text wrapping and filling")
