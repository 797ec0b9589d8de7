"""What counts as a word, also in scripts that put no spaces between words."""

import re
from dataclasses import dataclass

WORDS = ("auto", "spaces", "characters")

# Han with its extensions and iteration marks, kana with its half-width forms, bopomofo; Thai and Lao, Burmese, Khmer.
# Korean puts spaces between words.
UNSPACED = (
    "\u3005-\u3007\u3021-\u3029\u303b\u3040-\u30ff\u3100-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003fffd\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
)
_UNSPACED_RUN = re.compile(f"[{UNSPACED}]+")
# Punctuation belongs to the character it follows, as in "word," it belongs to the word.
_CHARACTER_WORD = re.compile(rf"[{UNSPACED}][^\w\s]*+|[^\s{UNSPACED}]++")


@dataclass(frozen=True)
class Words:
    """The words of a text. `spaced`: white space parts them; else each character of an unspaced script is one."""

    words: list[str]
    spaced: bool


def split_words(text: str, words: str) -> Words:
    """The words of `text` by the setting `words` of a rule.

    - "spaces": what white space parts.
    - "characters": each character of a script without spaces (Chinese, Japanese, Thai, Lao, Burmese, Khmer) is a word,
      with the punctuation after it; what white space parts, elsewhere ("JAX很快。" is JAX, 很, 快。).
    - "auto": "characters" where such characters are half of all that is not white space, or more.
    """
    by_space = text.split()
    if words == "spaces" or text.isascii():
        return Words(by_space, True)
    if words == "auto":
        unspaced = sum(match.end() - match.start() for match in _UNSPACED_RUN.finditer(text))
        if 2 * unspaced < sum(map(len, by_space)):
            return Words(by_space, True)
        if unspaced == 0:  # blank
            return Words(by_space, True)
    return Words(_CHARACTER_WORD.findall(text), False)
