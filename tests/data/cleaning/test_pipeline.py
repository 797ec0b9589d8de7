"""The pipeline as a whole: nothing lost, output that is a source, errors that name the document."""

import functools
import math
import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from data.cleaning import stages
from data.cleaning.chunks import read_chunks, read_records, write_records
from data.cleaning.language import Language
from data.cleaning.perplexity import Perplexity
from data.cleaning.pipeline import Progress, clean, read_report
from data.cleaning.processes import each
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
        {"id": "0/first-1", "text": "the same text  here", "source": first.path, "language": "en"},
        {"id": "0/first-3", "text": "some other text", "source": first.path, "language": "en"},
        {"id": "1/second-1", "text": " in a new text", "source": second.path, "licence": "CC0"},
    ]
    gone = {record["id"]: record for record in records(tmp_path / "out", "dropped")}
    assert gone["0/first-2"] == {
        "id": "0/first-2",
        "source": first.path,
        "reason": "empty",
        "rule": "without",
        "detail": "no text is left",
        "head": "qqqqqqqqqqq",
    }
    assert gone["1/second-0"]["detail"] == f"the text of '0/first-1' of {first.path}"
    assert {id: (one["rule"], one["reason"]) for id, one in gone.items()} == {
        "0/first-0": ("least", "short"),
        "0/first-2": ("without", "empty"),
        "1/second-0": ("exact_duplicates", "equal"),
        "1/second-2": ("least", "short"),
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
    assert report.total.languages == report.sources[first.path].languages == {"en": 2}
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
    step = report.total.steps[0]
    assert (step.name, step.changed, step.dropped) == ("decontamination", 2, 0)
    assert "exam.jsonl: 1 evaluation texts were looked for" in (tmp_path / "out/report.md").read_text()


def test_the_clean_copies_of_a_contaminated_document_stay(tmp_path):
    pytest.importorskip("datasketch")
    exam = source(tmp_path / "exam.jsonl", ["the five words of it"])
    base = " ".join(f"word{number}" for number in range(100))
    texts = [f"{base} the five words of it", f"{base} the five other words", "the five words\nof it " + base, base]
    settings = CleanConfig(near_duplicates=0.7, decontaminate=(exam,), overlap=5)
    report = clean([source(tmp_path / "in.jsonl", texts)], tmp_path / "out", settings)
    assert [record["id"] for record in records(tmp_path / "out", "documents")] == ["in-1"]
    gone = {record["id"]: record["rule"] for record in records(tmp_path / "out", "dropped")}
    assert gone == {"in-0": "decontamination", "in-2": "decontamination", "in-3": "near_duplicates"}
    assert [step.name for step in report.total.steps] == ["decontamination", "exact_duplicates", "near_duplicates"]


def test_what_is_equal_once_it_is_cut_is_a_duplicate(tmp_path):
    exam = source(tmp_path / "exam.jsonl", ["four words in row"])
    given = source(tmp_path / "in.jsonl", ["kept. four words in row", "four words in row kept.", "four words in row"])
    clean([given], tmp_path / "out", CleanConfig(decontaminate=(exam,), overlap=4, contaminated="cut"))
    gone = {record["id"]: record["rule"] for record in records(tmp_path / "out", "dropped")}
    assert gone == {"in-1": "exact_duplicates", "in-2": "decontamination"}


def test_evaluation_texts_that_cannot_be_read_are_told_before_any_work(tmp_path):
    given = source(tmp_path / "in.jsonl", ["one text", "four words in row"])
    exam = SourceConfig(source(tmp_path / "exam.jsonl", ["four words in row"]).path, text_field="question")
    with pytest.raises(DataError, match="question"):
        clean([given], tmp_path / "out", CleanConfig(decontaminate=(exam,), overlap=4))
    exam = SourceConfig(exam.path)
    with pytest.raises(DataError, match="has 13 words"):
        clean([given], tmp_path / "out", CleanConfig(decontaminate=(exam,)))
    assert not (tmp_path / "out").exists()
    assert clean([given], tmp_path / "out", CleanConfig(decontaminate=(exam,), overlap=4)).total.documents_out == 1


def test_ids_of_several_sources_differ(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part.jsonl").write_text(f'{{"text": "{name}"}}\n{{"text": "more of {name}"}}\n')
    given = [SourceConfig(str(tmp_path / name / "part.jsonl")) for name in ("a", "b")]
    clean(given, tmp_path / "out")
    ids = [document.id for document in read_documents(SourceConfig(str(tmp_path / "out/documents")))]
    assert ids == ["0/part.jsonl:1", "0/part.jsonl:2", "1/part.jsonl:1", "1/part.jsonl:2"]


def test_the_language_that_was_found_is_written_and_counted(tmp_path):
    pytest.importorskip("lingua")
    texts = ["The weather was fine and we went to the river with the dog.", "123"]
    texts += ["Das Wetter war schön, und wir gingen mit dem Hund an den Fluss."]
    given = source(tmp_path / "in.jsonl", texts, language="fr")
    report = clean([given], tmp_path / "out", CleanConfig(rules=(Language(keep=("en", "de")),), chunk_documents=1))
    assert [record["language"] for record in records(tmp_path / "out", "documents")] == ["en", "fr", "de"]
    assert report.total.languages == {"en": 1, "fr": 1, "de": 1}  # of the second, what was declared
    assert "| de | 1 | 33.33% |" in (tmp_path / "out/report.md").read_text()
    assert "Languages of what stays" in (tmp_path / "out/report.html").read_text()


def test_the_counts_of_chunks_are_added_up_one_by_one(tmp_path, monkeypatch):
    held: list[weakref.ref] = []
    read = stages.read_tally

    def watched(folder: Path):
        assert sum(one() is not None for one in held) <= 2
        tally = read(folder)
        held.append(weakref.ref(tally))
        return tally

    given = source(tmp_path / "in.jsonl", [f"text {number}" for number in range(8)])
    monkeypatch.setattr(stages, "read_tally", watched)
    assert clean([given], tmp_path / "out", CleanConfig(chunk_documents=1)).total.documents_out == 8
    assert len(held) >= 16


def test_a_chunk_is_finished_without_a_look_at_others(tmp_path):
    pytest.importorskip("datasketch")
    given = source(tmp_path / "in.jsonl", [f"text {number // 2}" for number in range(8)])

    def forget(progress: Progress):
        if progress.stage == "final":
            for path in (tmp_path / "out/.work/rules").glob("*/ids.json"):
                path.unlink()

    report = clean([given], tmp_path / "out", CleanConfig(chunk_documents=1), forget)
    assert report.total.documents_out == 4
    details = [record["detail"] for record in records(tmp_path / "out", "dropped")]
    assert details == [f"the text of 'in-{number}' of {given.path}" for number in range(0, 8, 2)]


pickled = []


class Shared:
    def __reduce__(self):
        pickled.append(self)
        return int, (7,)


def times(shared: object, number: int) -> int:
    assert isinstance(shared, int)
    return shared * number


def test_what_workers_share_travels_once_to_each():
    pickled.clear()
    assert sorted(each(times, Shared(), range(20), 2)) == [7 * number for number in range(20)]
    assert len(pickled) <= 2


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
