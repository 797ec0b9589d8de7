"""`tessera data clean`: from flags to settings, and what a user is shown."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

from data.cleaning.gopher import GopherQuality
from data.cleaning.language import Language
from data.cleaning.pipeline import Progress
from data.cleaning.unicode import Unicode
from data.errors import DataError
from data.sources.read import SourceConfig, read_documents
from launch import data_clean


def parsed(*arguments: str):
    values = flags.FlagValues()
    data_clean.define(values)
    return values, values(["clean", *arguments])[1:]


def run(*arguments: str) -> int:
    return data_clean.run(*parsed(*arguments))


@pytest.fixture
def files(tmp_path):
    """A file with four texts, and one with an evaluation text."""
    texts = ["What is kept is kept.", "No <b>tags</b> are kept.", "What is kept is kept."]
    texts += ["the answer is forty two of course"]
    (tmp_path / "in.txt").write_text("\n\n".join(texts))
    (tmp_path / "exam.jsonl").write_text(json.dumps({"question": "the answer is forty two"}) + "\n")
    return tmp_path


def test_flags_become_an_output(files, capsys):
    command = [str(files / "in.txt"), f"--out={files / 'out'}", "--rules=unicode,html", r"--document_separator=\n\n"]
    command += [f"--decontaminate={files / 'exam.jsonl'}", "--decontaminate_field=question", "--overlap=5"]
    command += ["--workers=1", "--language=en", "--licence=CC0", "--examples=1"]
    assert run(*command) == 0
    said = capsys.readouterr()
    assert "2 of 4 documents stay" in said.out and "is finished: see" in said.out
    assert "exact_duplicates" in said.out and "final: " in said.err
    read = [document.text for document in read_documents(SourceConfig(str(files / "out/documents")))]
    assert read == ["What is kept is kept.", "No tags are kept."]
    settings = json.loads((files / "out/manifest.json").read_text())["settings"]
    assert settings["sources"][0]["licence"] == "CC0" and settings["examples"] == 1
    assert run(*command) == 0
    assert "was finished before" in capsys.readouterr().out
    with pytest.raises(DataError, match="overlap: 5 there, 4 asked for"):
        run(*command, "--overlap=4")


def rules_of(*arguments: str):
    values = parsed(*arguments)[0]
    return data_clean._rules(values, data_clean._thresholds(values)[0])


def test_thresholds_are_set_by_name():
    assert (
        rules_of(
            "--rules=unicode, language,gopher_quality",
            "--set=gopher_quality.min_words=3",
            "--set=gopher_quality.max_bullet_lines=0.5",
            "--set=language.keep=en,zh",
            "--set=unicode.repair=false",
            "--set=unicode.normalization=none",
        )
    ) == (
        Unicode(repair=False, normalization="none"),
        Language(keep=("en", "zh")),
        GopherQuality(min_words=3, max_bullet_lines=0.5),
    )
    assert rules_of("--rules=") == ()
    assert [rule.name for rule in rules_of()] == list(data_clean.DEFAULT_RULES)


GERMAN = (
    "Der Hund lief am Morgen durch den Garten, weil er eine Katze gesehen hatte. Die Katze aber saß schon lange auf "
    "dem Dach und sah ihm zu, wie er unter jedem Busch und hinter jeder Mauer nach ihr suchte. Als es Mittag wurde, "
    "gab er auf und legte sich müde in die Sonne, und erst am Abend kam die Katze wieder herunter."
)


def test_english_stop_words_are_not_asked_of_other_languages(tmp_path, capsys):
    (tmp_path / "in.txt").write_text(GERMAN)
    command = [str(tmp_path / "in.txt"), "--workers=1", "--rules=gopher_quality"]
    assert run(*command, f"--out={tmp_path / 'a'}") == 0
    assert "1 of 1 documents for want of English stop words" in " ".join(capsys.readouterr().out.split())
    assert run(*command, f"--out={tmp_path / 'b'}", "--language=de") == 0
    said = capsys.readouterr().out
    assert "1 of 1 documents stay" in said and "Of texts in 'de', gopher_quality asked for no stop words" in said
    assert run(*command, f"--out={tmp_path / 'c'}", "--language=de", "--set=gopher_quality.min_stop_words=1") == 0
    said = capsys.readouterr().out
    assert "0 of 1 documents stay" in said and "asked for no" not in said


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["--language=de"], 0),
        (["--language=zh-TW"], 0),
        (["--language=en-GB"], 2),
        ([], 2),
        (["--language=de", "--set=gopher_quality.stop_words=der,die,und"], 2),
    ],
)
def test_how_many_stop_words_are_asked_for(arguments, asked):
    (rule,) = rules_of("--rules=gopher_quality", *arguments)
    assert rule.min_stop_words == asked
    assert rules_of("--rules=html", *arguments[:1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out=x"], "sources and --out are needed"),
        (["in.txt"], "sources and --out are needed"),
        (["in.txt", "--out=x", "--rules=gofer_quality"], "did you mean 'gopher_quality'"),
        (["in.txt", "--out=x", "--set=gopher_quality.min_word=3"], "did you mean 'min_words'"),
        (["in.txt", "--out=x", "--set=c4.min_sentences=3"], "'c4', which is not among the rules"),
        (["in.txt", "--out=x", "--set=gopher_quality.min_words=many"], "min_words"),
        (["in.txt", "--out=x", "--set=min_words=3"], "say RULE.FIELD=VALUE"),
        (["in.txt", "--out=x", "--set=html.x=1", "--set=html.x=2"], "given twice"),
        (["in.txt", "--out=x", "--near_duplicates=2"], "near_duplicates = 2.0"),
        (["in.txt", "--out=x", "--workers=-1"], "--workers=-1 is negative"),
        (["in.txt", "--out=x", "--max_bits_per_byte=3"], "--perplexity_run and --max_bits_per_byte"),
        (["in.txt", "--out=x", "--perplexity_run=runs/x"], "--perplexity_run and --max_bits_per_byte"),
        (["missing.txt", "--out=x"], "missing.txt"),
    ],
)
def test_flags_that_make_no_sense_are_refused(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        run(*arguments)
    assert not list(tmp_path.iterdir())


def test_a_model_scores_documents(files, monkeypatch):
    class Model:
        def bits_per_byte(self, text: str) -> float:
            return float(len(text))

    monkeypatch.setattr("launch.load.load", lambda run, step: Model())
    monkeypatch.setattr(data_clean, "scorer_of", lambda run: data_clean.RunScorer(run, 20, "abc"))
    command = [str(files / "in.txt"), f"--out={files / 'out'}", "--rules=", r"--document_separator=\n\n", "--workers=1"]
    assert run(*command, "--perplexity_run=runs/a", "--max_bits_per_byte=30", "--min_bits_per_byte=22") == 0
    (read,) = read_documents(SourceConfig(str(files / "out/documents")))
    assert read.text == "No <b>tags</b> are kept."
    settings = json.loads((files / "out/manifest.json").read_text())["settings"]
    assert settings["rules"]["perplexity"]["scorer"] == "RunScorer(run='runs/a', step=20, state='abc')"


def test_the_scorer_travels_and_refuses_what_scores_no_text(monkeypatch):
    scorer = data_clean.RunScorer("runs/a", 20, "abc")
    assert pickle.loads(pickle.dumps(scorer)) == scorer  # noqa: S301
    loaded = []
    monkeypatch.setattr("launch.load.load", lambda run, step: loaded.append((run, step)))
    with pytest.raises(ValueError, match="runs/a predicts no text token by token"):
        scorer()
    assert loaded == [("runs/a", 20)]


def test_a_scorer_is_the_newest_checkpoint_and_what_it_was_made_of(tmp_path):
    def checkpoint(step: int, content: str) -> data_clean.RunScorer:
        folder = tmp_path / "checkpoints" / str(step)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "_CHECKPOINT_METADATA").write_text(content)
        os.utime(folder / "_CHECKPOINT_METADATA", (0, 0))
        return data_clean.scorer_of(str(tmp_path))

    record = {"config": {"train.steps": 10}, "model": {"dim": 8}, "fingerprints": {"tokenizer": "a"}}
    (tmp_path / "config.json").write_text(json.dumps(record))
    first = checkpoint(10, "x")
    assert (first.step, checkpoint(20, "x").step) == (10, 20)
    shutil.rmtree(tmp_path / "checkpoints/20")
    (tmp_path / "config.json").write_text(json.dumps(record | {"config": {"train.steps": 20}}))
    assert checkpoint(10, "x") == first  # a run that goes on is the same scorer
    assert checkpoint(10, "longer").state != first.state
    (tmp_path / "config.json").write_text(json.dumps(record | {"fingerprints": {"tokenizer": "b"}}))
    assert checkpoint(10, "x").state != first.state


def test_a_scorer_is_chosen_again_where_its_checkpoint_is_deleted_meanwhile(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps({"config": {}, "model": {}, "fingerprints": {}}))
    for step in ("10", "20", "30"):
        (tmp_path / "checkpoints" / step).mkdir(parents=True)
        (tmp_path / "checkpoints" / step / "_CHECKPOINT_METADATA").write_text(step)
    stat = Path.stat

    def deleted_before_the_second(path: Path, **options) -> os.stat_result:
        if path.parent.name == "30" and looked.append(path) is None and len(looked) == 3:
            shutil.rmtree(path.parent)
        return stat(path, **options)

    looked: list[Path] = []
    monkeypatch.setattr(Path, "stat", deleted_before_the_second)
    assert data_clean.scorer_of(str(tmp_path)).step == 20


def test_a_model_scores_before_anything_personal_is_hidden(monkeypatch):
    monkeypatch.setattr(data_clean, "scorer_of", lambda run: data_clean.RunScorer(run, None, ""))
    scored = ("--perplexity_run=runs/a", "--max_bits_per_byte=3")
    assert [rule.name for rule in rules_of(*scored)][-2:] == ["perplexity", "personal"]
    assert [rule.name for rule in rules_of(*scored, "--rules=unicode")] == ["unicode", "perplexity"]
    assert [rule.name for rule in rules_of(*scored, "--rules=perplexity,unicode")] == ["perplexity", "unicode"]


def test_progress_says_speed_and_time_left():
    texts = Progress("rules", documents=300, bytes=3_000_000, kept=150, total_documents=None, total_bytes=6_000_000)
    line = data_clean.describe(texts, (100, 1_000_000), 4.0)
    assert line == "rules: 300 documents, 3.0 MB, 50.0% kept, 50 documents/s, 0.50 MB/s, 0:06 left"
    chunks = Progress("final", documents=300, bytes=3_000_000, kept=300, total_documents=3_900, total_bytes=None)
    assert data_clean.describe(chunks, (0, 0), 10.0).endswith("30 documents/s, 0.30 MB/s, 2:00 left")
    unknown = Progress("rules", documents=300, bytes=3_000_000, kept=300, total_documents=None, total_bytes=2_000_000)
    assert "left" not in data_clean.describe(unknown, (0, 0), 10.0)
    compared = Progress("duplicates", documents=300, bytes=0, kept=150, total_documents=900, total_bytes=None)
    line = data_clean.describe(compared, (0, 0), 10.0)
    assert line == "duplicates: 300 documents, 50.0% kept, 30 documents/s, 0:20 left"
    assert data_clean.describe(texts, (300, 3_000_000), 1.0) == "rules: 300 documents, 3.0 MB, 50.0% kept"


def test_the_module_imports_nothing_heavy():
    code = "import launch.data_clean, sys; print([m for m in ('numpy', 'jax', 'rich', 'pyarrow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
