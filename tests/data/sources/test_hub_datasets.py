"""Hugging Face datasets: what is asked of the package `datasets`, and what is said when it cannot deliver."""

import os
import sys
from types import SimpleNamespace

import pytest

from data.config import SourceConfig
from data.errors import DataError
from data.sources.documents import Document
from data.sources.hub_datasets import revision
from data.sources.read import look, read_documents
from data.sources.remote import Unreachable


class Rows:
    """Stands in for a streamed dataset; an exception among its rows is raised where it stands."""

    def __init__(self, rows, columns=None):
        self.rows, self.column_names, self.selected = rows, columns, None

    def select_columns(self, columns):
        self.selected = columns
        return self

    def __iter__(self):
        for row in self.rows:
            if isinstance(row, Exception):
                raise row
            yield row


@pytest.fixture
def hub(monkeypatch):
    """A function that puts a stand-in for the package in place; it returns the list of calls that it gets."""

    def serve(answer):
        calls = []

        def load_dataset(*arguments, **options):
            calls.append((arguments, options))
            if isinstance(answer, Exception):
                raise answer
            return answer

        api = SimpleNamespace(dataset_info=lambda name: SimpleNamespace(sha=f"commit of {name}"))
        monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=lambda: api))
        monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
        return calls

    return serve


def read(path, **options):
    return list(read_documents(SourceConfig(path, **options)))


def refuses(path, *words, **options):
    with pytest.raises(DataError) as error:
        read(path, **options)
    for word in words:
        assert word in str(error.value), f"{word!r} is not in: {error.value}"


@pytest.mark.parametrize(
    ("path", "config"), [("hf:some.one/a-set_2", None), ("hf:some.one/a-set_2:20231101.zh", "20231101.zh")]
)
def test_dataset_is_streamed_without_its_code(hub, path, config):
    calls = hub(Rows([{"text": "你好", "id": 3}, {"text": "b", "id": None}, {"text": "c"}]))
    documents = read(path, dataset_split="validation")
    assert documents == [Document("3", "你好"), Document("validation:2", "b"), Document("validation:3", "c")]
    options = {"split": "validation", "revision": "commit of some.one/a-set_2", "streaming": True}
    assert calls == [(("some.one/a-set_2", config), options)]


def test_only_columns_that_are_read_are_asked_for(hub):
    rows = Rows([{"body": "a", "stars": 4.5}], ["image", "body", "id", "stars"])
    hub(rows)
    assert read("hf:owner/name", text_field="body", score_field="stars") == [Document("train:1", "a", 4.5)]
    assert rows.selected == ["body", "id", "stars"]


def test_missing_field_lists_those_there(hub):
    hub(Rows([{"body": "a", "title": "b"}], ["body", "title"]))
    refuses("hf:owner/name", "hf:owner/name, split train, row 1", "no field 'text'", "'body', 'title'")


@pytest.mark.parametrize("path", ["hf:name", "hf:", "hf:a/b/c", "hf:owner/name:", "hf:../name/x"])
def test_name_of_another_form_is_refused(hub, path):
    hub(Rows([]))
    refuses(path, repr(path), "hf:OWNER/NAME:CONFIG")


def test_folder_that_would_be_read_instead_is_refused(hub, tmp_path, monkeypatch):
    hub(Rows([{"text": "a"}]))
    monkeypatch.chdir(tmp_path)
    os.makedirs("owner/name")
    refuses("hf:owner/name", str(tmp_path / "owner" / "name"), "give 'owner/name' as data.path")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (ConnectionError("Couldn't reach the Hub (OfflineModeIsEnabled)"), ["OfflineModeIsEnabled", "hf download"]),
        (FileNotFoundError("no such dataset"), ["no such dataset", "if the name is right"]),
        (ValueError("Bad split: train. Available splits: ['test']"), ["['test']", "set data.dataset_split"]),
        (Rows([{"text": "a"}, TimeoutError("timed out")]), ["TimeoutError: timed out", "hf download"]),
        (Rows([]), ["has no text", "0 rows"]),
    ],
)
def test_what_cannot_be_delivered_says_what_to_do(hub, answer, words):
    hub(answer)
    refuses("hf:owner/name", "hf:owner/name", "'train'", *words)


def test_refusal_comes_before_the_first_document(hub):
    hub(ConnectionError())
    with pytest.raises(DataError):
        read_documents(SourceConfig("hf:owner/name"))


def test_an_error_of_the_reader_of_documents_is_its_own(hub):
    """Only what the dataset raises is called its error."""
    hub(Rows([{"text": "a"}, {"text": ""}]))
    refuses("hf:owner/name", "row 2: field 'text' is empty")


@pytest.mark.parametrize("package", ["datasets", "huggingface_hub"])
def test_missing_package_names_the_extra(hub, monkeypatch, package):
    hub(Rows([]))
    monkeypatch.setitem(sys.modules, package, None)
    refuses("hf:owner/name", package, "pip install 'tessera-lm[hub]'")


class Answer(Exception):
    def __init__(self, status):
        super().__init__(f"{status} from the Hub")
        self.response = SimpleNamespace(status_code=status)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionError("offline mode is enabled"), Unreachable),
        (Answer(503), Unreachable),
        (Answer(404), DataError),
        (Answer(401), DataError),
    ],
)
def test_a_hub_that_is_away_is_not_one_that_refuses(hub, monkeypatch, error, kind):
    hub(Rows([]))

    def dataset_info(name):
        raise error

    monkeypatch.setattr(sys.modules["huggingface_hub"], "HfApi", lambda: SimpleNamespace(dataset_info=dataset_info))
    with pytest.raises(DataError, match="hf:owner/name") as raised:
        revision(SourceConfig("hf:owner/name"))
    assert type(raised.value) is kind


def test_the_state_of_a_dataset_is_its_revision(hub, monkeypatch):
    hub(Rows([]))
    first, other = look(SourceConfig("hf:owner/name")), look(SourceConfig("hf:owner/other"))
    assert first.origin == {"num_files": None, "num_bytes": None, "revision": "commit of owner/name"}
    assert first.stamp == look(SourceConfig("hf:owner/name", licence="MIT")).stamp != other.stamp
    newer = SimpleNamespace(dataset_info=lambda name: SimpleNamespace(sha="newer"))
    monkeypatch.setattr(sys.modules["huggingface_hub"], "HfApi", lambda: newer)
    assert look(SourceConfig("hf:owner/name")).stamp != first.stamp


def test_the_package_itself_reads_parquet_files(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    import pyarrow.parquet

    for split, texts in (("train", ["one", "مرحبا\n"]), ("test", ["three"])):
        table = pyarrow.table({"text": texts, "id": [None] * len(texts), "extra": [[0.5]] * len(texts)})
        pyarrow.parquet.write_table(table, tmp_path / f"{split}.parquet")
    load, cache = datasets.load_dataset, str(tmp_path / "cache")

    def of_folder(name, config, *, revision, **options):
        assert revision == "commit"
        return load(str(tmp_path), config, cache_dir=cache, **options)

    monkeypatch.setattr("data.sources.hub_datasets.revision", lambda source: "commit")
    monkeypatch.setattr(datasets, "load_dataset", of_folder)
    assert read("hf:owner/name") == [Document("train:1", "one"), Document("train:2", "مرحبا\n")]
    assert read("hf:owner/name", dataset_split="test") == [Document("test:1", "three")]
    refuses("hf:owner/name", "split 'dev'", "'train', 'test'", "set data.dataset_split", dataset_split="dev")
    refuses("hf:owner/name:small", "'small' not found", "set data.dataset_split, and the configuration")
