import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from data.errors import DataError
from data.loader import BatchLoader, held_out_batches
from data.tasks.compact import CompactRows, Row
from data.tasks.examples import Labelled, Question, Tagged, TextPair
from data.tasks.task import KINDS, METRICS
from data.tasks.tasks import TASKS, task_rows
from data.tokenizers.tokenizer import ByteTokenizer

REVIEWS = [Labelled(f"f:{at}", "abc" * at, ("negative", "positive")[at % 2]) for at in range(1, 5)]


def test_every_task_is_of_a_known_kind_and_metric_and_its_templates_fit():
    fields = {
        "classification": {"text", "pair"},
        "tagging": {"text"},
        "span": {"question", "context"},
        "text_to_text": {"source"},
        "dialogue": {"role"},
    }
    for name, task in TASKS.items():
        assert task.name == name and task.kind in KINDS and task.metric in METRICS
        known = dict.fromkeys(fields[task.kind], "x")
        assert task.source.format_map(known) != task.source or task.kind == "dialogue"
        assert task.prompt.format_map(known) != task.prompt and task.prompt.endswith("\n")


def test_examples_check_themselves():
    for spans in ([(0, 2), (1, 3)], [(0, 4)], [(2, 3), (0, 1)]):
        with pytest.raises(DataError, match="f:1: tokens overlap, or are not in a text of 3 characters"):
            Tagged("f:1", "abc", tuple(spans), ("O",) * len(spans))
    with pytest.raises(DataError, match="f:1: 1 tokens and 2 tags"):
        Tagged("f:1", "abc", ((0, 1),), ("O", "O"))
    for start in (-1, 1, 9):
        with pytest.raises(DataError, match=f"f:1: the answer 'a' is not at {start} of its context"):
            Question("f:1", "q", "Who?", "abc", ((start, "a"),))


def test_labels_are_those_of_the_examples_or_of_the_task(bytes_bert):
    examples = [Labelled("f:1", "a", "y"), Labelled("f:2", "b", "x"), Labelled("f:3", "c", "y")]
    rows = task_rows(TASKS["classification"], examples, bytes_bert, max_length=8)
    assert rows.labels == {"x": 1, "y": 2} and [int(rows.example(row)["targets"]) for row in range(3)] == [1, 0, 1]
    declared = replace(TASKS["classification"], labels=("y", "z", "x"))
    rows = task_rows(declared, examples, bytes_bert, max_length=8)
    assert rows.labels == {"y": 2, "z": 0, "x": 1} and [int(rows.example(row)["targets"]) for row in range(3)] == [
        0,
        2,
        0,
    ]
    tagged = Tagged("f:1", "a b", ((0, 1), (2, 3)), ("O", "B-a"))
    assert task_rows(TASKS["tagging"], [tagged], bytes_bert, max_length=8).labels == {"B-a": 1, "O": 1}


def test_a_split_that_lacks_a_label_keeps_the_ids_of_the_others(bytes_bert):
    train = [Labelled(f"f:{at}", "a", fruit) for at, fruit in enumerate(("cherry", "apple", "banana"))]
    rows = task_rows(TASKS["classification"], train, bytes_bert, max_length=8)
    assert rows.label_names == ("apple", "banana", "cherry")
    assert "labels collected from these examples: apple 1 (33.3%)" in rows.report()
    test = task_rows(TASKS["classification"], train[2:], bytes_bert, max_length=8, labels=rows.label_names)
    assert test.labels == {"apple": 0, "banana": 1, "cherry": 0} and test.example(0)["targets"] == 1
    assert "\nlabels: apple 0" in test.report()
    tagged = Tagged("f:1", "EU", ((0, 2),), ("I-LOC",))
    known = task_rows(TASKS["conll2003"], [tagged], bytes_bert, max_length=8)
    assert known.example(0)["targets"].tolist()[1] == known.label_names.index("I-LOC") == 2
    assert known.label_names == ("O", *(f"{tag}-{kind}" for kind in ("LOC", "MISC", "ORG", "PER") for tag in "BI"))


def test_labels_that_cannot_be_are_refused(bytes_bert):
    for labels, why in ((("a", "b", "a"), "labels= has 'a' more than once"), ((), "f:1: label 'negative'|'positive'")):
        with pytest.raises(DataError, match=why):
            task_rows(TASKS["sst2"], REVIEWS, bytes_bert, max_length=64, labels=labels)
    pair = [TextPair("f:1", "a", "b")]
    with pytest.raises(DataError, match=r"text_to_text \(text_to_text\) has no labels: leave out labels="):
        task_rows(TASKS["text_to_text"], pair, bytes_bert, "decoder", max_length=8, labels=("b",))


@pytest.mark.parametrize("task", ["wnut17", "weibo_ner"])
def test_declared_tags_are_those_of_the_published_files(test_data, task):
    folder = test_data(task)
    found = {tag for file in folder.iterdir() for e in TASKS[task].read(file, Counter()) for tag in e.tags}
    assert found == set(TASKS[task].labels)


@pytest.mark.parametrize("form", ["encoder", "decoder"])
def test_a_label_outside_the_set_has_its_place(bytes_bert, form):
    examples = [*REVIEWS, Labelled("f:9", "a", "positiv")]
    with pytest.raises(DataError, match="f:9: label 'positiv' is not one of the 2 of sst2: did you mean 'positive'"):
        task_rows(TASKS["sst2"], examples, bytes_bert, form, max_length=64)
    tagged = Tagged("f:7", "a", ((0, 1),), ("Q",))
    with pytest.raises(DataError, match="f:7: label 'Q' is not one of the 6 of tag_tokens: use one of COMMENT, KEYW"):
        task_rows(TASKS["tag_tokens"], [tagged], bytes_bert, form, max_length=64)


def test_tokenizers_without_what_a_form_needs_are_refused(bytes_bert):
    pair = [TextPair("f:1", "a", "b")]
    with pytest.raises(DataError, match=r"byte tokenizer puts none before a text: use WithSpecials\(tokenizer, .*cls"):
        task_rows(TASKS["sst2"], REVIEWS, ByteTokenizer(), max_length=8)
    with pytest.raises(DataError, match=r"byte tokenizer has no pad, with which the decoder begins: use WithSpecials"):
        task_rows(TASKS["text_to_text"], pair, ByteTokenizer(), "text_to_text", max_length=8)
    ends = bytes_bert.__class__(ByteTokenizer(), ("pad",))
    with pytest.raises(DataError, match="with_specials tokenizer puts no end after a text"):
        task_rows(TASKS["text_to_text"], pair, ends, "text_to_text", max_length=8)
    with pytest.raises(DataError, match=r"text_to_text \(text_to_text\) has no form 'encoder'"):
        task_rows(TASKS["text_to_text"], pair, bytes_bert, max_length=8)


def test_settings_that_cannot_be_are_refused(bytes_bert):
    with pytest.raises(DataError, match="form 'head' is not one of encoder, decoder, text_to_text"):
        task_rows(TASKS["sst2"], REVIEWS, bytes_bert, "head", max_length=8)
    with pytest.raises(DataError, match="sst2: no example"):
        task_rows(TASKS["sst2"], [], bytes_bert, max_length=8)
    for options in ({"max_length": 7}, {"max_length": 8, "target_length": 0}):
        with pytest.raises(DataError, match="must be 8 or more"):
            task_rows(TASKS["sst2"], REVIEWS, bytes_bert, **options)
    with pytest.raises(DataError, match="max_length 16 .* target_length 16 .* the prompt needs room too"):
        task_rows(TASKS["sst2"], REVIEWS, bytes_bert, "decoder", max_length=16, target_length=16)


def test_the_report_says_what_was_cut_and_how_labels_balance(bytes_bert):
    rows = task_rows(TASKS["sst2"], [*REVIEWS, Labelled("f:5", "x", "negative")], bytes_bert, max_length=12)
    assert rows.truncated == 1
    assert rows.report().split("\n") == [
        "sst2 (classification, encoder): 5 examples, 5 rows, 1 of them truncated",
        "labels: negative 3 (60.0%), positive 2 (40.0%)",
        "tokens of a row: median 8, 95 % have up to 13, the longest 14",
    ]


def test_rows_make_batches_of_one_shape_and_travel_to_workers(bytes_bert):
    rows = task_rows(TASKS["sst2"], REVIEWS, bytes_bert, max_length=16)
    batch = {name: np.stack([rows.example(row)[name] for row in range(len(rows))]) for name in rows.features}
    assert {name: array.shape for name, array in batch.items()} == {
        "inputs": (4, 16),
        "segments": (4, 16),
        "targets": (4,),
        "weights": (4,),
    }
    (loaded,) = held_out_batches(rows, batch_size=5, max_sequences=0)
    assert loaded["weights"].tolist() == [1, 1, 1, 1, 0]
    assert all((loaded[name][:4] == batch[name]).all() for name in batch)
    drawn = BatchLoader(rows, global_batch=4, seed=0).batch(3)
    assert sorted(drawn["inputs"].tolist()) == sorted(batch["inputs"].tolist())
    sent = pickle.loads(pickle.dumps(rows))  # noqa: S301  (our own bytes)
    assert sent.example(2)["inputs"].tolist() == batch["inputs"][2].tolist() and sent.report() == rows.report()
    with pytest.raises(IndexError):
        rows.example(4)


def test_a_row_takes_few_bytes(bytes_t5):
    """Two for each id, one for each weight, and no Python object of its own."""
    examples = [TextPair(f"f:{at}", "a" * (900 + at % 7), "b" * 100) for at in range(500)]
    rows = task_rows(
        TASKS["cnn_dailymail"], examples, bytes_t5, "text_to_text", max_length=1024, target_length=128, truncate=False
    )
    taken = len(pickle.dumps(rows.rows)) / len(rows)
    assert taken < 2 * (len("summarize: ") + 907 + 1 + 2 * 101) + 101 + 60
    assert [rows.rows.length_R[at] for at in (0, 6, 7)] == [912, 918, 912] and rows.truncated == 0
    assert bytes_t5.decode(rows.example(6)["source"]) == "summarize: " + "a" * 906


def test_ids_of_a_large_vocabulary_stay_what_they_are():
    arrays = [{"inputs": np.array(ids), "weights": np.ones(len(ids))} for ids in ([1, 65_535], [65_536, 7], [], [9])]
    kept = CompactRows(Row(at, array, len(array["inputs"]), False) for at, array in enumerate(arrays))
    assert [kept.arrays(row)["inputs"].tolist() for row in range(4)] == [[1, 65_535], [65_536, 7], [], [9]]
    assert kept.arrays(-1)["inputs"].tolist() == [9] and kept.length_R.tolist() == [2, 2, 0, 1]
    with pytest.raises(IndexError):
        kept.arrays(4)
