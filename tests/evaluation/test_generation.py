"""Generation as a user asks for it: ends, samples, details and beams, each against a computation by hand."""

import dataclasses

import jax
import numpy as np
import pytest

from data.tokenizers.tokenizer import ByteTokenizer, CharTokenizer, WithSpecials
from evaluation.ask import ask
from evaluation.generation import Continuation
from evaluation.language_model import LanguageModel
from model.config import ModelConfig
from model.ngram_table import count_ngrams
from model.transformer import apply
from tests import tiny

LETTERS = WithSpecials(CharTokenizer("abcdefgh"), ["eos"])
EOS = LETTERS.special_ids["eos"]
GPT = ModelConfig(vocab_size=12, max_length=64, num_layers=1, embed_dim=16, num_heads=2, tied_output=False)
# No five bytes twice: a 6-gram model goes on as the text does.
TEXT = "One <e two €uro, then <e> and three; <e4 <<e>> five — at last ### six<e> seven <e"


@pytest.fixture(scope="module")
def recital():
    """A model that, greedily, says TEXT by heart."""
    ids = np.frombuffer(TEXT.encode() * 3, np.uint8).astype(np.int32)
    table = count_ngrams(ids, 257, 6, discounts=np.full((6, 3), 0.1))
    return ask(ModelConfig(architecture="ngram", vocab_size=257, ngram_order=6), table, ByteTokenizer(), tiny.mesh())


def made(config):
    return ask(config, tiny.by_chance(config), LETTERS, tiny.mesh())


@pytest.fixture(scope="module")
def gpt():
    """A network of chance over eight letters and an end; three more rows than there are ids."""
    lm = made(GPT)
    assert isinstance(lm, LanguageModel)
    return lm


SAID = TEXT[8:]  # what follows the prompt
GREEDY = {"max_tokens": len(SAID.encode()), "temperature": 0.0}


def recite(lm, **options):
    """The text after TEXT[:8], whole; it must be what the pieces of a stream, joined, are."""
    options = GREEDY | options
    text = lm.generate(TEXT[:8], **options)
    (pieces,) = zip(*lm.stream([TEXT[:8]], seeds=[0], **options), strict=True)
    assert "".join(pieces) == text
    return text, pieces


def test_it_says_the_text_by_heart(recital):
    text, pieces = recite(recital)
    assert text == SAID and len(pieces) > 4


def cut(text, *stops):
    return text[: min(text.index(stop) for stop in stops)]


@pytest.mark.parametrize(
    "stops",
    [
        ["<e>"],  # after a beginning of it that goes on otherwise, "<e two"
        ["<e>>"],  # "<<e>>": its second "<" begins it
        ["€"],  # three tokens, one character
        ["o €uro"],
        ["o"],
        ["###", "<e4", "zzz"],  # the second of them comes first
        ["five", "five —"],
        ["e>", "n <e>"],  # one token ends both: the text ends before the one that begins first
        ["ve — at last ### s"],  # longer than a chunk of tokens
    ],
    ids=str,
)
def test_the_text_ends_before_the_first_stop_string(recital, stops):
    expected = cut(SAID, *[stop for stop in stops if stop in SAID])
    for stop in (stops, stops[0]) if len(stops) == 1 else (stops, stops[::-1]):
        text, _ = recite(recital, stop=stop)
        assert text == expected


@pytest.mark.parametrize("place", range(1, 40, 3))
def test_a_stop_string_may_lie_across_chunks(recital, place):
    """Wherever in a chunk of 16 tokens it begins."""
    stop = SAID[place : place + 5]
    assert recite(recital, stop=stop, max_tokens=48)[0] == cut(SAID, stop)


def test_what_only_begins_as_a_stop_string_is_not_lost(recital):
    """The text ends in "<e", and has "<e two" and "<e4" before: all are written."""
    for stop in ("<e5", ["<ex", "# six<e> y"], "<e\n"):
        text, pieces = recite(recital, stop=stop)
        assert text == SAID
    assert pieces[-1] == "<e"  # held back until it was clear that no more comes


def test_details_of_a_stopped_text(recital):
    """Its ids have the stop string, whose last token was the last drawn; the text does not."""
    found = recital.generate(TEXT[:8], stop="<e>", details=True, **GREEDY)
    assert isinstance(found, Continuation) and found.text == cut(SAID, "<e>")
    assert found.ids == list((found.text + "<e>").encode())
    assert len(found.logprobs) == len(found.ids) and found.score is None


def test_each_row_stops_for_itself(recital):
    prompts = [TEXT[:8], TEXT[: TEXT.index("three")]]
    options = {"stop": ["<e>", "five"], "max_tokens": 60, "temperature": 0.0}
    first, second = recital.generate(prompts, **options)
    assert first == cut(TEXT[8:], "<e>") and second == cut(TEXT[TEXT.index("three") :], "<e>", "five")
    rows = zip(*recital.stream(prompts, seeds=[0, 0], **options), strict=True)
    assert ["".join(row) for row in rows] == [first, second]


def test_a_stop_string_does_not_change_the_draws(gpt):
    """Of many samples: each is the one without stop, up to it."""
    options = {"max_tokens": 40, "num_samples": 16, "seed": 3}
    whole = gpt.generate("ab", **options)
    stopped = gpt.generate("ab", stop=["ca", "hh"], **options)
    found = 0
    for text, until in zip(whole, stopped, strict=True):
        places = [place for stop in ("ca", "hh") if (place := text.find(stop)) >= 0]
        assert until == text[: min(places, default=len(text))]
        found += bool(places)
    assert found > 4


def test_shapes_follow_the_question(gpt):
    options = {"max_tokens": 4}
    assert isinstance(gpt.generate("ab", **options), str)
    one = gpt.generate(["ab", "c"], **options)
    assert len(one) == 2 and all(isinstance(text, str) for text in one)
    assert one[0] == gpt.generate("ab", **options)
    several = gpt.generate("ab", num_samples=3, **options)
    assert len(several) == 3 and all(isinstance(text, str) for text in several)
    many = gpt.generate(["ab", "c"], num_samples=3, **options)
    assert [len(row) for row in many] == [3, 3] and many[0] == several
    detailed = gpt.generate(["ab", "c"], num_samples=3, details=True, **options)
    assert [[c.text for c in row] for row in detailed] == many


def test_sample_s_is_drawn_by_the_seed_plus_s(gpt):
    """Whatever the other prompts and samples are."""
    options = {"max_tokens": 20}
    many = gpt.generate(["ab", "cde", "ab"], num_samples=3, seed=5, **options)
    for sample in range(3):
        alone = gpt.generate("cde", seed=5 + sample, **options)
        assert many[1][sample] == alone
        assert many[0][sample] == many[2][sample] == gpt.generate(["ab"], seed=5 + sample, **options)[0]
    assert len({text for row in many[:2] for text in row}) == 6
    rows = gpt.stream(["ab", "cde"], num_samples=2, seeds=[6, 5, 7, 5], **options)
    texts = ["".join(row) for row in zip(*rows, strict=True)]
    assert texts == [many[0][1], many[0][0], many[1][2], many[1][0]]


def by_hand(lm, prompt, ids):
    """ln p of each of `ids` behind the prompt, float64."""
    context = [EOS, *lm.tokenizer.encode(prompt)]
    logits = lm.logits([[*context, *ids]])[0, len(context) - 1 : -1].astype(np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return logp[np.arange(len(ids)), ids]


def test_details_are_tokens_and_their_log_probabilities(gpt):
    """In the model's own distribution, whatever was done to it for the draw."""
    ended = 0
    for options in ({}, {"temperature": 0.5, "top_k": 3, "repetition_penalty": 1.5, "min_tokens": 8}):
        for found in gpt.generate("abc", max_tokens=8, num_samples=8, details=True, **options):
            assert found.text == LETTERS.decode(found.ids) and EOS not in found.ids[:-1]
            assert len(found.ids) == 8 or found.ids[-1] == EOS
            assert max(found.ids) <= EOS  # never the rows that have no id
            np.testing.assert_allclose(found.logprobs, by_hand(gpt, "abc", found.ids), atol=1e-4)
            ended += found.ids[-1] == EOS
    assert 0 < ended <= 8  # none of those with min_tokens


def test_a_prefix_lm_reads_its_prompt_in_both_directions():
    """Drawn and searched. `logits`, which have no prompt, see the past alone and say something else."""
    lm = made(dataclasses.replace(GPT, prefix_lm=True, num_layers=2))
    prompt = [EOS, *LETTERS.encode("abcdef")]
    found = lm.generate("abcdef", max_tokens=5, min_tokens=5, details=True)
    ids = np.array([[*prompt, *found.ids]], np.int32)
    prefix = (np.arange(ids.shape[1]) < len(prompt)).astype(np.int32)[None]
    with jax.set_mesh(lm.mesh):
        run = jax.jit(lambda params, ids, prefix: apply(lm.network, params, ids, prefix_BT=prefix).logits)
        logp_TV = np.asarray(jax.nn.log_softmax(run(lm.params, ids, prefix)[0, len(prompt) - 1 : -1]))
    expected = logp_TV[np.arange(5), found.ids]
    np.testing.assert_allclose(found.logprobs, expected, atol=1e-4)
    assert np.abs(expected - by_hand(lm, "abcdef", found.ids)).max() > 0.01
    (best,) = lm.generate(["abcdef"], max_tokens=1, num_beams=2, details=True)
    assert best.score == pytest.approx(float(logp_TV[0].max()), abs=1e-4)


def test_beams_are_sorted_and_scored(gpt):
    found = gpt.generate("abc", max_tokens=6, num_beams=4, num_samples=4, length_penalty=0.5, details=True)
    scores = [answer.score for answer in found]
    assert scores == sorted(scores, reverse=True) and len({tuple(answer.ids) for answer in found}) == 4
    for answer in found:
        assert answer.text == LETTERS.decode(answer.ids) and answer.logprobs is None
        by_model = by_hand(gpt, "abc", answer.ids).sum() / len(answer.ids) ** 0.5
        assert answer.score == pytest.approx(by_model, abs=1e-4)
    texts = [answer.text for answer in found]
    options = {"max_tokens": 6, "num_beams": 4, "length_penalty": 0.5}
    assert gpt.generate("abc", **options) == texts[0]
    assert gpt.generate(["h", "abc"], num_samples=4, **options)[1] == texts
    assert gpt.generate("abc", max_tokens=6, num_beams=1) == gpt.generate("abc", max_tokens=6, temperature=0.0)


def test_max_tokens_and_min_tokens_bound_the_length(gpt):
    options = {"max_tokens": 12, "num_samples": 24, "details": True}
    free = [len(c.ids) for c in gpt.generate("a", **options)]
    assert min(free) < 6 and max(free) == 12
    bound = gpt.generate("a", min_tokens=6, **options)
    assert all(len(c.text) >= 6 for c in bound) and min(len(c.ids) for c in bound) < 12
    assert all(len(c.ids) == 1 for c in gpt.generate("a", **(options | {"max_tokens": 1})))


def test_a_full_context_moves_on(gpt):
    """Longer than the context: the greedy text is as long as was asked, and begins as a shorter one does."""
    options = {"temperature": 0.0, "min_tokens": 50}
    short = gpt.generate("ab", max_tokens=50, **options)
    long = gpt.generate("ab", max_tokens=150, **(options | {"min_tokens": 150}))
    assert len(long) == 150 and long.startswith(short)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"stop": ""}, "a stop string is empty: every text contains it"),
        ({"stop": ["a", ""]}, "a stop string is empty"),
        ({"max_tokens": 0}, "max_tokens is 0: it must be at least 1"),
        ({"min_tokens": 9}, "min_tokens is 9, more than max_tokens, 8: lower it"),
        ({"num_samples": 0}, "num_samples is 0: it must be at least 1"),
        ({"temperature": -1.0}, "temperature is -1.0: use 0"),
        ({"top_p": 0.0}, "top_p is 0.0: use a number above 0"),
        ({"num_beams": 2, "stop": "a"}, "num_beams goes without stop, logprobs and seed"),
        ({"num_beams": 2, "seed": 1}, "num_beams goes without stop, logprobs and seed"),
        ({"num_beams": 2, "temperature": 0.5}, "temperature is 0.5: beam search draws nothing, set it to 0"),
        ({"num_beams": 2, "num_samples": 3}, "num_samples is 3: 2 beams find 1 to 2"),
        ({"num_beams": 2, "num_samples": 0}, "num_samples is 0: 2 beams find 1 to 2"),
        ({"num_beams": -1}, "size is -1: use a number of beams"),
        ({"num_beams": 2, "early_stopping": "soon"}, "early_stopping is 'soon': use True, False or 'never'"),
        ({"num_beams": 2, "max_tokens": 64}, "3 tokens and 64 new ones do not fit the context of 64"),
        ({"length_penalty": 2.0}, "length_penalty and early_stopping belong to beam search: set num_beams"),
        ({"early_stopping": True}, "length_penalty and early_stopping belong to beam search: set num_beams"),
    ],
)
def test_impossible_requests_are_refused(gpt, options, says):
    with pytest.raises(ValueError, match=says):
        gpt.generate("ab", **({"max_tokens": 8} | options))


@pytest.mark.parametrize("seeds", [[], [1], [1, 2, 3]])
def test_a_stream_needs_a_seed_for_each_row(gpt, seeds):
    with pytest.raises(ValueError, match=f"{len(seeds)} seeds for 1 prompts of 2 samples: give 2"):
        gpt.stream(["ab"], max_tokens=4, num_samples=2, seeds=seeds)


def test_a_network_that_counts_has_no_hidden_states(recital):
    for call in (lambda: recital.hidden([[3, 4]]), lambda: recital.embed("ab")):
        with pytest.raises(ValueError, match="an n-gram model counts: it puts out logits, no hidden states"):
            call()


def test_a_decoder_embeds_by_its_last_norm(gpt):
    vector = gpt.embed("abc")
    np.testing.assert_allclose(vector, gpt.hidden([LETTERS.encode("abc")])[0].mean(0), atol=1e-6)
    np.testing.assert_allclose(gpt.embed(["abcdefgh", "abc"])[1], vector, atol=1e-6)
    with pytest.raises(ValueError, match="text 0 has no tokens: pass at least one"):
        gpt.embed("")
