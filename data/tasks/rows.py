"""The examples of a task as rows of fixed shape, with a count of what did not fit."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data.errors import DataError
from data.objectives.examples import Example, Features, assemble
from data.tasks.compact import CompactRows
from data.tasks.examples import Question, TaskExample
from data.tasks.task import Task
from data.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class TaskRows:
    """Rows (see `data.rows`) of a task; nothing is drawn.

    Row r is of task_examples[rows.example_R[r]], and would have rows.length_R[r] tokens without a limit.
    `labels` counts each label of the examples, by id.
    """

    task: Task
    form: str
    task_examples: tuple[TaskExample, ...]
    rows: CompactRows
    features: Features
    pad_id: int
    labels: dict[str, int]
    labels_collected: bool  # from these examples, as no set was given

    def __len__(self) -> int:
        return len(self.rows)

    def example(self, row: int, rng: np.random.Generator | None = None) -> Example:
        """The arrays of one row, as `features` says; padding has segment and weight 0."""
        del rng  # nothing is drawn
        arrays = self.rows.arrays(row)
        single = {name: np.asarray(arrays[name][0], kind) for name, (shape, kind) in self.features.items() if not shape}
        several = {name: values for name, values in arrays.items() if name not in single}
        features = {name: feature for name, feature in self.features.items() if name not in single}
        return assemble([several], features, self.pad_id) | single

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels by id."""
        return tuple(self.labels)

    @property
    def truncated(self) -> int:
        """Rows of which a text was cut."""
        return int(self.rows.cut_R.sum())

    @property
    def lost_tags(self) -> int:
        """Tags of tokens that the tokenizer makes nothing of (white space, control characters): in no row."""
        return self.rows.lost_tags

    def answer(self, row: int, first: int, last: int) -> str:
        """The text of tokens `first` to `last` of a row of a span task; "" where they are not all of the context."""
        if self.form != "encoder" or self.task.kind != "span":
            raise DataError(f"{self.task.name} ({self.task.kind}, {self.form}) has no spans")
        of = self.task_examples[int(self.rows.example_R[row])]
        assert isinstance(of, Question)
        start, end = self.rows.characters(row, first, last)
        return of.context[start:end].strip()

    def report(self) -> str:
        """What there is: examples, rows, what was cut, labels, tokens of a row before cutting."""
        return "\n".join(self._report())

    def _report(self) -> Iterator[str]:
        yield (
            f"{self.task.name} ({self.task.kind}, {self.form}): {len(self.task_examples)} examples, {len(self)} rows, "
            f"{self.truncated} of them truncated"
        )
        if total := sum(self.labels.values()):
            counts = (f"{name} {count} ({count / total:.1%})" for name, count in self.labels.items())
            yield f"labels{' collected from these examples' * self.labels_collected}: {', '.join(counts)}"
        if self.lost_tags:
            yield f"tags of what the tokenizer makes nothing of: {self.lost_tags}"
        if self.form == "encoder" and self.task.kind == "span":
            found = sum(bool(self.rows.arrays(row)["targets"].any()) for row in range(len(self)))
            yield f"rows with the answer: {found}"
        median, high = np.percentile(self.rows.length_R, (50, 95))
        longest = self.rows.length_R.max()
        yield f"tokens of a row: median {median:.0f}, 95 % have up to {high:.0f}, the longest {longest}"


@dataclass(frozen=True)
class Limits:
    """How long a row may be, and what is done about what is longer."""

    max_length: int  # tokens of a row
    target_length: int  # tokens of an answer that a model writes, with its end
    truncate: bool  # cut what is too long; else that is an error
    stride: int  # tokens from one window of a context to the next; 0: half of what fits
    token_types: bool  # whether the network tells the texts of a pair apart (BERT)

    def check(self, place: str, length: int, limit: int, name: str = "max_length") -> bool:
        """Whether `length` is over the limit. Raises DataError where that is an error."""
        if length > limit and not self.truncate:
            raise DataError(f"{place}: {length} tokens exceed {limit}: raise {name}, or set truncate=True")
        return length > limit


@dataclass(frozen=True)
class Frame:
    """How many tokens `tokenizer.wrap` puts around one text, or two, and where."""

    start: int  # of the first text
    extra: int  # tokens that are no text
    between: int = 0  # tokens between the texts
    types: int = 0  # tokens around the first text that have type 0

    @classmethod
    def of(cls, tokenizer: Tokenizer, pair: bool) -> "Frame":
        alone = tokenizer.wrap([-1])
        if not pair:
            return cls(alone.index(-1), len(alone) - 1)
        both = tokenizer.wrap([-1], [-2])
        start, second = both.index(-1), both.index(-2)
        return cls(start, len(both) - 2, second - start - 1, len(alone) - 1)


def encoder_features(limits: Limits, targets: tuple[int, ...]) -> Features:
    """`inputs`, `segments`, perhaps `token_types`; `targets` of the shape given, and `weights`.

    The two targets of a span have one weight; else each target has its own.
    """
    names = ["inputs", "segments", *["token_types"] * limits.token_types]
    features: Features = {name: ((limits.max_length,), np.int32) for name in names}
    return features | {"targets": (targets, np.int32), "weights": (() if targets == (2,) else targets, np.float32)}


def decoder_features(max_length: int) -> Features:
    """Its padding comes last, and it is causal: it needs no segments."""
    features: Features = {name: ((max_length,), np.int32) for name in ("inputs", "targets")}
    return features | {"weights": ((max_length,), np.float32)}
