"""What a supervised task is: where its examples come from, what they ask, and how the answer is scored."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from data.errors import DataError
from data.tasks.examples import Labelled, Question, Tagged, TaskExample, TextPair

KINDS = ("classification", "tagging", "span", "text_to_text", "dialogue")
METRICS = ("accuracy", "macro_f1", "span_f1", "squad_f1", "rouge", "bleu")
NO_ANSWER = "unanswerable"  # the text that answers a question without an answer

# Reads a path. With a Counter, what can be repaired is, and is counted there; without, it is a DataError.
Reader = Callable[[str | Path, Counter[str] | None], Iterable[TaskExample]]


@dataclass(frozen=True)
class Task:
    """A task: its examples, and the texts that pose it to a model that writes.

    The templates name fields of an example, as in "sst2 sentence: {text}". `source` is what an encoder-decoder reads
    (Raffel et al. 2020, appendix D), `prompt` what a decoder continues: it ends with a line end, since a space there
    would change the first token of the answer. A dialogue has a `prompt` alone, which opens a turn of {role}.
    """

    name: str
    kind: str  # one of KINDS
    reader: Reader
    metric: str  # one of METRICS
    source: str
    prompt: str
    labels: tuple[str, ...] = ()  # of classes or tags, by id; (): no set is known, see `task_rows`

    def read(self, path: str | Path, repairs: Counter[str] | None = None) -> list[TaskExample]:
        """The examples of a path. Raises DataError with file and line, also where there are none.

        With `repairs`, what can be repaired is, and each kind of repair is counted there: an I- tag that opens an
        entity becomes B-; an answer that is not at its offset is searched for nearby, and left out where it is
        nowhere, with its question if no answer remains; a pair with an empty side is left out. Other mistakes are
        errors all the same.
        """
        examples = list(self.reader(path, repairs))
        if not examples:
            raise DataError(f"{path} has no example of {self.name}")
        return examples


def answer_text(example: TaskExample) -> str:
    """What a model that writes should answer; of several answers the first. A dialogue has one for each reply."""
    match example:
        case Labelled():
            return example.label
        case Tagged():
            return " ".join(example.tags)
        case Question():
            return example.answers[0][1] if example.answers else NO_ANSWER
        case TextPair():
            return example.target
    raise DataError(f"{example.place}: a dialogue has no single answer")


def repair(repairs: Counter[str] | None, place: str, wrong: str, remedy: str) -> None:
    """Counts `remedy` in `repairs`, or raises DataError where there are to be none."""
    if repairs is None:
        raise DataError(f"{place}: {wrong}: correct it, or read with repairs=Counter() ({remedy}, and counted)")
    repairs[remedy] += 1
