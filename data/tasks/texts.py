"""Examples as a model that writes reads them: a prompt that it continues, or a source that it answers."""

from collections.abc import Iterator, Sequence

import numpy as np

from data.objectives.pairs import Seq2Seq
from data.tasks.compact import Row
from data.tasks.examples import Dialogue, TaskExample
from data.tasks.rows import Limits
from data.tasks.task import Task, answer_text
from data.tokenizers.tokenizer import Tokenizer


def prompt_parts(task: Task, example: TaskExample) -> list[tuple[str, bool]]:
    """The texts that a decoder reads in turn, and whether each is learned: the answer, or the replies."""
    if not isinstance(example, Dialogue):
        return [(task.prompt.format_map(vars(example)), False), (answer_text(example), True)]
    parts = []
    for role, text in example.turns:
        parts += [(task.prompt.format(role=role), False), (text, role == "assistant"), ("\n", False)]
    return parts[:-1]


def source_pairs(task: Task, example: TaskExample) -> list[tuple[str, str]]:
    """The texts that an encoder reads and a decoder answers with; of a dialogue, one pair for each reply."""
    if not isinstance(example, Dialogue):
        return [(task.source.format_map(vars(example)), answer_text(example))]
    pairs, before = [], ""
    for role, text in example.turns:
        opened = before + task.prompt.format(role=role)
        if role == "assistant":
            pairs.append((opened, text))
        before = f"{opened}{text}\n"
    return pairs


def prompt_rows(task: Task, examples: Sequence[TaskExample], tokenizer: Tokenizer, limits: Limits) -> Iterator[Row]:
    """`inputs`, `targets`, `weights` (T,): next-token prediction with a loss on what is learned, and on its end.

    Each part is encoded for itself, as it is when the model is asked. A learned part is followed by eos, where there
    is one, and loses its end beyond target_length; what is still too long loses its beginning.
    """
    ends = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    for number, example in enumerate(examples):
        texts, learned = zip(*prompt_parts(task, example), strict=True)
        encoded = [
            np.append(ids, ends).astype(np.int32) if learn else ids
            for ids, learn in zip(tokenizer.encode_batch(texts), learned, strict=True)
        ]
        begin = np.array(tokenizer.begin_ids, np.int32)
        length = len(begin) + sum(map(len, encoded)) - 1
        cut = False
        for at, learn in enumerate(learned):
            if learn and limits.check(example.place, len(encoded[at]), limits.target_length, "target_length"):
                kept = limits.target_length - len(ends)
                encoded[at], cut = np.append(encoded[at][:kept], ends).astype(np.int32), True
        weights = np.concatenate([np.full(len(ids), learn) for ids, learn in zip(encoded, learned, strict=True)])
        ids = np.concatenate(encoded)
        room = limits.max_length + 1 - len(begin)
        cut |= limits.check(example.place, len(begin) + len(ids) - 1, limits.max_length)
        ids, weights = np.append(begin, ids[-room:]), np.append(np.zeros(len(begin)), weights[-room:])
        arrays = {"inputs": ids[:-1], "targets": ids[1:], "weights": weights[1:].astype(np.float32)}
        yield Row(number, arrays, length, cut)


def pair_rows(task: Task, examples: Sequence[TaskExample], tokenizer: Tokenizer, make: Seq2Seq) -> Iterator[Row]:
    """What `make` makes of each source and target; both end as the tokenizer's `wrap` ends a text.

    What is too long loses its end, but for the source of a dialogue: it loses its beginning.
    """
    limits = Limits(make.source_length, make.target_length, make.truncate, 0, False)
    room = make.source_length - len(tokenizer.wrap([]))
    for number, example in enumerate(examples):
        for texts in source_pairs(task, example):
            source, target = (ids.tolist() for ids in tokenizer.encode_batch(texts))
            length, answer = len(tokenizer.wrap(source)), tokenizer.wrap(target)
            cut = limits.check(example.place, length, limits.max_length)
            cut |= limits.check(example.place, len(answer), limits.target_length, "target_length")
            kept = source[-room:] if isinstance(example, Dialogue) else source
            yield Row(number, make(tokenizer.wrap(kept), answer), length, cut)
