import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest

from configs import defaults
from data import corpus as corpus_module
from data.corpus import prepare
from data.errors import DataError
from data.objectives.objectives import ObjectiveConfig, make_objective, special_names
from data.split import is_held_out
from data.store import build as build_module
from data.store import store as store_module
from data.store import survey as survey_module
from data.tokenizers.tokenizer import CharTokenizer, WithSpecials
from tests.data.conftest import PROSE, REPOSITORY, SOURCE


def quiet(_):
    pass


@pytest.fixture
def folder(tmp_path):
    """40 short documents."""
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(40):
        (texts / f"{number:02d}.txt").write_text(f"{number} {SOURCE}{PROSE}")
    return texts


def texts_of(corpus, store):
    """The documents of a store, decoded."""
    bounds = zip(store.document_starts[:-1], store.document_starts[1:], strict=True)
    return [corpus.tokenizer.decode(store.tokens[start:end]) for start, end in bounds]


@pytest.mark.parametrize("tokenizer", ["byte", "char", "sentencepiece"])
def test_every_document_is_in_its_split_word_for_word(config, folder, tokenizer):
    corpus = prepare(config(path=str(folder), tokenizer=tokenizer, held_out=0.3), quiet)
    texts = [file.read_text() for file in sorted(folder.iterdir())]
    assert texts_of(corpus, corpus.train) == [text for text in texts if not is_held_out(text, 0.3)]
    assert texts_of(corpus, corpus.held_out) == [text for text in texts if is_held_out(text, 0.3)]
    assert corpus.train.num_bytes + corpus.held_out.num_bytes == sum(len(text.encode()) for text in texts)
    assert (corpus.train.manifest["split"], corpus.held_out.manifest["split"]) == ("train", "held_out")
    ends = 0 if corpus.tokenizer.eos_id is None else len(texts)
    for store in (corpus.train, corpus.held_out):
        assert store.num_bytes == int(corpus.tokenizer.token_bytes_V[store.tokens].sum())
        assert store.manifest["tokenizer_fingerprint"] == corpus.tokenizer.fingerprint
    if tokenizer == "char":
        assert corpus.train.num_tokens + corpus.held_out.num_tokens == sum(map(len, texts)) + ends


def test_shakespeare_in_characters_is_nanogpts(config, test_data):
    path = test_data("tinyshakespeare/input.txt")
    corpus = prepare(config(path=str(path), tokenizer="char", held_out_by="tail"), quiet)
    text = path.read_bytes().decode()
    ids = {char: id for id, char in enumerate(sorted(set(text)))}
    assert corpus.tokenizer.vocab_size == 65
    assert (corpus.train.num_tokens, corpus.held_out.num_tokens) == (1_003_854, 111_540)
    assert corpus.train.tokens[:1000].tolist() == [ids[char] for char in text[:1000]]
    assert corpus.held_out.tokens[-1000:].tolist() == [ids[char] for char in text[-1000:]]


@pytest.mark.parametrize("tokenizer", ["byte", "char", "sentencepiece"])
def test_second_call_reuses_what_the_first_wrote(config, folder, monkeypatch, tokenizer):
    settings = config(path=str(folder), tokenizer=tokenizer)
    first = prepare(settings, quiet)

    def never(*_, **__):
        raise AssertionError("this was to be reused")

    for module, name in (
        (corpus_module, "build_stores"),
        (corpus_module, "read_documents"),
        (survey_module, "read_documents"),
        (corpus_module.SentencePieceTokenizer, "train"),
        (corpus_module.CharTokenizer, "train"),
        (store_module, "verify_store"),
    ):
        monkeypatch.setattr(module, name, never)
    lines = []
    second = prepare(settings, lines.append)
    assert second.fingerprint == first.fingerprint
    assert (second.train.folder, second.train.manifest) == (first.train.folder, first.train.manifest)
    assert lines[0] == f"data: 40 documents, 0.0 MB of {folder} (unchanged)"
    assert all("reused" in line for line in lines[1:]) and len(lines) == (3 if tokenizer == "byte" else 4)


def test_a_tokenizer_of_another_training_version_is_not_reused(config, folder, monkeypatch):
    settings = config(path=str(folder), tokenizer="sentencepiece")
    prepare(settings, quiet)
    monkeypatch.setattr(corpus_module, "TRAINING_VERSION", corpus_module.TRAINING_VERSION + 1)
    lines = []
    prepare(settings, lines.append)
    assert "trained" in lines[1]


def change_a_byte(folder):
    (folder / "07.txt").write_text("X" + (folder / "07.txt").read_text()[1:])


def change_a_name(folder):
    (folder / "07.txt").rename(folder / "07b.txt")


def change_the_order(folder):
    for old, new in (("07", "x"), ("08", "07"), ("x", "08")):
        (folder / f"{old}.txt").rename(folder / f"{new}.txt")


def change_where_documents_end(folder):
    text = (folder / "07.txt").read_text()
    (folder / "07.txt").write_text(text[:-1])
    (folder / "08.txt").write_text(text[-1] + (folder / "08.txt").read_text())


@pytest.mark.parametrize("change", [change_a_byte, change_a_name, change_the_order, change_where_documents_end])
def test_a_changed_source_has_another_fingerprint(config, folder, change):
    settings = config(path=str(folder))
    before = prepare(settings, quiet)
    change(folder)
    after = prepare(settings, quiet)
    assert after.fingerprint != before.fingerprint
    assert after.train.manifest["source_fingerprint"] != before.train.manifest["source_fingerprint"]


def test_names_and_texts_do_not_run_together_in_the_fingerprint(config, tmp_path):
    found = set()
    for records in (
        '{"id": "a", "text": "bc"}\n{"id": "d", "text": "e"}',
        '{"id": "ab", "text": "c"}\n{"id": "d", "text": "e"}',
    ):
        (tmp_path / "a.jsonl").write_text(records)
        found.add(prepare(config(path=str(tmp_path / "a.jsonl"), held_out_by="tail", held_out=0.4), quiet).fingerprint)
    assert len(found) == 2


def test_the_fingerprint_knows_split_and_tokenizer(config, folder):
    changes = [{}, {"held_out": 0.3}, {"held_out_by": "tail"}, {"tokenizer": "char"}]
    changes += [{"tokenizer": "sentencepiece"}, {"tokenizer": "sentencepiece", "tokenizer_vocab": 310}]
    made = [prepare(config(path=str(folder), **change), quiet).fingerprint for change in changes]
    assert len(set(made)) == len(changes)


def test_sentencepiece_never_sees_the_held_out_text(config, tmp_path):
    train, held_out = SOURCE * 20, "zyzzyva " * 50
    (tmp_path / "a.txt").write_text(train + held_out)
    fraction = len(held_out) / len(train + held_out)
    settings = config(path=str(tmp_path / "a.txt"), tokenizer="sentencepiece", held_out=fraction, held_out_by="tail")
    tokenizer = prepare(settings, quiet).tokenizer
    assert len(tokenizer.encode("zyzzyva")) == 7


def test_a_saved_tokenizer_is_loaded(config, folder, tmp_path, pieces):
    pieces.save(tmp_path / "saved")
    corpus = prepare(config(path=str(folder), tokenizer=str(tmp_path / "saved")), quiet)
    assert corpus.tokenizer.fingerprint == pieces.fingerprint
    with pytest.raises(DataError, match=r"did you mean .*saved"):
        prepare(config(path=str(folder), tokenizer=str(tmp_path / "savde")), quiet)


def test_a_published_tokenizer_is_loaded_for_masking(config, folder, tmp_path):
    published = tmp_path / "published"
    published.mkdir()
    letters = sorted(set((SOURCE + PROSE + "0123456789").lower()) - set(" \n\t"))
    texts = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (published / "vocab.txt").write_text("\n".join(texts) + "\n")
    corpus = prepare(config(path=str(folder), tokenizer=str(published)), quiet)
    assert (corpus.tokenizer.kind, corpus.tokenizer.vocab_size) == ("huggingface", len(texts))
    settings = ObjectiveConfig(name="masked_lm", mask_rate=0.5)
    tokenizer = WithSpecials(corpus.tokenizer, special_names(settings))
    assert (tokenizer.special_ids, tokenizer.vocab_size) == (corpus.tokenizer.special_ids, len(texts))
    objective = make_objective(settings, max_length=32, tokenizer=tokenizer)
    example = objective(np.asarray(corpus.train.tokens[:20]), np.random.default_rng(0))
    assert [example["inputs"][at] for at in (0, 21)] == [2, 3]  # [CLS] and [SEP]
    assert 4 in example["inputs"][1:21]  # [MASK]


def test_one_document_cannot_be_split_by_document(config, tmp_path):
    (tmp_path / "a.txt").write_text(PROSE)
    with pytest.raises(DataError, match=r"is 1 document.*held_out_by='tail'.*document_separator"):
        prepare(config(path=str(tmp_path / "a.txt")), quiet)


def test_an_empty_side_is_refused_with_numbers(config, tmp_path, folder):
    with pytest.raises(DataError, match=r"held_out 1e-09, 0 of 40 documents .* use held_out_by='tail'"):
        prepare(config(path=str(folder), held_out=1e-9), quiet)
    (tmp_path / "a.txt").write_text("abc")
    with pytest.raises(DataError, match=r"0.9 leaves 0 of 3 characters of .*a.txt to train on and 3 to hold out"):
        prepare(config(path=str(tmp_path / "a.txt"), held_out=0.9, held_out_by="tail"), quiet)


@pytest.mark.parametrize("tokenizer", ["byte", "char"])
def test_a_source_that_changed_behind_its_stamp_is_refused_once(config, folder, tokenizer):
    settings = config(path=str(folder), tokenizer=tokenizer, held_out=0.3)
    prepare(settings, quiet)
    shutil.rmtree(Path(settings.cache_dir) / "stores")
    shutil.rmtree(Path(settings.cache_dir) / "tokenizers", ignore_errors=True)
    file = folder / "07.txt"
    times = file.stat()
    change_a_byte(folder)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # size and time are what they were
    with pytest.raises(DataError, match="changed while it was read: run again"):
        prepare(settings, quiet)
    corpus = prepare(settings, quiet)
    texts = [*texts_of(corpus, corpus.train), *texts_of(corpus, corpus.held_out)]
    assert sorted(texts) == sorted(file.read_text() for file in folder.iterdir())


def test_a_changed_source_is_read_again_and_an_old_one_is_known(config, folder):
    settings, lines = config(path=str(folder)), []
    old = (folder / "07.txt").read_text()
    first = prepare(settings, quiet).fingerprint
    change_a_byte(folder)
    assert prepare(settings, quiet).fingerprint != first
    (folder / "07.txt").write_text(old)
    assert prepare(settings, lines.append).fingerprint == first  # read again: its time is new; its stores are there
    assert "unchanged" not in lines[0] and "reused" in lines[1]


@pytest.fixture
def mixture(config, folder, tmp_path):
    """A function that makes a DataConfig of two sources from changes of one of them, and of the rest."""
    records = ({"text": f"{number} {PROSE}", "id": f"n{number}", "quality": number / 3} for number in range(30))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    def make(second: dict, **changes):
        parts = {
            "texts": defaults.source(path=str(folder)),
            "records": defaults.source(path=str(tmp_path / "b.jsonl")),
        }
        for name, value in second.items():
            parts["records"][name] = value
        parts["texts"]["weight"] = parts["records"]["weight"]  # all have one, or none
        return config(path="", mixture=parts, held_out=0.3, **changes)

    return make


def test_each_source_of_a_mixture_has_its_own_stores(mixture, config, folder, tmp_path):
    corpus = prepare(mixture({"score_field": "quality", "licence": "CC0-1.0", "language": "en"}), quiet)
    assert list(corpus.parts) == ["records", "texts"]
    texts, records = corpus.parts["texts"], corpus.parts["records"]
    read = [file.read_text() for file in sorted(folder.iterdir())]
    assert texts_of(corpus, texts.held_out) == [text for text in read if is_held_out(text, 0.3)]
    numbers = [number for number in range(30) if not is_held_out(f"{number} {PROSE}", 0.3)]
    assert texts_of(corpus, records.train) == [f"{number} {PROSE}" for number in numbers]
    assert [records.train.document_id(at) for at in range(3)] == [f"n{number}" for number in numbers[:3]]
    assert np.asarray(records.train.scores).tolist() == (np.array(numbers) / 3).astype(np.float32).tolist()
    assert texts.train.scores is None
    known = {"path": str(tmp_path / "b.jsonl"), "licence": "CC0-1.0", "language": "en", "num_files": 1}
    assert known.items() <= records.train.manifest["provenance"].items()
    with pytest.raises(DataError, match="mixture of records, texts"):
        corpus.train  # noqa: B018
    # A source by itself has the very same stores.
    alone = prepare(config(path=str(folder), held_out=0.3), quiet)
    assert (alone.train.folder, alone.held_out.folder) == (texts.train.folder, texts.held_out.folder)
    assert alone.fingerprint != corpus.fingerprint


def stores_of(corpus):
    return {name: str(splits.train.folder) for name, splits in corpus.parts.items()}


def test_what_draws_from_a_mixture_tokenises_nothing_anew(mixture, monkeypatch):
    first = prepare(mixture({}), quiet)
    monkeypatch.setattr(corpus_module, "build_stores", lambda *_, **__: pytest.fail("tokenised again"))
    changes = [mixture({"max_epochs": 2.0}), mixture({}, mixture_temperature=2.0)]
    changes += [mixture({"weight": (1.0, 2.0)}, mixture_stages=(100,)), mixture({}, packing="best_fit", prefetch=0)]
    for changed in changes:
        assert prepare(changed, quiet).fingerprint == first.fingerprint
    with pytest.raises(pytest.fail.Exception):
        prepare(mixture({"score_field": "quality"}), quiet)


def test_a_source_that_changes_leaves_the_others_alone(mixture, tmp_path):
    first = prepare(mixture({}), quiet)
    with open(tmp_path / "b.jsonl", "a") as out:
        out.write('{"text": "one more"}\n')
    lines = []
    second = prepare(mixture({}), lines.append)
    before, after = stores_of(first), stores_of(second)
    assert before["texts"] == after["texts"] and before["records"] != after["records"]
    assert sum("texts: train" in line and "reused" in line for line in lines) == 1
    assert sum("records: train" in line and "tokenised" in line for line in lines) == 1
    assert first.fingerprint != second.fingerprint


def test_the_names_of_parts_are_in_the_fingerprint(mixture):
    settings = mixture({})
    parts = dict(settings.mixture)
    renamed = dataclasses.replace(settings, mixture={"texts": parts["texts"], "other": parts["records"]})
    first, second = prepare(settings, quiet), prepare(renamed, quiet)
    assert first.fingerprint != second.fingerprint
    assert stores_of(first)["records"] == stores_of(second)["other"]


@pytest.mark.parametrize("tokenizer", ["char", "sentencepiece"])
def test_a_tokenizer_of_a_mixture_sees_the_training_text_of_all_parts(config, tmp_path, tokenizer):
    for name, word in (("a", "zyzzyva"), ("b", "quokka")):
        (tmp_path / f"{name}.txt").write_text(f"{word} " * 300 + "Ω" * 20)
    parts = {name: defaults.source(path=str(tmp_path / f"{name}.txt")) for name in "ab"}
    settings = config(
        path="", mixture=parts, tokenizer=tokenizer, held_out_by="tail", held_out=0.002, tokenizer_vocab=290
    )
    learned = prepare(settings, quiet).tokenizer
    if tokenizer == "char":
        assert isinstance(learned, CharTokenizer) and learned.chars == "".join(sorted(set("zyzzyva quokkaΩ")))
    else:
        assert all(len(learned.encode(f" {word}")) < 4 for word in ("zyzzyva", "quokka"))
    (tmp_path / "b.txt").write_text("numbat " * 300)
    assert prepare(settings, quiet).tokenizer.fingerprint != learned.fingerprint


def test_a_store_of_another_tokenizer_in_the_cache_is_refused(config, folder):
    settings = config(path=str(folder))
    file = Path(prepare(settings, quiet).train.folder) / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_fingerprint": "another"}))
    with pytest.raises(DataError, match="fingerprint another, not of this byte one"):
        prepare(settings, quiet)


def test_an_interrupted_corpus_goes_on(config, folder, monkeypatch):
    monkeypatch.setattr(build_module, "BATCH_CHARACTERS", 3000)
    settings, unbroken = config(path=str(folder)), config(path=str(folder), cache_dir=str(folder.parent / "other"))
    with monkeypatch.context() as patch:
        calls, write = [], build_module.write_file

        def dying(path, journal):
            write(path, journal)
            calls.append(path)
            if len(calls) == 3:
                raise KeyboardInterrupt

        patch.setattr(build_module, "write_file", dying)
        with pytest.raises(KeyboardInterrupt):
            prepare(settings, quiet)
    lines = []
    first, second = prepare(settings, lines.append), prepare(unbroken, quiet)
    assert any("going on after" in line for line in lines)
    assert first.fingerprint == second.fingerprint
    for name in first.train.manifest["digests"]:
        assert (first.train.folder / name).read_bytes() == (second.train.folder / name).read_bytes()


def test_a_damaged_store_is_refused_and_not_used(config, folder):
    settings = config(path=str(folder))
    file = Path(prepare(settings, quiet).train.folder) / "tokens.bin"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"tokens\.bin was changed.*delete the folder"):
        prepare(settings, quiet)


def _prepare_at_once(settings, barrier, results):
    barrier.wait()
    corpus = prepare(settings, quiet)
    results.put((corpus.fingerprint, np.asarray(corpus.train.tokens).tobytes()))


def test_processes_that_prepare_at_once_agree(config, folder):
    settings = config(path=str(folder), tokenizer="sentencepiece")
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_prepare_at_once, args=(settings, barrier, results)) for _ in range(3)]
    for process in processes:
        process.start()
    made = [results.get(timeout=180) for _ in processes]
    for process in processes:
        process.join()
    assert len(set(made)) == 1
    assert not list(Path(settings.cache_dir).rglob(".*"))  # temporary folders are gone


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
@pytest.mark.parametrize("side", ["train", "held_out"])
def test_the_advice_about_a_damaged_store_helps(config, folder, side, damage):
    settings = config(path=str(folder))
    store = getattr(prepare(settings, quiet), side)
    before = {name: (Path(store.folder) / name).read_bytes() for name in store.manifest["digests"]}
    file = Path(store.folder) / "tokens.bin"
    content = file.read_bytes()
    file.unlink()
    if damage != "remove":
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:] if damage == "flip" else content[:-2])
    with pytest.raises(DataError, match="delete the folder") as error:
        prepare(settings, quiet)
    assert str(store.folder) in str(error.value)
    shutil.rmtree(store.folder)
    lines = []
    again = getattr(prepare(settings, lines.append), side)
    assert {name: (Path(again.folder) / name).read_bytes() for name in before} == before
    assert any(f"{Path(store.folder).parent} is not whole: building it again" in line for line in lines)


def test_what_is_recorded_follows_the_config_without_another_reading(config, folder, monkeypatch):
    first = prepare(config(path=str(folder), licence="MIT"), quiet)
    monkeypatch.setattr(survey_module, "read_documents", lambda *_, **__: pytest.fail("read again"))
    monkeypatch.setattr(store_module, "verify_store", lambda *_: pytest.fail("verified again"))
    settings = config(path=str(folder), licence="CC0-1.0", language="en")
    for _ in range(2):
        corpus = prepare(settings, quiet)
        assert corpus.fingerprint == first.fingerprint and corpus.train.folder == first.train.folder
        for store in (corpus.train, corpus.held_out, store_module.open_store(corpus.train.folder)):
            recorded = store.manifest["provenance"]
            assert (recorded["licence"], recorded["language"], recorded["num_files"]) == ("CC0-1.0", "en", 40)
            assert (recorded["text_field"], recorded["id_field"], recorded["document_separator"]) == ("text", "id", "")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokenizer": "/nowhere/tokenizer"}, "/nowhere/tokenizer"),
        ({"tokenizer": "sentencepiece", "tokenizer_vocab": 261}, "261 ids is too small.* 262 or more"),
        ({"cache_dir": "/dev/null/cache"}, "cache_dir '/dev/null/cache' cannot be written"),
        ({"cache_dir": "s3://bucket/cache"}, "s3://bucket/cache' is a URL.*of this machine"),
        ({"mixture": ("a", "nowhere")}, "nowhere.*does not exist"),
        ({"text_field": "body"}, "text_field='body' would change nothing"),
    ],
)
def test_what_is_wrong_with_names_is_said_before_anything_is_read(config, folder, monkeypatch, changes, words):
    monkeypatch.setattr(survey_module, "read_documents", lambda *_, **__: pytest.fail("read"))
    if "mixture" in changes:
        paths = {"a": folder, "nowhere": folder / "nowhere"}
        changes = {"path": "", "mixture": {name: defaults.source(path=str(path)) for name, path in paths.items()}}
    with pytest.raises(DataError, match=words):
        prepare(config(**{"path": str(folder)} | changes), quiet)


def test_a_folder_says_once_what_of_it_is_not_read(config, folder):
    (folder / "a.pdf").write_text("x")
    (folder / "b.json").write_text("x")
    (folder / "c.json").write_text("x")
    lines = []
    prepare(config(path=str(folder), tokenizer="char"), lines.append)
    said = [line for line in lines if "not read" in line]
    assert said == [f"data: {folder}: 40 files are read; not read, by suffix: 2 .json, 1 .pdf"]


def test_what_is_cached_of_a_url_is_used_without_the_network(config, folder, monkeypatch):
    memory = fsspec.filesystem("memory")
    for name in ("known", "unknown"):
        memory.pipe(f"/{name}-{folder.name}/a.jsonl", b"".join(b'{"text": "text %d"}\n' % n for n in range(50)))
    settings = config(path=f"memory://known-{folder.name}", tokenizer="char", held_out=0.3)
    first = prepare(settings, quiet)

    def unplugged(*_, **__):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(type(memory), "info", unplugged)
    monkeypatch.setattr(type(memory), "find", unplugged)
    lines = []
    second = prepare(settings, lines.append)
    assert (second.fingerprint, second.train.manifest) == (first.fingerprint, first.train.manifest)
    assert "no route to host" in lines[0] and "going on with what was read of it before, 50 documents" in lines[0]
    with pytest.raises(DataError, match="no route to host"):
        prepare(dataclasses.replace(settings, path=f"memory://unknown-{folder.name}"), quiet)
    with pytest.raises(DataError, match="no route to host"):  # read with other settings, it may be other documents
        prepare(dataclasses.replace(settings, id_field="other"), quiet)


DYING = """
import os, pathlib, signal, sys
import fsspec
from configs import defaults
from data.config import DataConfig
from data.corpus import prepare
from data.tokenizers.tokenizer import SentencePieceTokenizer

def half_a_tokenizer(self, folder):
    pathlib.Path(folder, "tokenizer.json").write_text("{")
    os.kill(os.getpid(), signal.SIGKILL)

def half_a_file(self, path, target, **_):
    pathlib.Path(target).write_bytes(b'{"text": "half')
    os.kill(os.getpid(), signal.SIGKILL)

path, cache, moment = sys.argv[1:]
if moment == "tokenizer":
    SentencePieceTokenizer.save = half_a_tokenizer
else:
    type(fsspec.filesystem("file")).get_file = half_a_file
changes = {"path": path, "cache_dir": cache, "tokenizer": "sentencepiece", "tokenizer_vocab": 300}
prepare(DataConfig(**dict(defaults.get_config().data) | changes), print)
"""


@pytest.mark.parametrize("moment", ["tokenizer", "download"])
def test_a_kill_leaves_nothing_half(config, folder, moment):
    path, cache = f"file://{folder}", folder.parent / "cache"
    arguments = [sys.executable, "-c", DYING, path, str(cache), moment]
    died = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True, timeout=180, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    (left,) = [*cache.glob("tokenizers/.*.tmp"), *cache.glob("remote/.*.tmp")]
    settings = config(path=path, cache_dir=str(cache), tokenizer="sentencepiece")
    unbroken = prepare(dataclasses.replace(settings, cache_dir=str(cache.with_name("other"))), quiet)
    os.utime(left, (1, 1))  # some weeks later
    corpus = prepare(settings, quiet)
    assert (corpus.fingerprint, corpus.tokenizer.fingerprint) == (unbroken.fingerprint, unbroken.tokenizer.fingerprint)
    assert not left.exists()


def test_a_dataset_of_a_known_revision_is_not_streamed_again(config, monkeypatch):
    rows, commits, streamed = [{"text": f"text {number}"} for number in range(50)], ["first"], []

    class Rows(list):
        column_names = None

    def load_dataset(name, config, **options):
        streamed.append(options["revision"])
        return Rows(rows)

    class HfApi:
        def dataset_info(self, name):
            if not commits:
                raise ConnectionError("offline mode is enabled")
            return SimpleNamespace(sha=commits[-1])

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=HfApi))
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    settings = config(path="hf:owner/name", held_out=0.3)
    first = prepare(settings, quiet)
    assert streamed == ["first", "first"]  # surveyed, tokenised
    assert first.train.manifest["provenance"]["revision"] == "first"
    assert prepare(settings, quiet).fingerprint == first.fingerprint and len(streamed) == 2
    commits.append("second")  # of a README, say
    second = prepare(settings, quiet)
    assert second.fingerprint == first.fingerprint and streamed == ["first", "first", "second"]
    assert second.train.manifest["provenance"]["revision"] == "second"
    commits.clear()
    lines = []
    offline = prepare(settings, lines.append)
    assert (offline.fingerprint, offline.train.manifest) == (first.fingerprint, second.train.manifest)
    assert len(streamed) == 3 and "offline mode is enabled" in lines[0]
