"""Documents by the language they are in."""

import functools
import re
from dataclasses import dataclass
from importlib import metadata
from typing import Any, ClassVar

from data.cleaning.rule import COUNT, FRACTION, Dropped, all_of, one_of, require
from data.errors import DataError

_SAMPLE = 3000  # characters that are read at the start, in the middle and at the end of a longer text
_LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True)
class Language:
    """Keeps texts in the languages of `keep`, as lingua tells them apart from the other `candidates`.

    A candidate costs memory and time, and a text in a language that is none takes the name of the nearest one: name
    those the corpus may hold. Of a text beyond 9,000 characters, three pieces of 3,000 are read. The same text has the
    same language in each run.

    Raises DataError without lingua, ValueError for a code that lingua does not know.
    """

    name: ClassVar[str] = "language"
    source: ClassVar[str] = (
        "lingua (Stahl), n-grams of 1 to 5 characters; the confidence is that of Penedo et al. 2024, FineWeb"
    )

    keep: tuple[str, ...] = ("en",)  # ISO 639-1 codes
    candidates: tuple[str, ...] = ("de", "en", "es", "fr", "it", "ja", "ko", "pt", "ru", "zh")
    min_confidence: float = 0.65  # of the languages to keep, taken together
    min_letters: int = 20  # shorter texts cannot be told; see `short`
    short: str = "keep"  # what is done with those: "keep" or "drop"

    def __post_init__(self):
        known = set(_languages())
        code = (
            lambda value: value in known,
            f"an ISO 639-1 code of a language that lingua knows: {', '.join(sorted(known))}",
        )
        require(self, all_of(code), "keep", "candidates")
        among = (lambda keep: set(keep) <= set(self.candidates), f"among the candidates ({', '.join(self.candidates)})")
        require(self, among, "keep")
        require(self, (lambda codes: len(set(codes)) > 1, "at least two languages to tell apart"), "candidates")
        require(self, FRACTION, "min_confidence")
        require(self, COUNT, "min_letters")
        require(self, one_of("keep", "drop"), "short")

    def __call__(self, text: str) -> str | Dropped:
        letters, found = self._read(text)
        if not found:
            detail = f"{letters} letters, fewer than {self.min_letters}: too short to tell the language"
            return text if self.short == "keep" else Dropped("too_short", detail)
        confidence = sum(found[code] for code in set(self.keep))
        if confidence > 0 and confidence >= self.min_confidence:
            return text
        likeliest = _likeliest(found)
        if not found[likeliest]:
            return Dropped("language", f"none of {', '.join(self.candidates)}")
        wanted = f"{', '.join(self.keep)} at {confidence:.3f}, below {self.min_confidence:g}"
        return Dropped("language", f"{likeliest} with a confidence of {found[likeliest]:.3f}; {wanted}")

    def detected(self, text: str) -> str:
        """The likeliest of the candidates; "" for a text that is too short to tell, or in none of them."""
        found = self._read(text)[1]
        return _likeliest(found) if any(found.values()) else ""

    def state(self) -> dict[str, str]:
        return {"lingua": metadata.version("lingua-language-detector")}

    def _read(self, text: str) -> tuple[int, dict[str, float]]:
        """The letters that were read, and the confidence of each candidate; none where the letters are too few."""
        sample = _sample(text)
        letters = len(_LETTER.findall(sample))
        return letters, _confidences(sample, self.candidates) if letters >= self.min_letters else {}


def _likeliest(found: dict[str, float]) -> str:
    return max(sorted(found), key=lambda code: found[code])


@functools.lru_cache(maxsize=1)  # the rule and the record of the language that it found ask for the same text
def _confidences(sample: str, candidates: tuple[str, ...]) -> dict[str, float]:
    values = _detector(candidates).compute_language_confidence_values(sample)
    return {value.language.iso_code_639_1.name.lower(): value.value for value in values}


def _sample(text: str) -> str:
    if len(text) <= 3 * _SAMPLE:
        return text
    middle = (len(text) - _SAMPLE) // 2
    return "\n".join((text[:_SAMPLE], text[middle : middle + _SAMPLE], text[-_SAMPLE:]))


@functools.cache
def _languages() -> dict[str, Any]:
    """ISO 639-1 code -> lingua's language."""
    try:
        import lingua
    except ImportError:
        raise DataError("the rule language needs lingua: pip install 'tessera-lm[cleaning]'") from None
    return {language.iso_code_639_1.name.lower(): language for language in lingua.Language.all()}


@functools.cache
def _detector(codes: tuple[str, ...]) -> Any:
    """Built once in a process: its tables of n-grams take seconds and hundreds of megabytes."""
    import lingua

    return lingua.LanguageDetectorBuilder.from_languages(*(_languages()[code] for code in sorted(set(codes)))).build()
