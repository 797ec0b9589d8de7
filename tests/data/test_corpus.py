import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from data import corpus as corpus_module
from data.corpus import prepare
from data.errors import DataError
from data.objectives import ObjectiveConfig, make_objective, special_names
from data.sources import Document
from data.split import is_held_out
from data.tokenizers import WithSpecials
from tests.data.conftest import PROSE, SOURCE


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


def test_second_call_reuses_what_the_first_wrote(config, folder, monkeypatch):
    settings = config(path=str(folder), tokenizer="sentencepiece")
    first = prepare(settings, quiet)

    def never(*_, **__):
        raise AssertionError("this was to be reused")

    monkeypatch.setattr(corpus_module, "write_store", never)
    monkeypatch.setattr(corpus_module.SentencePieceTokenizer, "train", never)
    lines = []
    second = prepare(settings, lines.append)
    assert second.fingerprint == first.fingerprint
    assert (second.train.folder, second.train.manifest) == (first.train.folder, first.train.manifest)
    assert [("reused" in line) for line in lines] == [False, True, True, True]
    assert "40 documents" in lines[0]


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
    assert [example["inputs"][at] for at in (0, 21, 22)] == [2, 3, 0]  # [CLS], [SEP] and padding
    assert 4 in example["inputs"][1:21]  # [MASK]


def test_one_document_cannot_be_split_by_document(config, tmp_path):
    (tmp_path / "a.txt").write_text(PROSE)
    with pytest.raises(DataError, match=r"is 1 document.*held_out_by='tail'.*document_separator"):
        prepare(config(path=str(tmp_path / "a.txt")), quiet)


def test_an_empty_side_is_refused_with_numbers(config, tmp_path, folder):
    with pytest.raises(DataError, match=r"held_out 1e-09, 0 of 40 documents .* use held_out_by='tail'"):
        prepare(config(path=str(folder), held_out=1e-9), quiet)
    (tmp_path / "a.txt").write_text("abc")
    with pytest.raises(DataError, match=r"held_out of 0.9 leaves 0 of 3 characters to train on and 3 to hold out"):
        prepare(config(path=str(tmp_path / "a.txt"), held_out=0.9, held_out_by="tail"), quiet)


def test_a_source_that_changes_while_it_is_read_is_refused(config, monkeypatch):
    readings = iter([["a", "b", "c", "d"], ["a", "b", "c", "D"]])
    documents = lambda *_, **__: (Document(text, text) for text in next(readings))  # noqa: E731
    monkeypatch.setattr(corpus_module, "read_documents", documents)
    with pytest.raises(DataError, match="changed while it was read"):
        prepare(config(held_out=0.5), quiet)


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
    made = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert len(set(made)) == 1
    assert not list(Path(settings.cache_dir).rglob(".*"))  # temporary folders are gone
