"""Characters: mojibake repaired, controls and what is invisible taken out, one normal form, lines that end in \\n."""

import functools
import re
import sys
import unicodedata
from dataclasses import dataclass
from importlib import metadata
from typing import Any, ClassVar

from data.cleaning.rule import FLAG, Dropped, mended, one_of, require
from data.errors import DataError

_MAX_PASSES = 6  # a repair can bring to light what the next pass repairs; texts that people write need two

_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\u2028\u2029]")

# Controls that are not tab, newline, or C1 (which ftfy reads as the Windows-1252 characters they were meant to be).
_CONTROLS = "\x00-\x08\x0e-\x1f\x7f"
_C1_CONTROLS = "\x80-\x9f"
# Soft hyphen, Arabic letter mark, marks, embeddings, overrides and isolates of direction, word joiner and the invisible
# operators, byte order mark, interlinear annotation, object replacement; code points that are no characters.
_INVISIBLE = "\u00ad\u061c\u180e\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffc\ufdd0-\ufdef" + "".join(
    f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0, sys.maxunicode, 0x10000)
)
_PRIVATE = "\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd"

# Letters and marks of the scripts that are written with joiners: Arabic and Syriac to Malayalam and Sinhala, Burmese,
# Khmer, Mongolian, Tibetan; the blocks are named loosely, what lies between them is as rare as it is harmless.
_JOINED = "\u0600-\u0dff\u0f00-\u109f\u1780-\u18af\u1900-\u1aff\u1b00-\u1bff\ua800-\uabff\ufb50-\ufdcf\ufe70-\ufefc"
_EMOJI = "\u00a9\u00ae\u203c-\u3299\ufe0f\u20e3\U0001f000-\U0001faff"
_ZERO_WIDTH = re.compile(
    rf"(?<![{_JOINED}])\u200c|\u200c(?![{_JOINED}])"
    rf"|(?<![{_JOINED}{_EMOJI}])\u200d|(?<=[{_EMOJI}])\u200d(?![{_EMOJI}])"
    # Between letters of a script without spaces it is where a word ends.
    r"|(?<![\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff])\u200b|\u200b(?![\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff])"
)
# The flags of England, Scotland and Wales are a black flag and tag characters; elsewhere those hide text.
_TAGS = re.compile("(\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{1,6}\U000e007f)|[\U000e0000-\U000e007f]")

_MARKS_IN_A_ROW = 30  # UAX #15, section 13: stream-safe text


@dataclass(frozen=True)
class Unicode:
    """Mends the characters of a text; drops only one of which nothing is left.

    - `repair`: ftfy undoes text that was decoded by the wrong code (mojibake), C1 controls that stand for Windows-1252,
      surrogate pairs and terminal colours. Its other fixes are off: they would change code, quotes, Chinese full-width
      punctuation or HTML.
    - Line ends become "\\n" (vertical tab, form feed and Unicode's line and paragraph separators too); other controls
      go, tab stays.
    - Invisible characters go: marks of direction, soft hyphens, byte order marks, tags, code points that are no
      characters. Zero-width joiners stay between emoji, and, as do non-joiners, in scripts that are written with them
      (Persian, Hindi); zero-width spaces stay in Thai, Lao, Burmese and Khmer. Variation selectors stay.
    - `remove_private_use`: characters that only some font knows go.
    - `normalization`: "NFC", "NFKC" (which also turns full-width letters, ligatures and superscripts into plain ones)
      or "none". Of marks on one letter each thirty are followed by a grapheme joiner (UAX #15, stream-safe text),
      without which normalisation would take quadratic time.

    Raises DataError without ftfy where `repair` is on.
    """

    name: ClassVar[str] = "unicode"
    source: ClassVar[str] = (
        "Unicode Standard Annex #15 (normal forms), chapter 23 (special characters); ftfy (Speer 2019)"
    )

    repair: bool = True
    normalization: str = "NFC"
    remove_private_use: bool = True

    def __post_init__(self):
        require(self, FLAG, "repair", "remove_private_use")
        require(self, one_of("NFC", "NFKC", "none"), "normalization")
        if self.repair:
            _ftfy()

    def __call__(self, text: str) -> str | Dropped:
        after = text
        for _ in range(_MAX_PASSES):
            before, after = after, self._once(after)
            if after == before:
                return mended(text, after)
        return Dropped("unstable_characters", f"still changes after {_MAX_PASSES} repairs of {len(text)} characters")

    def state(self) -> dict[str, str]:
        return {"ftfy": metadata.version("ftfy")} if self.repair else {}

    def _once(self, text: str) -> str:
        text = _LINE_ENDS.sub("\n", text)
        if self.repair:
            text = _repaired(text)
        text = _LINE_ENDS.sub("\n", text.replace("\x85", "\n"))
        text = _removable(self.remove_private_use).sub("", text)
        if text.isascii():
            return text
        text = _TAGS.sub(r"\1", _ZERO_WIDTH.sub("", text))
        if self.normalization != "none":
            text = unicodedata.normalize(self.normalization, stream_safe(text))  # pyright: ignore[reportArgumentType]
        return text


@functools.cache
def _removable(private_use: bool) -> re.Pattern:
    return re.compile(f"[{_CONTROLS}{_C1_CONTROLS}{_INVISIBLE}{_PRIVATE if private_use else ''}]")


def stream_safe(text: str) -> str:
    """`text` in which no more than thirty marks stand on one letter, so that normal forms take linear time."""
    return _long_marks().sub(lambda marks: marks[0] + "\u034f", text)


@functools.cache
def _long_marks() -> re.Pattern:
    marks = "".join(chr(code) for code in range(0x300, 0x1F000) if unicodedata.combining(chr(code)))
    return re.compile(f"[{marks}]{{{_MARKS_IN_A_ROW}}}(?=[{marks}])")


def _ftfy() -> Any:
    try:
        import ftfy
    except ImportError:
        raise DataError("the rule unicode repairs text with ftfy: pip install 'tessera-lm[cleaning]'") from None
    return ftfy


@functools.cache
def _repairs() -> Any:
    return _ftfy().TextFixerConfig(
        unescape_html=False,  # the rule html does it where it is wanted
        fix_latin_ligatures=False,
        fix_character_width=False,  # Chinese and Japanese punctuation is full-width
        uncurl_quotes=False,
        fix_line_breaks=False,  # done here
        remove_control_chars=False,  # done here
        replace_lossy_sequences=False,  # would put U+FFFD for characters that are there
        normalization=None,  # done here
        explain=False,
    )


def _repaired(text: str) -> str:
    return text if text.isascii() and "\x1b" not in text else _ftfy().fix_text(text, _repairs())
