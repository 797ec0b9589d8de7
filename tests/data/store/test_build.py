import json
import os
import re
import signal
import subprocess
import sys
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config import SourceConfig
from data.errors import DataError
from data.sources.documents import Document
from data.sources.read import look, read_documents
from data.split import HELD_OUT, TRAIN, is_held_out, split_tail
from data.store import build as build_module
from data.store.build import JOURNAL, build_stores
from data.store.store import open_store, verify_changed, verify_store
from data.store.survey import SourceChanged, survey_source
from data.store.writer import StoreWriter
from data.tokenizers.tokenizer import ByteTokenizer
from tests.data.conftest import REPOSITORY
from tests.data.tiny_builds import DOCUMENTS, build, surveyed

FILES = ["tokens.bin", "document_starts.bin", "document_ids.bin", "document_id_starts.bin", "document_scores.bin"]
FILES += ["manifest.json"]


class Counting(ByteTokenizer):
    """Remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def encode_batch(self, texts):
        self.batches.append(list(texts))
        return super().encode_batch(texts)


def content(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not file.name.endswith(".verified.json")
    }


def texts_of(store):
    bounds = zip(store.document_starts[:-1], store.document_starts[1:], strict=True)
    return [ByteTokenizer().decode(store.tokens[start:end]) for start, end in bounds]


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(build_module, "BATCH_CHARACTERS", 2000)


def test_both_sides_hold_their_documents_ids_and_scores(tmp_path, small_batches):
    tokenizer, lines = Counting(), []
    build(tmp_path / "s", tokenizer=tokenizer, report=lines.append)
    for side in (TRAIN, HELD_OUT):
        store = open_store(tmp_path / "s" / side)
        mine = [document for document in DOCUMENTS if is_held_out(document.text, 0.3) == (side == HELD_OUT)]
        assert texts_of(store) == [document.text for document in mine]
        assert [store.document_id(number) for number in range(len(mine))] == [document.id for document in mine]
        assert np.asarray(store.scores).tolist() == [document.score for document in mine]
        assert store.num_bytes == sum(len(document.text.encode()) for document in mine)
        assert store.manifest["source_fingerprint"] == surveyed(DOCUMENTS).fingerprint
        assert store.manifest["provenance"] == {"path": "P"} and store.manifest["split"] == side
        assert not verify_changed(store)  # the build did it
    assert len(tokenizer.batches) > 5 and list(chain(*tokenizer.batches)) == [document.text for document in DOCUMENTS]
    assert [entry.name for entry in tmp_path.iterdir()] == ["s"] and lines == []
    assert content(tmp_path / "s").keys() == set(f"{side}/{name}" for side in (TRAIN, HELD_OUT) for name in FILES)


def test_a_store_that_is_there_is_not_built_again(tmp_path):
    build(tmp_path / "s")
    tokenizer = Counting()
    build(tmp_path / "s", tokenizer=tokenizer)
    assert tokenizer.batches == []


class Killed(Exception):
    pass


def interrupt_at_journal(monkeypatch, number):
    """The `number`th journal (1, ...) is written, and then the process "dies"."""
    write, calls = build_module.write_file, []

    def dying(path, journal):
        write(path, journal)
        calls.append(path)
        if len(calls) == number:
            raise Killed

    monkeypatch.setattr(build_module, "write_file", dying)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.text(max_size=4), st.text(min_size=1, max_size=30)), min_size=2, max_size=12),
    st.integers(1, 900),
    st.integers(1, 5),
    st.sampled_from(["document", "tail"]),
)
def test_any_stop_leads_to_the_bytes_of_an_unbroken_build(tmp_path_factory, pairs, batch, stop, by):
    documents = [Document(name, text, 1.0) for name, text in pairs]
    cut = sum(len(document.text) for document in documents) // 2
    # By parity: a hash may put all of so few documents on one side.
    number = {id(document): at for at, document in enumerate(documents)}
    by_parity = lambda all: (((TRAIN, HELD_OUT)[number[id(one)] % 2], one) for one in all)  # noqa: E731
    split = by_parity if by == "document" else (lambda all: split_tail(all, cut))
    folder = tmp_path_factory.mktemp("build")
    build(folder / "unbroken", documents, split=split)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_module, "BATCH_CHARACTERS", batch)
        with pytest.MonkeyPatch.context() as killing:
            interrupt_at_journal(killing, stop)
            try:
                build(folder / "s", documents, split=split)
            except Killed:
                assert not (folder / "s").exists()
        build(folder / "s", documents, split=split)
    assert content(folder / "s") == content(folder / "unbroken")


DYING = """
import json, os, pathlib, signal, sys
from data.store import build
from data.store import writer as store_writer
from tests.data.tiny_builds import build as run

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def at_call(module, name, number, before=die, after=lambda: None):
    function, calls = getattr(module, name), []
    def called(*arguments, **named):
        calls.append(1)
        if len(calls) == number:
            before(*arguments)
        result = function(*arguments, **named)
        if len(calls) == number:
            after()
        return result
    setattr(module, name, called)

def half(file, content):
    file._file.write(content[: len(content) // 2])
    file._file.flush()
    die()

folder, moment, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
build.BATCH_CHARACTERS = 2000
if moment == "before a journal":
    at_call(build, "write_file", number)
if moment == "after a journal":
    at_call(build, "write_file", number, lambda *_: None, die)
if moment == "in a write":
    at_call(store_writer._GrowingFile, "append", number, half)
if moment == "at a manifest":
    at_call(store_writer, "write_file", number)
if moment == "before it has its name":
    at_call(build, "publish", number)
if moment == "after it has its name":
    at_call(build, "publish", number, lambda *_: None, die)
run(pathlib.Path(folder))
"""


@pytest.mark.parametrize(
    ("moment", "number", "again"),
    [
        ("before a journal", 1, 60),
        ("before a journal", 3, 44),
        ("after a journal", 1, 52),
        ("after a journal", 4, 28),
        ("in a write", 27, 44),
        ("at a manifest", 1, 0),
        ("at a manifest", 2, 0),
        ("before it has its name", 1, 0),
        ("after it has its name", 1, 0),
    ],
)
def test_a_killed_build_goes_on_after_its_last_batch(tmp_path, small_batches, moment, number, again):
    arguments = [sys.executable, "-c", DYING, str(tmp_path / "s"), moment, str(number)]
    died = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True, timeout=180, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert (tmp_path / "s").exists() == (moment == "after it has its name")
    tokenizer = Counting()
    build(tmp_path / "s", tokenizer=tokenizer)
    build(tmp_path / "unbroken")
    stores = {name: value for name, value in content(tmp_path / "s").items() if name != JOURNAL}
    assert stores == content(tmp_path / "unbroken")
    for side in (TRAIN, HELD_OUT):
        verify_store(open_store(tmp_path / "s" / side))
    assert sum(map(len, tokenizer.batches)) == again
    assert list(chain(*tokenizer.batches)) == [document.text for document in DOCUMENTS[60 - again :]]


def interrupted(tmp_path, monkeypatch, journals=3):
    """The working folder of a build that died."""
    with monkeypatch.context() as patch:
        interrupt_at_journal(patch, journals)
        with pytest.raises(Killed):
            build(tmp_path / "s")
    return tmp_path / ".s.building"


def test_a_build_that_stood_still_for_weeks_goes_on(tmp_path, small_batches, monkeypatch):
    work = interrupted(tmp_path, monkeypatch)
    other = tmp_path / ".other.building"
    other.mkdir()
    for entry in (work, other, tmp_path / ".s.lock"):
        os.utime(entry, (1, 1))
    tokenizer = Counting()
    build(tmp_path / "s", tokenizer=tokenizer)
    assert sum(map(len, tokenizer.batches)) == 36
    assert [entry.name for entry in tmp_path.iterdir()] == ["s"]  # of builds that nobody continues, nothing


def cut(file):
    file.write_bytes(file.read_bytes()[:-1])


def flip(file):
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 3] ^= 1
    file.write_bytes(whole)


def lengthen(file):
    file.write_bytes(file.read_bytes() + b"more" * 9999)


@pytest.mark.parametrize(
    ("name", "damage", "starts_over"),
    [
        (JOURNAL, cut, True),
        (JOURNAL, lambda file: file.write_bytes(b""), True),
        (JOURNAL, lambda file: file.write_bytes(b"[]"), True),
        (JOURNAL, lambda file: file.write_bytes(b'{"pieces": 7, "hashed": "x", "sides": {"train": 3}}'), True),
        (JOURNAL, lambda file: file.write_bytes(b"\xff\xfe"), True),
        ("train/tokens.bin", flip, True),
        ("train/tokens.bin", cut, True),
        ("held_out/document_ids.bin", flip, True),
        ("held_out/document_scores.bin", lambda file: file.unlink(), True),
        ("train/document_starts.bin", lengthen, False),  # what was written behind the last journal
    ],
)
def test_a_damaged_build_starts_over(tmp_path, small_batches, monkeypatch, name, damage, starts_over):
    work = interrupted(tmp_path, monkeypatch)
    damage(work / name)
    lines, tokenizer = [], Counting()
    build(tmp_path / "s", tokenizer=tokenizer, report=lines.append)
    build(tmp_path / "unbroken")
    assert content(tmp_path / "s") == content(tmp_path / "unbroken")
    assert ("is damaged" in lines[0] and "starting over" in lines[0]) == starts_over
    assert (sum(map(len, tokenizer.batches)) == 60) == starts_over


def test_a_build_without_a_journal_starts_over(tmp_path, small_batches, monkeypatch):
    (interrupted(tmp_path, monkeypatch) / JOURNAL).unlink()
    tokenizer = Counting()
    build(tmp_path / "s", tokenizer=tokenizer)
    assert sum(map(len, tokenizer.batches)) == 60


@pytest.mark.parametrize("at", [0, 20, 59])
def test_a_source_that_changed_in_between_is_refused(tmp_path, small_batches, monkeypatch, at):
    work = interrupted(tmp_path, monkeypatch)
    changed = list(DOCUMENTS)
    changed[at] = Document(changed[at].id, changed[at].text + "!", changed[at].score)
    tokenizer = Counting()
    with pytest.raises(SourceChanged, match="P changed while it was read: run again"):
        build(tmp_path / "s", changed, surveyed(DOCUMENTS), tokenizer=tokenizer)
    assert bool(tokenizer.batches) == (at > 20)  # seen before anything is tokenised, where it was read before
    assert not work.exists() and not (tmp_path / "s").exists()


@pytest.mark.parametrize("documents", [DOCUMENTS[:-1], [*DOCUMENTS, DOCUMENTS[0]], DOCUMENTS[:3]])
def test_a_source_that_is_not_the_surveyed_one_is_refused(tmp_path, small_batches, monkeypatch, documents):
    interrupted(tmp_path, monkeypatch)
    with pytest.raises(SourceChanged):
        build(tmp_path / "s", documents, surveyed(DOCUMENTS))


def test_an_error_of_the_source_keeps_what_is_done(tmp_path, small_batches):
    def broken():
        yield from DOCUMENTS[:40]
        raise DataError("line 41")

    with pytest.raises(DataError, match="line 41"):
        build(tmp_path / "s", broken(), surveyed(DOCUMENTS))
    tokenizer = Counting()
    build(tmp_path / "s", tokenizer=tokenizer)
    assert 0 < sum(map(len, tokenizer.batches)) < 40


@pytest.mark.parametrize("at", ["n0", "n59"])
def test_an_error_of_the_disk_is_not_lost(tmp_path, small_batches, monkeypatch, at):
    append = StoreWriter.append

    def full(writer, encoded, ids, *rest):
        if at in ids:
            raise OSError(28, "No space left on device")
        append(writer, encoded, ids, *rest)

    monkeypatch.setattr(StoreWriter, "append", full)
    with pytest.raises(OSError, match="No space left"):
        build(tmp_path / "s")


def test_batches_are_bounded_by_text_and_by_documents(tmp_path, monkeypatch):
    monkeypatch.setattr(build_module, "BATCH_CHARACTERS", 10_000)
    huge = Document("huge", "x" * 300_000, 0.0)
    documents = [
        *(Document(str(n), "y", 0.0) for n in range(100)),
        huge,
        *(Document("z", "z" * n, 0.0) for n in range(1, 9)),
    ]
    tokenizer = Counting()
    build(tmp_path / "s", documents, tokenizer=tokenizer, split=lambda all: split_tail(all, 99))
    sizes = [len(batch) for batch in tokenizer.batches]
    assert sizes == [40, 40, 21, 8]  # 251 characters each; the huge one closes its batch
    assert len(texts_of(open_store(tmp_path / "s" / HELD_OUT))[1]) == 300_000


def test_a_line_of_ten_megabytes_is_a_document(tmp_path):
    texts = ["short", "ü" * 5_000_000, "also short"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts))
    source = SourceConfig(str(tmp_path / "a.jsonl"))
    survey = survey_source(source, look(source), tmp_path / "cache", lambda _: None)
    split = lambda all: split_tail(all, survey.num_characters - 4)  # noqa: E731
    build_stores(
        tmp_path / "s",
        lambda: read_documents(source),
        split,
        ByteTokenizer(),
        survey,
        name="P",
        provenance={},
        has_scores=False,
        report=print,
    )
    store = open_store(tmp_path / "s" / TRAIN)
    assert np.diff(store.document_starts).tolist() == [6, 10_000_001, 7] and store.scores is None
    assert (store.tokens[6:10_000_006:2] == 0xC3).all()


def test_progress_tells_documents_megabytes_speed_and_the_rest(tmp_path, small_batches, monkeypatch):
    interrupted(tmp_path, monkeypatch)
    monkeypatch.setattr(build_module, "_SECONDS", -1)
    lines = []
    build(tmp_path / "s", report=lines.append)
    assert re.fullmatch(r"data: P: going on after 24 documents, 0 MB", lines[0])
    form = r"data: P: ([\d,]+) of 60 documents, 0 of 0 MB, [\d,]+ tokens/s, \d+\.\d min left"
    assert [int(re.findall(form, line)[0]) for line in lines[1:]] == [32, 40, 48, 56, 60]


MILLION = """
import pathlib, sys
from data.corpus import prepare
from configs import defaults
from data.config import DataConfig
from tests.peak import peak_memory
folder = pathlib.Path(sys.argv[1])
changes = {'path': str(folder / 'a.jsonl'), 'cache_dir': str(folder / 'cache'), 'tokenizer': 'byte'}
corpus = prepare(DataConfig(**dict(defaults.get_config().data) | changes), print)
assert corpus.train.num_documents + corpus.held_out.num_documents == 1_000_000
print(peak_memory())
"""


@pytest.mark.slow
def test_a_million_documents_fit_in_two_gigabytes(tmp_path):
    with open(tmp_path / "a.jsonl", "w") as out:
        for number in range(1_000_000):
            out.write(f'{{"id": "document-{number}", "text": "the text of document {number}"}}\n')
    arguments = [sys.executable, "-c", MILLION, str(tmp_path)]
    done = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) < 2048
