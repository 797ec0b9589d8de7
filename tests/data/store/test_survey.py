import dataclasses
import json

import pytest

from data.config import SourceConfig
from data.errors import DataError
from data.sources.documents import Document
from data.sources.read import State, look
from data.split import is_held_out, split_number
from data.store import survey as survey_module
from data.store.survey import SourceChanged, SourceHash, Survey, find_survey, forget, survey_source


def quiet(_):
    pass


def surveyed(source, cache, report=quiet):
    """The survey, and whether the source was read for it."""
    found = find_survey(source, cache, report)
    return (survey_source(source, found, cache, report), True) if isinstance(found, State) else (found, False)


@pytest.fixture
def source(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": f"text é {n}", "id": f"n{n}"}) + "\n" for n in range(30))
    )
    return SourceConfig(str(tmp_path / "a.jsonl"))


def fingerprint(*documents):
    hasher = SourceHash()
    assert list(hasher.passing(documents)) == list(documents)
    return hasher.hexdigest()


def test_a_survey_counts(source, tmp_path):
    survey, read = surveyed(source, tmp_path / "cache")
    texts = [f"text é {number}" for number in range(30)]
    assert read and (survey.num_documents, survey.num_characters) == (30, sum(map(len, texts)))
    assert survey.num_bytes == sum(len(text.encode()) for text in texts)
    numbers = list(map(split_number, texts))
    assert (survey.lowest, survey.highest) == (min(numbers), max(numbers))
    assert survey.fingerprint == fingerprint(*(Document(f"n{n}", text) for n, text in enumerate(texts)))


def test_an_unchanged_source_is_not_read_again(source, tmp_path, monkeypatch):
    first, _ = surveyed(source, tmp_path / "cache")
    monkeypatch.setattr(survey_module, "read_documents", lambda *_, **__: pytest.fail("read again"))
    assert surveyed(source, tmp_path / "cache") == (first, False)
    forget(source, tmp_path / "cache")
    with pytest.raises(pytest.fail.Exception, match="read again"):
        surveyed(source, tmp_path / "cache")


@pytest.mark.parametrize("content", ["{", "[]", "{}", "change", "null"])
def test_a_memory_that_is_no_survey_is_not_used(source, tmp_path, content):
    first, _ = surveyed(source, tmp_path / "cache")
    (file,) = (tmp_path / "cache" / "surveys").iterdir()
    if content == "change":
        content = json.dumps(json.loads(file.read_text()) | {"num_documents": "30"})
    file.write_text(content)
    assert surveyed(source, tmp_path / "cache") == (first, True)


def test_a_source_that_changes_while_it_is_read_is_not_remembered(source, tmp_path, monkeypatch):
    stamps = iter(["before", "after"])
    monkeypatch.setattr(survey_module, "look", lambda source: State(next(stamps), look(source).files, {}))
    with pytest.raises(SourceChanged, match="changed while it was read: run again"):
        surveyed(source, tmp_path / "cache")
    assert list((tmp_path / "cache" / "surveys").iterdir()) == []


def test_the_fingerprint_sees_ids_texts_scores_order_and_borders():
    document = Document("a", "bc", 1.0)
    changes = [
        [Document("ab", "c", 1.0)],
        [Document("a", "bd", 1.0)],
        [Document("a", "bc", 2.0)],
        [Document("a", "bc")],
        [Document("a", "b", 1.0), Document("", "c", 1.0)],
    ]
    more = [[document, Document("d", "e")], [Document("d", "e"), document]]
    assert len({fingerprint(document), *(fingerprint(*changed) for changed in changes + more)}) == 8
    fingerprint(Document("\udc80\ud800", "x"))  # a name that is no UTF-8


def test_sides_that_would_be_empty_are_seen_without_reading():
    texts = ["a", "b", "c"]
    numbers = sorted(map(split_number, texts))
    survey = Survey("", 3, 3, 3, numbers[0], numbers[-1], {})
    for fraction in (0.01, *(number / 2**64 + shift for number in numbers for shift in (-1e-6, 1e-6)), 0.99):
        count = sum(is_held_out(text, fraction) for text in texts)
        if 0 < count < 3:
            survey.check_split("P", fraction, "document")
        else:
            with pytest.raises(DataError, match=f"{count} of 3 documents of P fall"):
                survey.check_split("P", fraction, "document")
    with pytest.raises(DataError, match="P is 1 document"):
        dataclasses.replace(survey, num_documents=1).check_split("P", 0.5, "document")
    survey.check_split("P", 0.5, "tail")
    with pytest.raises(DataError, match="leaves 0 of 3 characters of P to train on and 3"):
        survey.check_split("P", 0.9, "tail")


def test_a_long_reading_says_how_far_it_is(source, tmp_path, monkeypatch):
    monkeypatch.setattr(survey_module, "_SECONDS", -1)
    lines = []
    surveyed(source, tmp_path / "cache", lines.append)
    assert len(lines) == 30 and "30 documents, 0 MB so far" in lines[-1]
