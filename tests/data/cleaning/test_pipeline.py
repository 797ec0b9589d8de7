"""The pipeline as a whole: nothing lost, output that is a source, errors that name the document."""

import functools
import math
import os
from dataclasses import dataclass
from typing import ClassVar

import pytest

from data.cleaning.chunks import read_chunks, read_records, write_records
from data.cleaning.perplexity import Perplexity
from data.cleaning.pipeline import clean, read_report
from data.cleaning.report import markdown
from data.cleaning.rule import Dropped
from data.cleaning.settings import CleanConfig
from data.config import SourceConfig
from data.errors import DataError
from data.sources.read import read_documents
from tests.data.cleaning.corpora import Least, Without, records, source


def test_every_document_stays_or_goes_with_a_reason(tmp_path):
    first = source(
        tmp_path / "first.jsonl", ["tiny", "the same text  here", "qqqqqqqqqqq", " some other text "], language="en"
    )
    second = source(tmp_path / "second.jsonl", ["the same\ntext here", "q in a new text", "tax"], licence="CC0")
    told = []
    settings = CleanConfig(rules=(Least(), Without("q")), examples=2)
    report = clean([first, second], tmp_path / "out", settings, told.append)
    assert records(tmp_path / "out", "documents") == [
        {"id": "first-1", "text": "the same text  here", "source": first.path, "language": "en"},
        {"id": "first-3", "text": "some other text", "source": first.path, "language": "en"},
        {"id": "second-1", "text": " in a new text", "source": second.path, "licence": "CC0"},
    ]
    gone = {record["id"]: record for record in records(tmp_path / "out", "dropped")}
    assert gone["first-2"] == {
        "id": "first-2",
        "source": first.path,
        "reason": "empty",
        "rule": "without",
        "detail": "no text is left",
        "head": "qqqqqqqqqqq",
    }
    assert gone["second-0"]["detail"] == f"the text of 'first-1' of {first.path}"
    assert {id: (one["rule"], one["reason"]) for id, one in gone.items()} == {
        "first-0": ("least", "short"),
        "first-2": ("without", "empty"),
        "second-0": ("exact_duplicates", "equal"),
        "second-2": ("least", "short"),
    }
    assert [(s.name, s.documents_in, s.documents_out, s.changed, s.reasons) for s in report.total.steps] == [
        ("least", 7, 5, 1, {"short": 2}),
        ("without", 5, 4, 1, {"empty": 1}),
        ("exact_duplicates", 4, 3, 0, {"equal": 1}),
    ]
    assert (report.total.documents_in, report.total.documents_out, report.total.dropped) == (7, 3, 4)
    assert {path: (t.documents_in, t.documents_out) for path, t in report.sources.items()} == {
        first.path: (4, 2),
        second.path: (3, 1),
    }
    assert sum(report.total.lengths_in) == 7 and sum(report.total.lengths_out) == 3
    assert told[-1].stage == "publish" and (told[-1].documents, told[-1].kept) == (7, 3)
    assert markdown(report) == (tmp_path / "out/report.md").read_text()
    assert read_report(tmp_path / "out") == report


def test_the_output_is_a_source(tmp_path):
    texts = ["我爱北京天安门，天安门上太阳升。", "العربية لغة جميلة جدا", "👩‍👩‍👧 👍🏽 emoji and 文字"]
    texts += ["line\u2028sep\r\n\x00nul", "z" * 10_000_000]
    given = source(tmp_path / "in.jsonl", texts)
    report = clean([given], tmp_path / "out", CleanConfig(rules=(Least(5),), near_duplicates=0.8, permutations=16))
    read = list(read_documents(SourceConfig(str(tmp_path / "out/documents"))))
    assert [document.text for document in read] == texts
    assert [document.id for document in read] == [f"in-{number}" for number in range(5)]
    assert report.total.bytes_out == sum(len(text.encode()) for text in texts)


def test_scores_go_with_their_documents(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"id": "a", "text": "one", "rank": 2.5}\n')
    clean([SourceConfig(str(tmp_path / "in.jsonl"), score_field="rank")], tmp_path / "out")
    (read,) = read_documents(SourceConfig(str(tmp_path / "out/documents"), score_field="score"))
    assert read.score == 2.5


def test_chunks_hold_whole_documents_in_order(tmp_path):
    given = source(tmp_path / "in.jsonl", ["ab", "c" * 50, "d", "e", "f", "ghi", "j"])
    chunks = list(read_chunks(given, 4, max_documents=3, max_bytes=20))
    assert [[len(d.text) for d in chunk.documents] for chunk in chunks] == [[2, 50], [1, 1, 1], [3, 1]]
    assert [chunk.name for chunk in chunks] == ["00004-000000", "00004-000001", "00004-000002"]
    assert len({chunk.digest for chunk in chunks}) == 3


def test_an_id_of_odd_bytes_can_be_written(tmp_path):
    write_records(tmp_path / "a.jsonl.zst", [{"id": "caf\udce9.txt", "text": "é"}])
    assert list(read_records(tmp_path / "a.jsonl.zst")) == [{"id": "caf\udce9.txt", "text": "é"}]
    (tmp_path / "in").mkdir()
    with open(os.fsencode(tmp_path / "in") + b"/caf\xe9.txt", "w") as file:
        file.write("text x")
    report = clean([SourceConfig(str(tmp_path / "in"))], tmp_path / "out", CleanConfig(rules=(Without(),)))
    assert report.total.documents_out == 1 and read_report(tmp_path / "out") == report


def test_a_missing_package_is_told_before_any_work(tmp_path, monkeypatch):
    given = source(tmp_path / "in.jsonl", ["one text"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'tessera-lm\[cleaning\]'"):
        clean([given], tmp_path / "out", CleanConfig(near_duplicates=0.8))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("threshold", [0.01, 1.0])
def test_near_duplicates_at_the_ends_of_the_scale(tmp_path, threshold):
    pytest.importorskip("datasketch")
    words = [f"word{number}" for number in range(40)]
    texts = [" ".join(words), " ".join(words).upper(), " ".join([*words[:20], "other"]), "nothing of the kind at all"]
    report = clean([source(tmp_path / "in.jsonl", texts)], tmp_path / "out", CleanConfig(near_duplicates=threshold))
    assert report.total.steps[1].dropped == (2 if threshold < 1 else 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_rule_names_source_and_document(tmp_path, workers):
    given = source(tmp_path / "in.jsonl", ["one text", "another text"])
    settings = CleanConfig(rules=(Perplexity(scorer=functools.partial),))  # functools.partial() is a TypeError
    with pytest.raises(DataError, match=r"rule perplexity failed on document 'in-0' of .*in.jsonl: TypeError: "):
        clean([given], tmp_path / "out", settings, workers=workers)


def test_a_rule_may_not_make_what_utf8_cannot_hold(tmp_path):
    @dataclass(frozen=True)
    class Half:
        name: ClassVar[str] = "half"
        source: ClassVar[str] = "here"

        def __call__(self, text: str) -> str | Dropped:
            return text + "\ud800"

    given = source(tmp_path / "in.jsonl", ["one text"])
    with pytest.raises(DataError, match="rule half failed on document 'in-0' .*UnicodeEncodeError"):
        clean([given], tmp_path / "out", CleanConfig(rules=(Half(),)))


def test_a_worker_that_dies_is_an_error_that_says_so(tmp_path):
    given = source(tmp_path / "in.jsonl", ["one text"])
    with pytest.raises(DataError, match="a worker process was killed.* fewer than 2 workers"):
        clean([given], tmp_path / "out", CleanConfig(rules=(Perplexity(scorer=os.abort),)), workers=2)


def test_evaluation_texts_can_be_cut_out(tmp_path):
    exam = source(tmp_path / "exam.jsonl", ["four words in row"])
    given = source(tmp_path / "in.jsonl", ["say: four words in row!", "four words in rows", "Four words in row."])
    settings = CleanConfig(decontaminate=(exam,), overlap=4, contaminated="cut")
    report = clean([given], tmp_path / "out", settings)
    kept = [record["text"] for record in records(tmp_path / "out", "documents")]
    assert kept == ["say: \n!", "four words in rows", "."]
    (step,) = report.total.steps[1:]
    assert (step.name, step.changed, step.dropped) == ("decontamination", 2, 0)
    assert "exam.jsonl: 1 evaluation texts were looked for" in (tmp_path / "out/report.md").read_text()


def test_a_copy_of_a_near_duplicate_names_the_document_that_stays(tmp_path):
    pytest.importorskip("datasketch")
    base = [f"word{number}" for number in range(100)]
    texts = [" ".join(base), " ".join([*base[:-1], "other"]), " ".join([*base[:-1], "other"]), "alone"]
    clean([source(tmp_path / "in.jsonl", texts)], tmp_path / "out", CleanConfig(near_duplicates=0.8))
    gone = records(tmp_path / "out", "dropped")
    assert [(one["id"], one["rule"]) for one in gone] == [("in-1", "near_duplicates"), ("in-2", "near_duplicates")]
    assert gone[0]["detail"] == gone[1]["detail"] and gone[0]["detail"].startswith("to 'in-0' of ")


def test_nothing_left_is_an_output_too(tmp_path):
    given = source(tmp_path / "in.jsonl", ["short", "texts"])
    report = clean([given], tmp_path / "out", CleanConfig(rules=(Least(),), near_duplicates=0.8, permutations=16))
    assert (report.total.documents_in, report.total.documents_out) == (2, 0)
    assert not list((tmp_path / "out/documents").iterdir()) and len(records(tmp_path / "out", "dropped")) == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"near_duplicates": 1.5}, r"near_duplicates = 1.5 is not allowed: it must be between 0 \(off\) and 1"),
        ({"near_duplicates": math.nan}, "near_duplicates = nan"),
        ({"contaminated": "hide"}, "contaminated = 'hide' is not allowed: it must be drop or cut"),
        ({"overlap": 0}, "overlap = 0 is not allowed: it must be 1 or more"),
        ({"permutations": 1}, "permutations = 1"),
        ({"examples": -1}, "examples = -1"),
        ({"rules": (Least(), Least(3))}, "rules: least given twice"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        CleanConfig(**wrong)
