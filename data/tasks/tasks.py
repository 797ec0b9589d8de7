"""All tasks by name, and their examples as rows that a loader draws from.

An example of each kind, and what it asks of the network:
classification  Labelled("a.tsv:1", "so good", "positive"): one of the labels
tagging         Tagged("a.conll:1", "EU rejects", ((0, 2), (3, 10)), ("B-ORG", "O")): a label for each token
span            Question("a.json:q1", "q1", "Who?", "In 1066 they came.", ((8, "they"),)): where the answer stands
text_to_text    TextPair("a.tsv:1", "Guten Tag.", "Good day."): the target, written
dialogue        Dialogue("a.jsonl:1", (("user", "Hi"), ("assistant", "Hello"))): each reply, written
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from data.errors import DataError, nearest
from data.objectives.examples import Features
from data.objectives.pairs import Seq2Seq
from data.tasks.classification import CLASSIFICATION
from data.tasks.compact import CompactRows, Row
from data.tasks.dialogue import DIALOGUE
from data.tasks.encoding import label_rows, span_rows, tag_rows
from data.tasks.examples import Labelled, Question, Tagged, TaskExample
from data.tasks.questions import QUESTIONS
from data.tasks.rows import Limits, TaskRows, decoder_features, encoder_features
from data.tasks.standard_library import STANDARD_LIBRARY_TASKS
from data.tasks.tagging import TAGGING
from data.tasks.task import Task
from data.tasks.texts import pair_rows, prompt_rows
from data.tasks.writing import WRITING
from data.tokenizers.tokenizer import Tokenizer

FORMS = ("encoder", "decoder", "text_to_text")
TASKS: dict[str, Task] = {
    task.name: task for task in (*CLASSIFICATION, *TAGGING, *QUESTIONS, *WRITING, *DIALOGUE, *STANDARD_LIBRARY_TASKS)
}


def find_task(name: str) -> Task:
    """The task of this name. Raises DataError with the nearest, or all."""
    if name not in TASKS:
        raise DataError(f"there is no task {name!r}: {nearest(name, TASKS)}")
    return TASKS[name]


def task_rows(
    task: Task,
    examples: Iterable[TaskExample],
    tokenizer: Tokenizer,
    form: str = "encoder",
    *,
    max_length: int,
    labels: Sequence[str] | None = None,
    target_length: int | None = None,
    truncate: bool = True,
    stride: int = 0,
    token_types: bool = True,
) -> TaskRows:
    """The examples of `task.read` as rows.

    `form`: "encoder" for a network with a head for the task's kind; "decoder", a prompt and an answer, which alone is
    learned; "text_to_text", a source for an encoder and an answer. `max_length`: tokens of a row (of the source).
    `target_length`: of an answer, for the two forms that write; None: half of max_length. What is longer is cut and
    counted (`truncated`), or with truncate=False a DataError with the place. `stride`: of a span task, tokens from one
    window to the next; 0: half of what fits. `token_types`: whether the network has types for the texts of a pair.

    `labels`: of classes or tags, by id; None: those that the task declares, else the ones of these examples, sorted.
    Another split may lack some of these, and number the rest anew: give it `labels=rows.label_names` of the training
    rows.

    Raises DataError for a label that is not one of the task's, a tokenizer without the special ids that the form needs,
    and a form that the kind of the task does not have.
    """
    examples = tuple(examples)
    if form not in FORMS:
        raise DataError(f"form {form!r} is not one of {', '.join(FORMS)}")
    if not examples:
        raise DataError(f"{task.name}: no example")
    target = max(1, max_length // 2) if target_length is None else target_length
    if max_length < 8 or target < 1 or (form == "decoder" and target >= max_length):
        raise DataError(
            f"max_length {max_length} must be 8 or more, target_length {target} 1 or more, and a decoder's less than "
            "max_length: the prompt needs room too"
        )
    known, collected = _known_labels(task, examples, labels)
    counts = _label_counts(task, examples, known)
    pairs = any(isinstance(e, Question) or (isinstance(e, Labelled) and e.pair) for e in examples)
    limits = Limits(max_length, target, truncate, stride, token_types and pairs)
    if form == "encoder":
        rows, features = _encoder_rows(task, examples, tokenizer, limits, counts)
    elif form == "decoder":
        rows, features = prompt_rows(task, examples, tokenizer, limits), decoder_features(max_length)
    else:
        make = _seq2seq(tokenizer, limits)
        rows, features = pair_rows(task, examples, tokenizer, make), make.features
    pad_id = tokenizer.special_ids.get("pad", 0)  # what no weight and no segment shows: 0 is as good
    return TaskRows(task, form, examples, CompactRows(rows), features, pad_id, counts, collected)


def _encoder_rows(
    task: Task, examples: Sequence[Any], tokenizer: Tokenizer, limits: Limits, labels: dict[str, int]
) -> tuple[Iterator[Row], Features]:
    id_of = {label: id for id, label in enumerate(labels)}
    if task.kind == "tagging":
        return tag_rows(examples, tokenizer, limits, id_of), encoder_features(limits, (limits.max_length,))
    if task.kind not in ("classification", "span"):
        raise DataError(f"{task.name} ({task.kind}) has no form 'encoder': use 'decoder' or 'text_to_text'")
    if tokenizer.wrap([-1])[0] == -1:
        raise DataError(
            f"{task.name} is read off the first token, and the {tokenizer.kind} tokenizer puts none before a text: "
            "use WithSpecials(tokenizer, ('pad', 'cls', 'sep'))"
        )
    if task.kind == "span":
        return span_rows(examples, tokenizer, limits), encoder_features(limits, (2,))
    return label_rows(examples, tokenizer, limits, id_of), encoder_features(limits, ())


def _seq2seq(tokenizer: Tokenizer, limits: Limits) -> Seq2Seq:
    pad = tokenizer.special_ids.get("pad")
    if pad is None or tokenizer.wrap([-1])[-1] == -1:
        lacks = "has no pad, with which the decoder begins" if pad is None else "puts no end after a text"
        way = "use WithSpecials(tokenizer, ('pad', 'eos', 'extra_0'))"
        raise DataError(f"the {tokenizer.kind} tokenizer {lacks}: {way}")
    return Seq2Seq(limits.max_length, limits.target_length, pad, decoder_start_id=pad, truncate=limits.truncate)


def _known_labels(task: Task, examples: Sequence[Any], given: Sequence[str] | None) -> tuple[Sequence[str], bool]:
    """The labels by id, and whether they had to be collected from the examples; nothing for tasks without labels."""
    if task.kind not in ("classification", "tagging"):
        if given is not None:
            raise DataError(f"{task.name} ({task.kind}) has no labels: leave out labels=")
        return (), False
    known = task.labels if given is None else tuple(given)
    if twice := [label for label, count in Counter(known).items() if count > 1]:
        raise DataError(f"labels= has {twice[0]!r} more than once: an id has one label, and a label one id")
    if known or given is not None:
        return known, False
    return sorted({label for example in examples for label in _labels_of(example)}), True


def _label_counts(task: Task, examples: Sequence[Any], known: Sequence[str]) -> dict[str, int]:
    """How many examples, or tokens, have each label, in the order of ids. Raises DataError for an unknown label."""
    counts = dict.fromkeys(known, 0)
    for example in examples if task.kind in ("classification", "tagging") else ():
        for label in _labels_of(example):
            if label not in counts:
                hint = nearest(label, known, f"use one of {', '.join(known)[:200]}, or give labels=")
                raise DataError(
                    f"{example.place}: label {label!r} is not one of the {len(known)} of {task.name}: {hint}"
                )
            counts[label] += 1
    return counts


def _labels_of(example: Labelled | Tagged) -> tuple[str, ...]:
    return example.tags if isinstance(example, Tagged) else (example.label,)
