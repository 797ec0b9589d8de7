"""Documents by the bits per byte that a scorer from outside gives them."""

import functools
import math
import pickle
from dataclasses import dataclass

from data.cleaning.perplexity import Perplexity
from data.cleaning.rule import Dropped

CALLS = []


@dataclass(frozen=True)
class Digits:
    """A model that finds each text as surprising as the number it is."""

    factor: float = 1.0

    def __call__(self):
        CALLS.append(self)
        return lambda text: float(text) * self.factor


def test_what_is_beyond_the_limits_goes():
    rule = Perplexity(maximum=3.0, minimum=1.0, scorer=Digits())
    assert rule("3.0") == "3.0"
    assert rule("3.001") == Dropped("too_surprising", "3.001 bits per byte, more than 3")
    assert rule("1") == "1"
    assert rule("0.999") == Dropped("too_predictable", "0.999 bits per byte, fewer than 1")


def test_a_model_that_fails_and_an_empty_text_keep_nothing():
    rule = Perplexity(scorer=Digits())
    assert rule("nan") == Dropped("not_a_number", "the model gives nan bits per byte")
    assert rule(str(math.inf)) == Dropped("not_a_number", "the model gives inf bits per byte")
    assert rule("") == Dropped("empty", "0 bytes have no bits per byte")


def test_the_scorer_is_made_once_in_a_process_and_not_before_the_first_text():
    CALLS.clear()
    rule = Perplexity(maximum=9.0, scorer=Digits(2.5))
    copies = [pickle.loads(pickle.dumps(rule)) for _ in range(3)]  # noqa: S301
    assert not CALLS
    assert [copy("2") for copy in copies] == ["2"] * 3
    assert isinstance(copies[0]("4"), Dropped)
    assert len(CALLS) == 1


def test_a_function_can_make_the_scorer():
    assert Perplexity(maximum=1.0, scorer=functools.partial(lambda: len))("a") == "a"
    assert isinstance(Perplexity(maximum=1.0, scorer=lambda: len)("ab"), Dropped)
