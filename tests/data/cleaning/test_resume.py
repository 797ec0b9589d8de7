"""A cleaning that is stopped goes on to the same bytes; one that cannot go on says why."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from data.cleaning import pipeline
from data.cleaning.c4 import C4
from data.cleaning.language import Language
from data.cleaning.pipeline import clean, read_report
from data.cleaning.settings import CleanConfig
from data.cleaning.unicode import Unicode
from data.config import SourceConfig
from data.errors import DataError
from tests.data.cleaning.corpora import Least, applied, corpus, numbers, source, tree, write_corpus
from tests.data.conftest import REPOSITORY


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    """The folder of the corpus, with what an unbroken run makes of it in out/."""
    pytest.importorskip("datasketch")
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    sources, settings = corpus(folder)
    report = clean(sources, folder / "out", settings)
    steps = {step.name: step.dropped for step in report.total.steps}
    assert min(steps.values()) > 0 and report.total.documents_out > 50, steps
    return folder


def test_two_workers_write_the_same_bytes_as_one(unbroken, tmp_path):
    sources, settings = corpus(unbroken)
    clean(sources, tmp_path / "out", settings, workers=2)
    assert tree(tmp_path / "out") == tree(unbroken / "out")
    assert numbers(tmp_path / "out") == numbers(unbroken / "out")


KILLED = """
import multiprocessing, os, signal, sys
from pathlib import Path
from data.cleaning.pipeline import clean
from tests.data.cleaning.corpora import corpus

def report(progress):
    global left
    left -= progress.stage == sys.argv[3]
    if not left:
        Path(sys.argv[2] + ".workers").write_text(" ".join(str(p.pid) for p in multiprocessing.active_children()))
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    left = int(sys.argv[4])
    sources, settings = corpus(Path(sys.argv[1]))
    clean(sources, sys.argv[2], settings, report, workers=int(sys.argv[5]))
"""


def killed(folder: Path, out: Path, stage: str, call: int, workers: int) -> list[int]:
    """Runs until SIGKILL in the report of a stage; the ids of its worker processes."""
    (out.parent / "run.py").write_text(KILLED)
    command = [sys.executable, out.parent / "run.py", folder, out, stage, str(call), str(workers)]
    errors = out.parent / "stderr"  # no pipe: a worker that stays would hold it open
    with open(errors, "w") as stderr:
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, stderr=stderr)
    assert done.returncode == -signal.SIGKILL, errors.read_text()
    assert not (out / "manifest.json").exists()
    return [int(pid) for pid in Path(f"{out}.workers").read_text().split()]


@pytest.mark.parametrize(
    ("stage", "call"), [("rules", 1), ("rules", 4), ("duplicates", 1), ("final", 1), ("final", 3), ("publish", 3)]
)
def test_a_killed_run_goes_on_to_the_same_bytes(unbroken, tmp_path, stage, call):
    killed(unbroken, tmp_path / "out", stage, call, workers=1)
    sources, settings = corpus(unbroken)
    clean(sources, tmp_path / "out", settings)
    assert tree(tmp_path / "out") == tree(unbroken / "out")
    assert numbers(tmp_path / "out") == numbers(unbroken / "out")


def test_a_killed_run_leaves_no_process_behind(unbroken, tmp_path):
    workers = killed(unbroken, tmp_path / "out", "rules", 2, workers=2)
    assert len(workers) == 2
    until = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in workers):
        assert time.monotonic() < until, f"{workers} still live"
        time.sleep(0.05)
    sources, settings = corpus(unbroken)
    clean(sources, tmp_path / "out", settings, workers=2)
    assert tree(tmp_path / "out") == tree(unbroken / "out")


class Stopped(Exception):
    pass


def stop_in(stage: str, call: int):
    """A report that raises at the so many-th call of a stage."""
    calls = []

    def report(progress):
        calls.append(progress.stage)
        if calls.count(stage) == call:
            raise Stopped

    return report


@pytest.fixture
def begun(tmp_path):
    """Sources and settings of a cleaning that was stopped after 4 of 10 documents, in tmp_path/out."""
    given = source(tmp_path / "in.jsonl", [f"document number {number}" for number in range(10)])
    settings = CleanConfig(rules=(Least(),), chunk_documents=2)
    with pytest.raises(Stopped):
        clean([given], tmp_path / "out", settings, stop_in("rules", 3))
    applied.clear()
    return [given], settings


def test_finished_chunks_are_not_cleaned_again(begun, tmp_path):
    report = clean(begun[0], tmp_path / "out", begun[1])
    assert applied == [f"document number {number}" for number in range(4, 10)]
    assert report.total.documents_out == 10
    assert clean(begun[0], tmp_path / "out", begun[1]) == report
    assert len(applied) == 6


def test_read_sources_are_not_read_again(begun, tmp_path, monkeypatch):
    with pytest.raises(Stopped):
        clean(begun[0], tmp_path / "out", begun[1], stop_in("duplicates", 1))
    monkeypatch.setattr("data.cleaning.chunks.read_documents", None)
    assert clean(begun[0], tmp_path / "out", begun[1]).total.documents_out == 10


def test_other_settings_on_the_same_folder_are_refused_with_the_differences(begun, tmp_path):
    sources, settings = begun
    other = CleanConfig(rules=(Least(12),), chunk_documents=2, near_duplicates=0.8)
    for _ in range(2):  # begun, then finished
        with pytest.raises(DataError) as refused:
            clean(sources, tmp_path / "out", other)
        first, *differences = str(refused.value).splitlines()
        assert "out holds another cleaning" in first
        assert sorted(differences) == [
            f"  datasketch: None there, {metadata.version('datasketch')!r} asked for",
            "  near_duplicates: 0.0 there, 0.8 asked for",
            "  rules.least.length: 10 there, 12 asked for",
        ]
        with pytest.raises(DataError, match=r"sources\[1\].path: None there, 'other.txt' asked for"):
            clean_with(sources, "other.txt", tmp_path, settings)
        clean(sources, tmp_path / "out", settings)


def clean_with(sources: list[SourceConfig], other: str, tmp_path: Path, settings: CleanConfig):
    (tmp_path / other).write_text("text")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        clean([*sources, SourceConfig(other)], tmp_path / "out", settings)


def test_a_source_that_changes_is_refused(begun, tmp_path, monkeypatch):
    source(tmp_path / "in.jsonl", [f"document Number {number}" for number in range(10)])
    with pytest.raises(DataError, match=r"the source \S*in.jsonl has changed since \S*out was begun: use a new"):
        clean(begun[0], tmp_path / "out", begun[1])
    # A source without a stamp is known by its text.
    monkeypatch.setattr(pipeline, "stamp", lambda given: None)
    with pytest.raises(Stopped):
        clean(begun[0], tmp_path / "new", begun[1], stop_in("rules", 3))
    source(tmp_path / "in.jsonl", [f"document number {number}" for number in range(10)])
    with pytest.raises(DataError, match=r"in.jsonl has changed since .*new was begun"):
        clean(begun[0], tmp_path / "new", begun[1])


def test_another_list_of_bad_words_is_another_cleaning(begun, tmp_path):
    (tmp_path / "bad.txt").write_text("number")
    settings = CleanConfig(rules=(C4(bad_words=str(tmp_path / "bad.txt")), Least()), chunk_documents=2)
    with pytest.raises(Stopped):
        clean(begun[0], tmp_path / "new", settings, stop_in("rules", 3))
    (tmp_path / "bad.txt").write_text("document")
    with pytest.raises(DataError, match="rules.c4.state.bad_words: "):
        clean(begun[0], tmp_path / "new", settings)


@pytest.mark.parametrize(
    ("package", "field"),
    [
        ("ftfy", "rules.unicode.state.ftfy"),
        ("lingua-language-detector", "rules.language.state.lingua"),
        ("datasketch", "datasketch"),
    ],
)
def test_another_version_of_a_package_is_another_cleaning(begun, tmp_path, monkeypatch, package, field):
    for needed in ("ftfy", "lingua", "datasketch"):
        pytest.importorskip(needed)
    settings = CleanConfig(rules=(Unicode(), Language()), near_duplicates=0.8, chunk_documents=2)
    with pytest.raises(Stopped):
        clean(begun[0], tmp_path / "new", settings, stop_in("rules", 3))
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "99" if name == package else real(name))
    with pytest.raises(DataError, match=f"{field}: '{real(package)}' there, '99' asked for"):
        clean(begun[0], tmp_path / "new", settings)


@pytest.mark.parametrize("manifest", ['{"tokenizer": "bytes", "settings": {}}', "[]", "not JSON"])
def test_the_folder_of_something_else_is_refused(tmp_path, manifest):
    given = source(tmp_path / "in.jsonl", ["one text"])
    (tmp_path / "store").mkdir()
    (tmp_path / "store/manifest.json").write_text(manifest)
    with pytest.raises(DataError, match="store is not empty and holds no cleaning"):
        clean([given], tmp_path / "store")
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("pattern", ["**/*.jsonl*", "*/documents/*", "*/*.json", "out/**", "**/*.zst", "**"])
def test_a_glob_that_would_read_the_output_is_refused(tmp_path, monkeypatch, pattern):
    source(tmp_path / "in.jsonl", ["one text"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"out is inside .*, which is read: use a folder beside it"):
        clean([SourceConfig(pattern)], "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pattern", ["*.jsonl", "**/*.jsonl", "sub/**/*.jsonl*", "./*.jsonl"])
def test_a_glob_that_leaves_the_output_alone_is_read(tmp_path, monkeypatch, pattern):
    (tmp_path / "sub").mkdir()
    source(tmp_path / "in.jsonl", ["one text"])
    source(tmp_path / "sub/in.jsonl", ["one text"])
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert clean([SourceConfig(pattern)], "out").total.documents_out == 1


def test_folders_that_cannot_be_used_are_refused(tmp_path):
    given = source(tmp_path / "in.jsonl", ["one text"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("mine")
    with pytest.raises(DataError, match="full is not empty and holds no cleaning"):
        clean([given], tmp_path / "full")
    with pytest.raises(DataError, match=r"out is inside .*, which is read"):
        clean([SourceConfig(str(tmp_path))], tmp_path / "out")
    with pytest.raises(DataError, match="no source"):
        clean([], tmp_path / "out")
    with pytest.raises(DataError, match="holds no finished cleaning"):
        read_report(tmp_path)
    assert (tmp_path / "full/thesis.tex").read_text() == "mine" and not (tmp_path / "out").exists()


@pytest.mark.parametrize("held", [fcntl.LOCK_EX, fcntl.LOCK_SH])  # by a run of one process, by a task of a cluster
def test_two_runs_do_not_share_a_folder(begun, tmp_path, held):
    with open(tmp_path / "out/.work/lock", "w") as lock:
        fcntl.flock(lock, held)
        with pytest.raises(DataError, match="another process is cleaning into"):
            clean(begun[0], tmp_path / "out", begun[1])
    assert clean(begun[0], tmp_path / "out", begun[1]).total.documents_out == 10
