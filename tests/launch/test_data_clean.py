"""`tessera data clean`: from flags to settings, and what a user is shown."""

import json
import pickle
import subprocess
import sys

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


def test_thresholds_are_set_by_name():
    rules = data_clean._rules(
        parsed(
            "--rules=unicode, language,gopher_quality",
            "--set=gopher_quality.min_words=3",
            "--set=gopher_quality.max_bullet_lines=0.5",
            "--set=language.keep=en,zh",
            "--set=unicode.repair=false",
            "--set=unicode.normalization=none",
        )[0]
    )
    assert rules == (
        Unicode(repair=False, normalization="none"),
        Language(keep=("en", "zh")),
        GopherQuality(min_words=3, max_bullet_lines=0.5),
    )
    assert data_clean._rules(parsed("--rules=")[0]) == ()
    assert [rule.name for rule in data_clean._rules(parsed()[0])] == list(data_clean.DEFAULT_RULES)


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

    monkeypatch.setattr("launch.load.load", lambda run: Model())
    command = [str(files / "in.txt"), f"--out={files / 'out'}", "--rules=", r"--document_separator=\n\n", "--workers=1"]
    assert run(*command, "--perplexity_run=runs/a", "--max_bits_per_byte=30", "--min_bits_per_byte=22") == 0
    (read,) = read_documents(SourceConfig(str(files / "out/documents")))
    assert read.text == "No <b>tags</b> are kept."
    settings = json.loads((files / "out/manifest.json").read_text())["settings"]
    assert settings["rules"]["perplexity"]["scorer"] == "RunScorer(run='runs/a')"


def test_the_scorer_travels_and_refuses_what_scores_no_text(monkeypatch):
    scorer = data_clean.RunScorer("runs/a")
    assert pickle.loads(pickle.dumps(scorer)) == scorer  # noqa: S301
    monkeypatch.setattr("launch.load.load", lambda run: object())
    with pytest.raises(ValueError, match="runs/a predicts no text token by token"):
        scorer()


def test_progress_says_speed_and_time_left():
    texts = Progress("rules", documents=300, bytes=3_000_000, kept=150, total_documents=None, total_bytes=6_000_000)
    line = data_clean.describe(texts, (100, 1_000_000), 4.0)
    assert line == "rules: 300 documents, 3.0 MB, 50.0% kept, 50 documents/s, 0.50 MB/s, 0:06 left"
    chunks = Progress("final", documents=300, bytes=3_000_000, kept=300, total_documents=3_900, total_bytes=None)
    assert data_clean.describe(chunks, (0, 0), 10.0).endswith("30 documents/s, 0.30 MB/s, 2:00 left")
    unknown = Progress("rules", documents=300, bytes=3_000_000, kept=300, total_documents=None, total_bytes=2_000_000)
    assert "left" not in data_clean.describe(unknown, (0, 0), 10.0)
    assert data_clean.describe(texts, (300, 3_000_000), 1.0) == "rules: 300 documents, 3.0 MB, 50.0% kept"


def test_the_module_imports_nothing_heavy():
    code = "import launch.data_clean, sys; print([m for m in ('numpy', 'jax', 'rich', 'pyarrow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
