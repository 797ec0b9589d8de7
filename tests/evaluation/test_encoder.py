"""Encoders of every head as objects, with weights of chance: each answer against a computation by hand."""

import dataclasses

import jax
import numpy as np
import pytest

from data.tokenizers.tokenizer import ByteTokenizer, WithSpecials
from evaluation import network
from evaluation.ask import ask
from evaluation.encoder import Encoder
from model.build import build
from model.config import ModelConfig
from model.transformer import apply
from tests import tiny

TOKENIZER = WithSpecials(ByteTokenizer(), ["pad", "mask", "cls", "sep"])
PAD, MASK, CLS, SEP = (TOKENIZER.special_ids[name] for name in ("pad", "mask", "cls", "sep"))
ROWS = 264  # of the embedding: three more than the tokeniser has ids
BERT = ModelConfig(
    architecture="encoder",
    head="masked_lm",
    vocab_size=ROWS,
    max_length=24,
    num_layers=2,
    embed_dim=16,
    num_heads=2,
    token_types=2,
    embedding_norm=True,
    norm_placement="post",
)


def made(**changes):
    config = dataclasses.replace(BERT, **changes)
    return ask(config, tiny.by_chance(config), TOKENIZER, tiny.mesh())


@pytest.fixture(scope="module")
def bert():
    return made()


@pytest.fixture(scope="module")
def plain():
    """No head, no token types, positions without an end."""
    return made(head="none", token_types=0, positions="sinusoidal")


def output(lm, ids, **options):
    """What the network puts out, without `Network`."""
    options = {name: np.asarray(value, np.int32) for name, value in options.items()}
    with jax.set_mesh(lm.mesh):
        return jax.jit(lambda params, ids: apply(build(lm.config), params, ids, **options))(
            lm.params, np.asarray(ids, np.int32)
        )


def softmax(x):
    p = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def test_inputs_are_wrapped_padded_and_masked(bert):
    assert isinstance(bert, Encoder)
    inputs = bert.inputs(["abc", "d<mask>"])
    np.testing.assert_array_equal(inputs["ids"], [[CLS, *b"abc", SEP], [CLS, *b"d", MASK, SEP, PAD]])
    np.testing.assert_array_equal(inputs["mask"], [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    assert not inputs["token_types"].any()
    assert all(array.dtype == np.int32 and array.shape == (2, 5) for array in inputs.values())
    np.testing.assert_array_equal(bert.inputs("abc")["ids"], [[CLS, *b"abc", SEP]])


def test_a_pair_has_two_token_types(bert, plain):
    inputs = bert.inputs(["ab", "c"], ["d", "efg"])
    np.testing.assert_array_equal(inputs["ids"], [[CLS, *b"ab", SEP, *b"d", SEP, PAD], [CLS, *b"c", SEP, *b"efg", SEP]])
    np.testing.assert_array_equal(inputs["token_types"], [[0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1]])
    np.testing.assert_array_equal(inputs["mask"].sum(1), [6, 7])
    np.testing.assert_array_equal(bert.inputs("ab", "d")["ids"], inputs["ids"][:1, :-1])
    assert not plain.inputs("ab", "d")["token_types"].any()  # it has no table of them


def test_hidden_and_logits_are_those_of_the_network(bert):
    inputs = bert.inputs(["ab", "c"], ["d", "efg"])
    names = {"segments_BT": inputs["mask"], "token_types_BT": inputs["token_types"]}
    expected = output(bert, inputs["ids"], **names)
    hidden, logits = bert.hidden(**inputs), bert.logits(**inputs)
    assert hidden.shape == (2, 7, 16) and logits.shape == (2, 7, ROWS)
    assert hidden.dtype == logits.dtype == np.float32
    np.testing.assert_allclose(hidden, expected.hidden_BTD, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(logits, expected.logits, rtol=1e-5, atol=1e-5)


def test_mask_and_token_types_count(bert):
    inputs = bert.inputs(["ab", "abcdef"])
    alone = bert.hidden(bert.inputs("ab")["ids"])
    np.testing.assert_allclose(bert.hidden(**inputs)[0, :4], alone[0], atol=1e-5)
    assert np.abs(bert.hidden(inputs["ids"])[0, :4] - alone[0]).max() > 0.01  # without a mask it sees the padding
    np.testing.assert_allclose(bert.hidden(inputs["ids"], inputs["mask"] == 1), bert.hidden(**inputs), atol=1e-6)
    types = np.ones_like(inputs["ids"])
    assert np.abs(bert.hidden(inputs["ids"], inputs["mask"], types) - bert.hidden(**inputs)).max() > 0.01


@pytest.mark.parametrize(
    ("head", "labels", "logits", "pooled"),
    [
        ("pretraining", 0, (2, 5, ROWS), True),
        ("classification", 3, (2, 3), True),
        ("token_classification", 4, (2, 5, 4), False),
        ("span", 0, (2, 5, 2), False),
        ("pooler", 0, None, True),
        ("none", 0, None, False),
        ("masked_lm", 0, (2, 5, ROWS), False),
    ],
)
def test_each_head_puts_out_its_own(head, labels, logits, pooled):
    lm = made(head=head, num_labels=labels)
    inputs = lm.inputs(["abc", "d"])
    expected = output(lm, inputs["ids"], segments_BT=inputs["mask"])
    if logits is None:
        with pytest.raises(ValueError, match=f"this network has head '{head}': it puts out hidden states, no logits"):
            lm.logits(**inputs)
    else:
        found = lm.logits(**inputs)
        assert found.shape == logits
        np.testing.assert_allclose(found, expected.logits, rtol=1e-5, atol=1e-5)
    if pooled:
        weights = jax.device_get(lm.params["head"]["pooler"])
        by_hand = np.tanh(lm.hidden(**inputs)[:, 0] @ weights["kernel"] + weights["bias"])
        np.testing.assert_allclose(lm.pooled(**inputs), by_hand, rtol=1e-4, atol=1e-5)
    else:
        with pytest.raises(ValueError, match=f"this network has head '{head}', which has no pooler"):
            lm.pooled(**inputs)


def test_a_vector_is_the_mean_over_the_tokens(bert, plain):
    for lm in (bert, plain):
        by_hand = lm.hidden([[CLS, *b"abc", SEP]])[0].mean(0)
        vector = lm.embed("abc")
        assert vector.shape == (16,) and vector.dtype == np.float32
        np.testing.assert_allclose(vector, by_hand, atol=1e-5)
        # The padding that a longer neighbour brings is not seen, and not counted.
        np.testing.assert_allclose(lm.embed(["abcdefghij", "abc"])[1], vector, atol=1e-5)
    assert bert.embed([]).shape == (0, 16)


def test_more_texts_than_a_batch_are_embedded_in_order(plain):
    texts = [chr(97 + number % 26) * (1 + number % 3) for number in range(70)]
    found = plain.embed(texts)
    assert found.shape == (70, 16)
    for number in (0, 31, 32, 69):
        np.testing.assert_allclose(found[number], plain.embed(texts[number]), atol=1e-5)


def pseudo_nats(lm, text):
    """-ln p of each byte behind a mask, one at a time."""
    ids = np.array([CLS, *text.encode(), SEP])
    nats = []
    for place in range(1, len(ids) - 1):
        masked = ids.copy()
        masked[place] = MASK
        nats.append(-np.log(softmax(lm.logits(masked[None])[0, place])[ids[place]]))
    return np.array(nats)


def test_loss_is_the_pseudo_likelihood(bert, plain):
    first, second = pseudo_nats(bert, "abca"), pseudo_nats(bert, "é")
    assert bert.loss("abca") == pytest.approx(first.mean(), rel=1e-5)
    assert bert.loss(["abca", "é"]) == pytest.approx(np.concatenate([first, second]).mean(), rel=1e-5)
    for texts in ([], "", [""]):
        with pytest.raises(ValueError, match="the texts have no token to predict"):
            bert.loss(texts)


def test_loss_in_parts_is_the_loss(monkeypatch):
    """Logits of one token of each row at a time, under a head that also pools the first token of what it sees."""
    monkeypatch.setattr(network, "LOGITS", 1)
    lm = made(head="pretraining")
    assert lm.loss("abca") == pytest.approx(pseudo_nats(lm, "abca").mean(), rel=1e-5)


def test_loss_of_more_places_than_a_batch():
    lm = made(positions="sinusoidal", num_layers=1)
    text = "abcdefghi" * 4
    assert lm.loss(text) == pytest.approx(pseudo_nats(lm, text).mean(), rel=1e-5)


def test_fill_gives_the_most_likely_tokens_of_each_mask(bert):
    found = bert.fill("a<mask>b<mask>", top=300)
    logits = bert.logits([[CLS, *b"a", MASK, *b"b", MASK, SEP]])[0, [2, 4], : TOKENIZER.vocab_size]
    assert len(found) == 2
    for best, p in zip(found, softmax(logits), strict=True):
        probabilities = np.array([value for _, value in best])
        assert len(best) == TOKENIZER.vocab_size and (np.diff(probabilities) <= 0).all()
        np.testing.assert_allclose(probabilities, np.sort(p)[::-1], rtol=1e-5)
        texts = {TOKENIZER.decode([id]): float(p[id]) for id in range(128)}
        assert {text: value for text, value in best if text in texts and text} == pytest.approx(texts, rel=1e-5)
    assert bert.fill("a<mask>b<mask>", top=2) == [best[:2] for best in found]
    assert [len(best) for best in bert.fill("<mask>")] == [5]


def test_complete_shows_what_would_fill_the_masks(bert):
    options = {"max_tokens": 3, "temperature": 1.0, "seed": 0}
    (first, second) = bert.complete(["a<mask>", "<mask><mask>"], **options)
    best = bert.fill("a<mask>")[0]
    assert first == "a<mask>\n  <mask>: " + ", ".join(f"{token!r} {p:.2f}" for token, p in best)
    assert second.startswith("<mask><mask>\n") and second.count("\n  <mask>: ") == 2


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda lm: lm.logits([[3, 264]]), "ids run from 3 to 264: the vocabulary is 0 to 263"),
        (lambda lm: lm.hidden([[-1, 2]]), "ids run from -1 to 2: the vocabulary is 0 to 263"),
        (lambda lm: lm.hidden([3, 4]), r"ids has shape \(2,\) and type int64: pass integers of shape \(batch"),
        (lambda lm: lm.hidden([[0.5]]), r"ids has shape \(1, 1\) and type float64: pass integers"),
        (lambda lm: lm.hidden([[3, 4]], [[1]]), r"mask of shape \(1, 1\) and ids of shape \(1, 2\) do not go"),
        (lambda lm: lm.hidden([[3, 4]], None, [[0]]), r"token_types of shape \(1, 1\) and ids of shape \(1, 2\)"),
        (lambda lm: lm.hidden([[3, 4]], None, [[0, 2]]), "token_types run from 0 to 2: there are 0 to 1"),
        (lambda lm: lm.embed("a" * 23), "25 tokens do not fit the context of 24: cut the input"),
        (lambda lm: lm.loss("a" * 23), "25 tokens do not fit the context of 24: cut the input"),
        (lambda lm: lm.fill("abc"), "'abc' has no <mask> to fill"),
        (lambda lm: lm.fill("<mask>", top=0), "top is 0: it must be at least 1"),
        (lambda lm: lm.fill("<extra_0>"), "the text has <extra_0>, for which this tokeniser has no id"),
        (lambda lm: lm.check("abc"), "a prompt needs a <mask> and at most 24 tokens: 'abc'"),
        (lambda lm: lm.check("<mask>" + "a" * 22), "a prompt needs a <mask> and at most 24 tokens"),
        (lambda lm: lm.inputs(["a", "b"], ["c"]), "2 texts and 1 partners: give one partner for each text"),
        (lambda lm: lm.inputs(["a", "b"], []), "2 texts and 0 partners: give one partner for each text"),
        (lambda lm: lm.inputs([]), "no text was given: pass at least one"),
    ],
)
def test_mistakes_get_a_clear_error(bert, call, says):
    with pytest.raises(ValueError, match=says):
        call(bert)


def test_a_prompt_that_can_be_filled_passes(bert):
    bert.check("<mask>" + "a" * 21)


def test_without_a_masked_lm_head_nothing_is_predicted(plain):
    for call in (lambda: plain.fill("a<mask>"), lambda: plain.loss("ab"), lambda: plain.check("a<mask>")):
        with pytest.raises(ValueError, match="this network has head 'none': only one with a masked_lm head"):
            call()
    with pytest.raises(ValueError, match="token_types are given, but this network has no table of them"):
        plain.hidden([[3, 4]], None, [[0, 1]])
    assert plain.embed("a" * 60).shape == (16,)  # longer than max_length, which sinusoidal positions do not mind
