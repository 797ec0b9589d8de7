"""Questions whose answers are spans of a text: the layout of SQuAD (Rajpurkar et al. 2016, 2018), and JSONL."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.tasks.examples import Question
from data.tasks.records import field, json_file, json_records
from data.tasks.task import Reader, Task, repair

Repairs = Counter[str] | None


def read_squad(path: str | Path, repairs: Repairs) -> Iterator[Question]:
    """SQuAD v1.1, v2 (no answers where `is_impossible`), XQuAD, CMRC 2018. A place is "file:id of the question"."""
    for number, article in enumerate(field(json_file(path), "data", list, str(path))):
        for paragraph in field(article, "paragraphs", list, f"{path}:article {number}"):
            context = field(paragraph, "context", str, f"{path}:article {number}")
            for asked in field(paragraph, "qas", list, f"{path}:article {number}"):
                id = field(asked, "id", str, f"{path}:article {number}")
                place = f"{path}:{id}"
                answers = field(asked, "answers", list, place)
                if not answers and not asked.get("is_impossible"):
                    raise DataError(f"{place}: no answer, and is_impossible is not set")
                yield from _question(place, id, context, field(asked, "question", str, place), answers, repairs)


def read_jsonl(path: str | Path, repairs: Repairs) -> Iterator[Question]:
    """{"question": …, "context": …, "answers": [{"text": …, "answer_start": …}]} a line; [] is no answer.

    The answers may also be {"text": […], "answer_start": […]}, as in the datasets of Hugging Face.
    """
    for place, record in json_records(path):
        question, context = (field(record, name, str, place) for name in ("question", "context"))
        answers = field(record, "answers", object, place)
        if isinstance(answers, dict):
            texts, starts = (field(answers, name, list, place) for name in ("text", "answer_start"))
            if len(texts) != len(starts):
                raise DataError(f"{place}: {len(texts)} answers and {len(starts)} places of them")
            answers = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
        if not isinstance(answers, list):
            raise DataError(f"{place}: field 'answers' is a {type(answers).__name__}, not a list")
        yield from _question(place, str(record.get("id", place)), context, question, answers, repairs)


def _question(
    place: str, id: str, context: str, question: str, answers: list[Any], repairs: Repairs
) -> Iterator[Question]:
    """The question; none where repairs leave it without any of its answers."""
    found = [_answer(place, context, answer, repairs) for answer in answers]
    kept = tuple(answer for answer in found if answer is not None)
    if answers and not kept and repairs is not None:
        repairs["question without an answer that is in its text is left out"] += 1
        return
    yield Question(place, id, question, context, kept)


def _answer(place: str, context: str, answer: Any, repairs: Repairs) -> tuple[int, str] | None:
    """(start, text), or None for one that is nowhere in its text."""
    text, start = field(answer, "text", str, place), field(answer, "answer_start", int, place)
    if text and start >= 0 and context.startswith(text, start):
        return start, text
    there = context[max(start, 0) : max(start, 0) + max(len(text), 1)]
    wrong = f"the answer {text!r} is not at {start} of its text, where {there!r} is"
    nearest = _nearest(context, text, start) if text else None
    if nearest is None:
        repair(repairs, place, wrong, "answer that is not in its text is left out")
        return None
    repair(repairs, place, f"{wrong}; it is at {nearest}", "answer is searched for in its text")
    return nearest, text


def _nearest(context: str, text: str, start: int) -> int | None:
    """Where `text` is in the context, nearest to `start`; None: nowhere."""
    after, before = context.find(text, max(start, 0)), context.rfind(text, 0, max(start, 0) + len(text))
    return min((at for at in (before, after) if at >= 0), key=lambda at: abs(at - start), default=None)


def _task(name: str, reader: Reader) -> Task:
    prompt = "{context}\nQuestion: {question}\nAnswer:\n"
    return Task(name, "span", reader, "squad_f1", "question: {question} context: {context}", prompt)


QUESTIONS = (
    _task("questions", read_jsonl),
    _task("squad", read_squad),
    _task("xquad", read_squad),
    _task("cmrc2018", read_squad),
)
