"""`inspect_data` on sources, stores and rows, and what it says of a sample."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from data.config import SourceConfig
from data.corpus import prepare
from data.errors import DataError
from data.inspection.inspection import Inspection, inspect_data
from data.inspection.reading import is_store
from data.objectives.objectives import ObjectiveConfig
from data.rows import store_rows
from data.store.store import open_store
from data.tokenizers.tokenizer import ByteTokenizer
from tests.data.tiny_stores import write_store

TEXTS = ["one two three", "one two", "一二三", "one two", "<script>alert(1)</script>\x1b[31m"] + [
    f"text {n}" for n in range(40)
]


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "texts.jsonl"
    lines = [json.dumps({"id": f"d{number}", "text": text}) for number, text in enumerate(TEXTS)]
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


@pytest.fixture
def corpus(source, config):
    return prepare(config(path=str(source), held_out=0.2), report=lambda line: None)


def strings(inspection: Inspection) -> set[str]:
    return {"".join(token.text for token in shown.sides[0].tokens) for shown in inspection.examples}


def test_numbers_of_a_source(source):
    found = inspect_data(source, examples=60, max_length=100)
    assert found.documents == len(TEXTS) == 45
    assert found.num_bytes == found.tokens == sum(len(text.encode()) for text in TEXTS)
    assert found.characters == sum(map(len, TEXTS))
    assert sum(documents for *_, documents in found.lengths) == 45
    assert found.ngrams[1][:2] == [("text", 40), ("one", 3)] and found.ngrams[2][:1] == [("one two", 3)]
    assert found.duplicates.copies == 1 and found.duplicates.most_frequent == [("one two", 2)]
    assert found.notes == [] and found.labels == {} and set(found.ngram_errors.values()) == {0}
    assert found.vocabulary.size == 257 and found.vocabulary.unknown == 0
    used = set("".join(TEXTS).encode())
    assert found.vocabulary.unused == 256 - len(used)
    assert "'\\x00'" in found.vocabulary.unused_pieces
    # Each document is drawn once, whole, and closed.
    assert strings(found) == {f"{text}⟨eos⟩" for text in TEXTS}


def test_a_seed_draws_the_same_examples(source):
    first, again, other = (inspect_data(source, examples=5, seed=seed) for seed in (0, 0, 1))
    assert first.examples == again.examples != other.examples
    assert len(first.examples) == 5


def test_a_sample_says_so(source, corpus):
    found = inspect_data(source, max_documents=10, examples=3)
    assert found.documents == 10 and found.notes == ["a sample: the first 10 documents; there are more"]
    assert inspect_data(source, max_documents=45, examples=0).notes == []
    store = corpus.train
    found = inspect_data(store, max_documents=10)
    assert found.documents == 10 and found.notes == [f"a sample: 10 of {store.num_documents}, drawn at random"]


def test_a_store_is_read_with_the_tokenizer_of_its_cache(source, config):
    corpus = prepare(config(path=str(source), tokenizer="char", held_out=0.2), report=lambda line: None)
    folder = Path(corpus.train.folder)
    assert is_store(folder) and not is_store(source)
    found = inspect_data(str(folder), max_length=16, examples=4)
    assert found.documents == corpus.train.num_documents and found.num_bytes == corpus.train.num_bytes
    assert found.tokens == corpus.train.num_tokens  # characters have no end of document
    assert found.facts["tokenizer"] == f"char, {corpus.tokenizer.vocab_size} ids, {corpus.tokenizer.fingerprint}"
    assert found.facts["source_fingerprint"] == corpus.train.manifest["source_fingerprint"]
    assert found.facts["path"] == str(source)
    with pytest.raises(DataError, match=corpus.tokenizer.fingerprint):
        inspect_data(folder, tokenizer="byte")
    moved = source.parent / "moved"
    folder.rename(moved)
    with pytest.raises(DataError, match="give tokenizer="):
        inspect_data(moved)
    assert inspect_data(moved, tokenizer=corpus.tokenizer, examples=0).documents == found.documents


def test_a_folder_with_another_manifest_is_no_store(source, corpus):
    folder = source.parent / "cleaned"
    (folder / "documents").mkdir(parents=True)
    (folder / "documents" / "00000.jsonl").write_bytes(source.read_bytes())
    (folder / "manifest.json").write_text('{"documents_in": 50, "settings": {"rules": []}}')
    with pytest.raises(DataError, match=f"give its documents, {folder / 'documents'}"):
        inspect_data(folder)
    assert inspect_data(folder / "documents", examples=0).documents == len(TEXTS)
    (Path(corpus.train.folder) / "manifest.json").write_text('{"format_')
    with pytest.raises(DataError, match="manifest.json is not JSON"):
        inspect_data(corpus.train.folder)


def test_a_store_behind_a_url(corpus):
    files = pytest.importorskip("fsspec").filesystem("memory")
    files.put(f"{corpus.train.folder}/", "/inspected/", recursive=True)
    assert is_store("memory://inspected") and not is_store("memory://inspected/tokens.bin")
    here, there = (inspect_data(what, max_length=32) for what in (corpus.train, "memory://inspected"))
    assert there.examples == here.examples and there.ngrams == here.ngrams and there.documents == here.documents


def test_texts_that_lost_something_on_the_way_say_so(tmp_path):
    tokenizer = ByteTokenizer()
    encoded = [(np.array(tokenizer.encode(text), np.int32), 10) for text in ("one", "two")]
    store = write_store(tmp_path / "s", encoded, tokenizer=tokenizer, source_fingerprint="s", split="train")
    told = "texts are what the tokenizer makes of the ids: 6 bytes, where the source had 20"
    assert inspect_data(store, max_length=4).notes == [told]
    assert len(inspect_data(store, max_length=4, max_documents=1).notes) == 1


def test_the_documents_of_a_store_without_their_end(corpus):
    found = inspect_data(open_store(corpus.train.folder), objective="masked_lm", max_length=40, examples=2)
    assert found.tokens == found.num_bytes == corpus.train.num_bytes
    assert found.vocabulary.size == 257 + 4  # pad, mask, cls and sep are not in the store
    assert all(shown.sides[0].tokens[0].text == "⟨cls⟩" for shown in found.examples)


def test_examples_are_those_of_the_rows_that_are_given(corpus):
    from data.objectives.causal import CausalLM

    rows = store_rows(corpus.train, CausalLM(64), "best_fit")
    found = inspect_data(corpus.train, rows=rows, examples=1000, title="packed")
    assert found.title == "packed" and len(found.examples) == len(rows)
    segments = [max(token.segment for token in shown.sides[0].tokens) for shown in found.examples]
    assert sum(segments) == corpus.train.num_documents
    assert re.match(r"row 0 of \d+", found.examples[0].name)


class TwoClasses:
    """Rows of a task, as a user may write them."""

    def __init__(self):
        self.features = {name: ((4,), np.int32) for name in ("inputs", "segments")} | {"targets": ((), np.int32)}
        self.labels = {"bad": 1, "good": 2}

    def __len__(self):
        return 3

    def example(self, row, rng):
        inputs = np.array([97 + row, 256, 0, 0], np.int32)
        return {"inputs": inputs, "segments": np.array([1, 1, 0, 0], np.int32), "targets": np.array(int(row > 0))}


def test_rows_of_any_kind():
    found = inspect_data(TwoClasses(), tokenizer=ByteTokenizer(), examples=2)
    assert found.labels == {"bad": 1, "good": 2} and found.documents == 3 and found.tokens == 6
    assert {shown.other["targets"] for shown in found.examples} <= {"bad (0)", "good (1)"}
    assert "examples by label" in found.text()
    with pytest.raises(DataError, match="give tokenizer="):
        inspect_data(TwoClasses())


def test_objectives_with_settings(source):
    config = ObjectiveConfig("masked_lm", mask_rate=0.5)
    (shown,) = inspect_data(source, objective=config, examples=1, max_length=32).examples
    tokens = shown.sides[0].tokens
    ordinary = [token for token in tokens if token.text not in ("⟨cls⟩", "⟨sep⟩", "⟨eos⟩")]
    assert sum(bool(token.weight) for token in tokens) == round(0.5 * len(ordinary))


def test_errors_say_what_to_do(source, tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        inspect_data(tmp_path / "nothing.jsonl")
    with pytest.raises(DataError, match="no field 'body'; fields there: 'id', 'text'"):
        inspect_data(SourceConfig(str(source), text_field="body"))
    with pytest.raises(DataError, match="rows= belong to a store"):
        inspect_data(source, rows=TwoClasses())
    for name in ("examples", "seed", "max_documents"):
        with pytest.raises(DataError, match=f"{name} -1.* must be 0 or more"):
            inspect_data(source, **{name: -1})
    with pytest.raises(ValueError, match="objective.name = 'mlm'"):
        inspect_data(source, objective="mlm")


def test_real_text_in_two_languages(test_data):
    english = inspect_data(test_data("wikitext2/valid.txt"), examples=1)
    assert english.ngrams[1][0][0] == "the" and english.ngrams[3][0][1] > 50
    titles = test_data("thucnews_titles/dev.txt")
    chinese = inspect_data(SourceConfig(str(titles), document_separator="\n"), examples=1, max_length=32)
    assert chinese.documents == 10_000 and chinese.characters < chinese.num_bytes / 2
    assert dict(chinese.ngrams[2])["中国"] == titles.read_text(encoding="utf-8").count("中国") > 200


@pytest.mark.slow
def test_a_million_documents_in_two_gigabytes(tmp_path):
    """In a process of its own, as memory is counted at its peak."""
    import subprocess
    import sys

    program = f"""
from pathlib import Path
file = Path({str(tmp_path / "million.jsonl")!r})
with open(file, "w") as out:
    for n in range(1_000_000):
        out.write('{{"id": "%d", "text": "number %d of many"}}\\n' % (n, (n % 999_000) ** 2))
from data.inspection.inspection import inspect_data
from tests.peak import peak_memory
found = inspect_data(file, examples=5, max_length=32)
print(found.documents, found.duplicates.copies, round(peak_memory()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    documents, copies, megabytes = map(int, done.stdout.split())
    assert (documents, copies) == (1_000_000, 1000)
    assert megabytes < 2000
