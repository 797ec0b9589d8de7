"""What an example of a task is, by kind. Each knows its `place`, "file:line", and is a DataError where it cannot be."""

from dataclasses import dataclass

from data.errors import DataError
from data.tokenizers.checks import utf8


@dataclass(frozen=True)
class Labelled:
    """One text, or two, of one class."""

    place: str
    text: str
    label: str
    pair: str = ""  # the second text; "": there is none

    def __post_init__(self):
        _require_text(self.place, text=self.text, label=self.label)
        if self.pair:
            _require_text(self.place, pair=self.pair)


@dataclass(frozen=True)
class Tagged:
    """A text with a tag for each of its tokens: characters spans[i][0] to spans[i][1], in order, not overlapping."""

    place: str
    text: str
    spans: tuple[tuple[int, int], ...]
    tags: tuple[str, ...]

    def __post_init__(self):
        if len(self.spans) != len(self.tags):
            raise DataError(f"{self.place}: {len(self.spans)} tokens and {len(self.tags)} tags: give each token a tag")
        _require_text(self.place, text=self.text)
        places = [0, *(place for span in self.spans for place in span), len(self.text)]
        if places != sorted(places):
            raise DataError(f"{self.place}: tokens overlap, or are not in a text of {len(self.text)} characters")

    @property
    def tokens(self) -> list[str]:
        return [self.text[start:end] for start, end in self.spans]


@dataclass(frozen=True)
class Question:
    """A question about a text; answers are (start, text) with context[start:start + len(text)] == text, or none."""

    place: str
    id: str
    question: str
    context: str
    answers: tuple[tuple[int, str], ...]

    def __post_init__(self):
        _require_text(self.place, question=self.question, context=self.context)
        for start, text in self.answers:
            if not text or start < 0 or not self.context.startswith(text, start):
                raise DataError(f"{self.place}: the answer {text!r} is not at {start} of its context")


@dataclass(frozen=True)
class TextPair:
    place: str
    source: str
    target: str

    def __post_init__(self):
        _require_text(self.place, source=self.source, target=self.target)


@dataclass(frozen=True)
class Dialogue:
    """Turns of (role, text); the roles are system, user and assistant, whose replies are learned."""

    place: str
    turns: tuple[tuple[str, str], ...]

    def __post_init__(self):
        for number, (role, text) in enumerate(self.turns, 1):
            if role not in ("system", "user", "assistant"):
                raise DataError(f"{self.place}: turn {number} has role {role!r}: use system, user or assistant")
            _require_text(self.place, **{f"text of turn {number}": text})
        if not any(role == "assistant" for role, _ in self.turns):
            raise DataError(f"{self.place}: none of {len(self.turns)} turn(s) is a reply (role assistant) to learn")


TaskExample = Labelled | Tagged | Question | TextPair | Dialogue


def _require_text(place: str, **texts: str) -> None:
    for name, text in texts.items():
        if not text.strip():
            raise DataError(f"{place}: the {name} is empty")
        try:
            utf8(text)
        except DataError as error:
            raise DataError(f"{place}: the {name}: {error}") from error
