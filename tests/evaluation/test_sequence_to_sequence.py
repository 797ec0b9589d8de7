"""An encoder-decoder as an object, with weights of chance: each answer against a computation by hand."""

import dataclasses

import jax
import numpy as np
import pytest

from data.tokenizers.bpe_training import train_byte_bpe
from data.tokenizers.tokenizer import ByteTokenizer, WithSpecials
from evaluation.ask import ask
from evaluation.sequence_to_sequence import SequenceToSequence
from evaluation.special_text import decode_filled, encode_marked
from model.build import build
from model.config import ModelConfig
from model.transformer import apply
from tests import tiny

TOKENIZER = WithSpecials(ByteTokenizer(), ["pad", "eos", "extra_0", "extra_1", "extra_2"])
PAD, EOS, FIRST, SECOND = (TOKENIZER.special_ids[name] for name in ("pad", "eos", "extra_0", "extra_1"))
T5 = ModelConfig(
    architecture="encoder_decoder",
    vocab_size=TOKENIZER.vocab_size,
    max_length=32,
    num_layers=2,
    num_encoder_layers=1,
    embed_dim=16,
    num_heads=2,
    positions="relative",
    relative_buckets=8,
    relative_max_distance=12,
    norm="rms",
    bias="none",
    tied_output=False,
    decoder_start_id=PAD,
)


def made(**changes):
    config = dataclasses.replace(T5, **changes)
    return ask(config, tiny.by_chance(config, 0.9), TOKENIZER, tiny.mesh())


@pytest.fixture(scope="module")
def t5():
    return made()


@pytest.fixture(scope="module")
def learned():
    return made(positions="learned", max_length=12, num_layers=1)


def output(lm, ids, source, mask):
    """What the network puts out, without `Network`."""
    arrays = [np.asarray(array, np.int32) for array in (ids, source, mask)]
    with jax.set_mesh(lm.mesh):
        model = build(lm.config)

        def run(params, ids, source, mask):
            return apply(model, params, ids, source_BS=source, source_segments_BS=mask)

        return jax.jit(run)(lm.params, *arrays)


def log_softmax(x):
    x = x.astype(np.float64) - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_marks_in_text_are_special_ids():
    assert encode_marked(TOKENIZER, "a<extra_0>b<extra_1>") == [*b"a", FIRST, *b"b", SECOND]
    assert encode_marked(TOKENIZER, "<extra_1>é") == [SECOND, *"é".encode()]
    assert encode_marked(TOKENIZER, "") == []
    assert encode_marked(TOKENIZER, "<b> & <extra>") == list(b"<b> & <extra>")  # what is no mark is text
    with pytest.raises(ValueError, match="the text has <extra_3>, for which this tokeniser has no id"):
        encode_marked(TOKENIZER, "a<extra_3>")


def test_marks_are_ids_where_names_of_special_ids_are_text():
    tokenizer = train_byte_bpe(["the quick brown fox " * 40], 268, sentinels=1)
    first = tokenizer.special_ids["extra_0"]
    assert encode_marked(tokenizer, "fox<extra_0>") == [*tokenizer.encode("fox"), first]
    assert first not in encode_marked(tokenizer, "fox<extra_id_0>")


def test_each_sentinel_is_replaced_by_what_the_answer_has_for_it():
    ids = [*b"x", FIRST, *b"y", SECOND, *b"z"]
    assert decode_filled(TOKENIZER, ids, [FIRST, *b"ab", SECOND, *b"c", EOS]) == "xabycz"
    assert decode_filled(TOKENIZER, ids, [SECOND, *b"c", FIRST, *b"ab"]) == "xabycz"  # whatever the order
    assert decode_filled(TOKENIZER, ids, [*b"lost", FIRST, *b"ab"]) == "xabyz"  # one is missing, one has no place


def test_logits_and_hidden_are_those_of_the_network(t5):
    assert isinstance(t5, SequenceToSequence)
    source, mask = [[*b"abc", EOS], [*b"d", EOS, PAD, PAD]], [[1, 1, 1, 1], [1, 1, 0, 0]]
    ids = [[PAD, *b"xy"], [PAD, *b"zz"]]
    expected = output(t5, ids, source, mask)
    logits, hidden = t5.logits(source, ids, mask), t5.hidden(source, mask)
    assert logits.shape == (2, 3, TOKENIZER.vocab_size) and hidden.shape == (2, 4, 16)
    assert logits.dtype == hidden.dtype == np.float32
    np.testing.assert_allclose(logits, expected.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(hidden, expected.source_BSD, rtol=1e-4, atol=1e-5)


def test_padding_is_not_seen(t5):
    source, mask = [[*b"d", EOS, PAD, PAD]], [[1, 1, 0, 0]]
    alone = t5.logits([[*b"d", EOS]], [[PAD, *b"z"]])
    np.testing.assert_allclose(t5.logits(source, [[PAD, *b"z"]], mask), alone, atol=1e-5, rtol=2e-6)
    padded = t5.logits(source, [[PAD, *b"z", PAD]], mask, [[1, 1, 0]])
    np.testing.assert_allclose(padded[:, :2], alone, atol=1e-5, rtol=2e-6)
    assert np.abs(t5.logits(source, [[PAD, *b"z"]]) - alone).max() > 0.01


def test_a_vector_is_the_mean_of_what_the_encoder_puts_out(t5):
    by_hand = t5.hidden([[*b"abc", EOS]])[0].mean(0)
    vector = t5.embed("abc")
    assert vector.shape == (16,) and vector.dtype == np.float32
    np.testing.assert_allclose(vector, by_hand, atol=1e-5)
    np.testing.assert_allclose(t5.embed(["abcdefghij", "abc"])[1], vector, atol=1e-5)


def nats(lm, text, target):
    """-ln p of each token of the target, its end included."""
    answer = np.array([*encode_marked(lm.tokenizer, target), EOS])
    source = np.array([[*encode_marked(lm.tokenizer, text), EOS]])
    inputs = np.array([[PAD, *answer[:-1]]])
    logp = log_softmax(np.asarray(output(lm, inputs, source, np.ones_like(source)).logits[0]))
    return -logp[np.arange(len(answer)), answer]


def test_loss_by_hand(t5):
    pairs = [("a<extra_0>c", "<extra_0>b"), ("abcdef", ""), ("é", "xyz")]
    by_hand = [nats(t5, *pair) for pair in pairs]
    assert [len(row) for row in by_hand] == [3, 1, 4]
    assert t5.loss(*pairs[0]) == pytest.approx(by_hand[0].mean(), rel=1e-5)
    texts, targets = zip(*pairs, strict=True)
    assert t5.loss(texts, targets) == pytest.approx(np.concatenate(by_hand).mean(), rel=1e-5)


def test_loss_of_more_pairs_than_a_batch(t5):
    texts = ["a", "bc", "d"] * 12
    targets = ["x", "yz", ""] * 12
    by_hand = np.concatenate([nats(t5, *pair) for pair in zip(texts[:3], targets[:3], strict=True)])
    assert t5.loss(texts, targets) == pytest.approx(by_hand.mean(), rel=1e-5)


def test_generate_is_greedy_by_hand(t5):
    """Token after token from `logits`."""
    inputs = np.full((1, 9), PAD)  # what is behind a token does not change its scores
    for place in range(8):
        inputs[0, place + 1] = t5.logits([[*b"abc", EOS]], inputs)[0, place].argmax()
    found = t5.generate("abc", max_tokens=8, temperature=0.0, details=True)
    assert found.ids == inputs[0, 1:].tolist() and len(set(found.ids)) > 3 and EOS not in found.ids
    assert found.text == TOKENIZER.decode(found.ids) == t5.generate("abc", max_tokens=8, temperature=0.0)
    logp = log_softmax(t5.logits([[*b"abc", EOS]], inputs)[0])
    np.testing.assert_allclose(found.logprobs, logp[np.arange(8), found.ids], atol=1e-4)


def test_an_answer_depends_on_its_text_and_seed_alone(t5):
    options = {"max_tokens": 8, "seed": 5}
    alone = t5.generate("abc", **options)
    assert t5.generate(["d", "abc", "e<extra_0>"], **options)[1] == alone
    assert t5.generate("abc", **(options | {"seed": 6})) != alone
    many = t5.generate(["abc", "d"], num_samples=2, **options)
    assert [len(row) for row in many] == [2, 2] and many[0] == [alone, t5.generate("abc", max_tokens=8, seed=6)]
    pieces = zip(*t5.stream(["d", "abc"], max_tokens=8, seeds=[5, 5]), strict=True)
    assert ["".join(row) for row in pieces] == [t5.generate("d", **options), alone]


def test_beams_are_scored_by_the_network(t5):
    found = t5.generate("abc", max_tokens=4, num_beams=3, num_samples=2, details=True)
    assert len(found) == 2 and found[0].score >= found[1].score
    for answer in found:
        logp = log_softmax(t5.logits([[*b"abc", EOS]], [[PAD, *answer.ids[:-1]]])[0])
        mean = logp[np.arange(len(answer.ids)), answer.ids].mean()
        assert answer.score == pytest.approx(mean, abs=1e-4)


def test_fill_puts_the_answer_in_its_place(t5, monkeypatch):
    options = {"max_tokens": 6, "temperature": 0.0}
    answer = t5.generate("a<extra_0>b", details=True, **options)
    expected = decode_filled(TOKENIZER, [*b"a", FIRST, *b"b"], answer.ids)
    assert t5.fill("a<extra_0>b", **options) == expected
    plain = f"ab\n-> {t5.generate('ab', **options)}"  # nothing to fill: an answer
    assert t5.complete(["a<extra_0>b", "ab"], seed=0, **options) == [expected, plain]
    said = dataclasses.replace(answer, ids=[FIRST, *b"XY", SECOND, *b"Z", EOS])
    monkeypatch.setattr(t5, "generate", lambda *_, **__: said)
    assert t5.fill("a<extra_0>b<extra_1>", **options) == "aXYbZ"


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda lm: lm.logits([[3, 261]], [[0]]), "^ids run from 3 to 261: the vocabulary is 0 to 260"),
        (lambda lm: lm.logits([[3, 4]], [[261]]), "decoder_ids run from 261 to 261: the vocabulary is 0 to 260"),
        (lambda lm: lm.logits([3, 4], [[1]]), r"^ids has shape \(2,\) and type int64: pass integers of shape"),
        (lambda lm: lm.logits([[3]], [[1]], [[1, 1]]), r"^mask of shape \(1, 2\) and ids of shape \(1, 1\) do not"),
        (lambda lm: lm.logits([[3]], [[1]], None, [[1, 1]]), r"decoder_mask of shape \(1, 2\) and decoder_ids of"),
        (lambda lm: lm.logits([[3], [4]], [[1]] * 3), r"^ids of shape \(2, 1\) and decoder_ids of shape \(3, 1\)"),
        (lambda lm: lm.loss(["a", "b"], ["c"]), "2 texts and 1 targets: give one target for each text"),
        (lambda lm: lm.loss([], []), "the texts have no token to predict: pass at least one"),
        (lambda lm: lm.generate([], max_tokens=2), "no prompt was given: pass at least one"),
        (lambda lm: lm.generate("<mask>", max_tokens=2), "the text has <mask>, for which this tokeniser has no id"),
        (lambda lm: lm.fill("abc", max_tokens=4), "'abc' has no <extra_0> to fill"),
        (lambda lm: lm.fill("<extra_0>", max_tokens=4, num_samples=2), "num_samples is 2: fill gives one text"),
    ],
)
def test_mistakes_get_a_clear_error(t5, call, says):
    with pytest.raises(ValueError, match=says):
        call(t5)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda lm: lm.hidden([[3] * 13]), "13 tokens do not fit the context of 12: cut the input"),
        (lambda lm: lm.logits([[3]], [[3] * 13]), "13 tokens do not fit the context of 12: cut the input"),
        (lambda lm: lm.loss("a" * 12, "b"), "13 tokens do not fit the context of 12: cut the input"),
        (lambda lm: lm.loss("a", "b" * 12), "13 tokens do not fit the context of 12: cut the input"),
        (lambda lm: lm.embed("a" * 12), "13 tokens do not fit the context of 12: cut the input"),
        (lambda lm: lm.generate("a" * 12, max_tokens=2), "source 0 has 13 tokens, the context has 12"),
        (lambda lm: lm.check("a" * 12), "source 0 has 13 tokens, the context has 12: shorten it by 1 tokens"),
    ],
)
def test_what_learned_positions_do_not_reach_is_refused(learned, call, says):
    with pytest.raises(ValueError, match=says):
        call(learned)
