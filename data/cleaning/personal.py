"""Personal data to typed placeholders: e-mail addresses, phone, identity and card numbers, addresses of computers."""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from itertools import takewhile
from typing import ClassVar

from data.cleaning.rule import Dropped, all_of, one_of, require
from data.words import Span, replaced

KINDS = ("EMAIL", "IP", "CN_ID", "CARD", "PHONE")

# A run of characters is looked at once, from its start: the lookbehinds and the bounds keep the time linear.
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}+@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9_]|-[A-Za-z0-9])"
)
_IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)", re.ASCII)
_IPV6 = re.compile(r"(?<![\w.:])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{2,35}(?![\w:])", re.ASCII)
# Before a number with dots, it is a version or a place in a book: "v. 1.20.3.4", "版本：1.20.3.4", "Table 3.2.1.4".
_VERSION = re.compile(
    r"(?:(?:\bversions?|\bver|\bv|\brelease|\bbuild|\bsection|\bfirmware|版本号?)[.:：= ]{0,3}"
    r"|(?:\bsections|\bsec|\bchapters?|\btables?|\bfig(?:ure)?s?|§|[第表图圖])[. ]{0,2})$",
    re.IGNORECASE,
)
# Before a number, no part of another: a dot stands alone after a letter, as in "Tel.13812345678".
_APART = r"(?<![\w-])(?<!(?<![A-Za-z\u3400-\u9fff])\.)"
_CN_ID = re.compile(rf"{_APART}[1-9]\d{{16}}[\dXx](?![\w-])", re.ASCII)
_CARD = re.compile(
    rf"{_APART}(?<!\+)(?:\d{{13,19}}|\d{{4}}([ -])\d{{4}}\1\d{{4}}\1\d{{1,4}}|\d{{4}}([ -])\d{{6}}\2\d{{4,5}})"
    r"(?![\w-]|\.\d)",
    re.ASCII,
)
_LONG_CARD = re.compile(rf"{_APART}(?<!\+)\d{{4}}([ -])\d{{4}}\1\d{{4}}\1\d{{4}}\1\d{{1,3}}(?![\w-]|\.\d)", re.ASCII)
_ONE_PHONE = r"""(?:
        (?:\+86[ -]?|86[ -]|0086[ -]?)?1[3-9]\d(?:\d{8}|([ -])\d{4}\1\d{4})              # Chinese mobile
      | (?:\(0(?:10|2\d|[3-9]\d{2})\)[ ]?|0(?:10|2\d|[3-9]\d{2})[ -])[2-8]\d{6,7}         # Chinese landline
      | (?:\+?1[ .-]?)?(?:\([2-9]\d{2}\)[ ]?|[2-9]\d{2}(?=([ .-])[2-9]\d{2}\2)[.-])[2-9]\d{2}[ .-]\d{4}  # North America
      | \+1[ ]?[2-9]\d{2}[ ][2-9]\d{2}[ ]\d{4}
      | (?<!\d[ ])(?:1[ ])?[2-9]\d{2}[ ][2-9]\d{2}[ ]\d{4}(?![ ]\d)                      # and not in a row of numbers
      | (?:\+[1-9]\d{0,2}|\(\+[1-9]\d{0,2}\))(?:[ .-]?\(\d{1,4}\))?(?:[ .-]?\d)?(?:[ .-]?\d{2,12}){1,6}  # elsewhere
    )(?![\w]|-\d|\.\d)"""
_PHONE = re.compile(_ONE_PHONE, re.ASCII | re.VERBOSE)
# After a digit and "," or "/" a number is part of another, unless that one is a phone number too: a list is one match.
_PHONES = re.compile(rf"{_APART}(?<!\+)(?<!\d[,/])(?:[,/]?{_ONE_PHONE})++", re.ASCII | re.VERBOSE)
_HALF_WIDTH = str.maketrans("０１２３４５６７８９＋（）Ｘｘ", "0123456789+()Xx")
_CN_REGIONS = set(
    map(
        str,
        [
            *range(11, 16),
            *range(21, 24),
            *range(31, 38),
            *range(41, 47),
            *range(50, 55),
            *range(61, 66),
            71,
            81,
            82,
            83,
        ],
    )
)


@dataclass(frozen=True)
class Personal:
    """Puts <EMAIL>, <IP>, <CN_ID>, <CARD> and <PHONE> where such a thing stands; `scrub` also counts them.

    What has a check is checked: card numbers by network prefix, length and the Luhn sum; Chinese identity numbers by
    province, date of birth and check character; addresses by their form. Only public IP addresses of computers are
    replaced (192.168.0.1 says nothing of anyone), and none after a word such as "version" or "table". Phone numbers
    need a form of their own: a "+" and 8 to 15 digits, the North American groups of 3, 3 and 4 (parted by spaces, not
    in a row of more numbers), a Chinese mobile's 11 digits, or a Chinese area code with its "0" set off. Digits may be
    full-width. Names and street addresses are not looked for.
    """

    name: ClassVar[str] = "personal"
    source: ClassVar[str] = (
        "RFC 5322 (e-mail), ITU-T E.164 (phone), RFC 4291 and 6890 (IP), GB 11643-1999 with ISO 7064 MOD 11-2 (Chinese "
        "identity number), ISO/IEC 7812-1 (card)"
    )

    kinds: tuple[str, ...] = KINDS

    def __post_init__(self):
        require(self, all_of(one_of(*KINDS)), "kinds")

    def __call__(self, text: str) -> str | Dropped:
        return scrub(text, self.kinds)[0]


def scrub(text: str, kinds: tuple[str, ...] = KINDS) -> tuple[str, Counter[str]]:
    """`text` with placeholders for what is found of `kinds`, and how often each was found."""
    counts: Counter[str] = Counter()
    before = None
    while text != before:  # a placeholder can set a number free that touched what it stands for
        before, seen = text, _half_width(text)
        for kind in KINDS:
            for spans_of in _FINDERS[kind] if kind in kinds else ():
                if spans := list(spans_of(seen)):
                    counts[kind] += len(spans)
                    text, seen = (replaced(old, spans, [f"<{kind}>"] * len(spans)) for old in (text, seen))
    return text, counts


def _half_width(text: str) -> str:
    """The text with ASCII for what stands full-width in numbers, at the same places; a dash counts between digits."""
    if text.isascii():
        return text
    return re.sub(r"(?<=[0-9])－(?=[0-9])", "-", text.translate(_HALF_WIDTH))


def _found(pattern: re.Pattern, is_one: Callable[[re.Match], bool]) -> Callable[[str], Iterator[Span]]:
    return lambda text: (match.span() for match in pattern.finditer(text) if is_one(match))


def _phone_numbers(text: str) -> Iterator[Span]:
    """The phone numbers, up to the first of each list that has too few or too many digits to be one."""
    for run in _PHONES.finditer(text):
        numbers = _PHONE.finditer(text, *run.span())
        yield from (match.span() for match in takewhile(_is_phone, numbers))


def _always(match: re.Match) -> bool:
    return True


def _is_public_address(match: re.Match) -> bool:
    try:
        address = ipaddress.ip_address(match[0])
    except ValueError:
        return False
    before = match.string[max(0, match.start() - 16) : match.start()]
    return address.is_global and not address.is_multicast and not _VERSION.search(before)


def _is_cn_id(match: re.Match) -> bool:
    number = match[0].upper()
    try:
        born = date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    weighted = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(number[:17]))
    check = "10X98765432"[weighted % 11]
    return number[:2] in _CN_REGIONS and 1850 <= born.year <= 2100 and number[17] == check


def _is_card(match: re.Match) -> bool:
    digits = re.sub("[ -]", "", match[0])
    return len(digits) in _card_lengths(digits) and _luhn(digits)


def _card_lengths(digits: str) -> tuple[int, ...]:
    """Lengths that numbers of this network have; () for none of the networks of cards."""
    two, four = int(digits[:2]), int(digits[:4])
    if digits[0] == "4":
        return 13, 16, 19  # Visa
    if 51 <= two <= 55 or 2221 <= four <= 2720:
        return (16,)  # Mastercard
    if two in (34, 37):
        return (15,)  # American Express
    if two in (36, 38, 39) or 3000 <= four <= 3059 or four == 3095:
        return 14, 15, 16, 17, 18, 19  # Diners Club
    if two in (62, 65, 35) or four == 6011 or 6440 <= four <= 6499:
        return 16, 17, 18, 19  # UnionPay, Discover, JCB
    if two == 50 or 56 <= two <= 58 or two in (63, 67):
        return 13, 14, 15, 16, 17, 18, 19  # Maestro
    return ()


def _luhn(digits: str) -> bool:
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits))]
    return sum(value - 9 * (value > 9) for value in doubled) % 10 == 0


def _is_phone(match: re.Match) -> bool:
    digits = sum(character.isdigit() for character in match[0])
    return 8 <= digits <= 15


_FINDERS: dict[str, tuple[Callable[[str], Iterator[Span]], ...]] = {
    "EMAIL": (_found(_EMAIL, _always),),
    "IP": (_found(_IPV4, _is_public_address), _found(_IPV6, _is_public_address)),
    "CN_ID": (_found(_CN_ID, _is_cn_id),),
    "CARD": (_found(_LONG_CARD, _is_card), _found(_CARD, _is_card)),
    "PHONE": (_phone_numbers,),
}
