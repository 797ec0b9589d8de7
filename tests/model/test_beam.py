"""Beam search: equal to exhaustive search where it keeps everything, and to transformers' beams."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import parameters
from model.beam import Beams, beam_search
from model.build import build
from model.decoding import Decoder
from model.pretrained.weights import load_weights, read_config
from model.sampling import Sampling
from tests import tiny

V, EOS = 4, 3


def exhaustive(log_p, start, length, penalty):
    """Every sequence that ends, or is `length` tokens long, with its score, best first; `log_p` of the last two."""
    found = []
    for n in range(1, length + 1):
        for tokens in itertools.product(range(V), repeat=n):
            if EOS in tokens[:-1] or (tokens[-1] != EOS and n < length):
                continue
            before = [*start, *tokens]
            total = sum(log_p[before[i], before[i + 1], before[i + 2]] for i in range(n))
            found.append((total / n**penalty, list(tokens)))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.5, -1.0])
def test_beams_for_every_sequence_find_what_exhaustive_search_finds(penalty):
    log_p = np.log(np.random.default_rng(0).dirichlet(np.full(V, 0.5), (V, V))).astype(np.float32)
    starts, W, length = [[0, 1], [2, 0]], V**4, 4
    first = jnp.repeat(jnp.asarray(starts), W, axis=0)

    @jax.jit
    def search(beams):
        return beam_search(
            lambda pairs: jnp.asarray(log_p)[pairs[:, 0], pairs[:, 1]],
            lambda pairs, rows, tokens: jnp.stack([pairs[rows, 1], tokens], axis=1),
            first,
            beams,
            jnp.int32(length),
            batch=2,
            capacity=6,
            eos_ids=(EOS,),
        )

    ended = jax.device_get(search(Beams(W, penalty, "never")))
    for row, start in enumerate(starts):
        expected = exhaustive(log_p, start, length, penalty)
        scores = ended.scores_BW[row]
        assert (scores > -np.inf).sum() == len(expected)  # 121 of 256: each once, none made up
        np.testing.assert_allclose(scores[: len(expected)], [score for score, _ in expected], rtol=1e-5)
        by_tokens = {tuple(tokens): score for score, tokens in expected}
        for w in range(len(expected)):  # some scores differ in rounding only
            found = tuple(ended.tokens_BWN[row, w, : ended.lengths_BW[row, w]].tolist())
            np.testing.assert_allclose(scores[w], by_tokens.pop(found), rtol=1e-5)


@pytest.mark.parametrize(("early_stopping", "tokens"), [(True, [3]), (False, [3]), ("never", [1, 1, 1, 1])])
def test_never_waits_for_the_length_that_a_penalty_favours(early_stopping, tokens):
    """After the end, scored log 0.6, the running 1 has log 0.39; squared, four tokens divide its sum by 16."""
    p = jnp.asarray([[0.005, 0.39, 0.005, 0.6], [0.01, 0.97, 0.01, 0.01]])
    ended = beam_search(
        lambda last: jnp.log(p)[last],
        lambda last, rows, token: jnp.minimum(token, 1),
        jnp.zeros(1, jnp.int32),
        Beams(1, 2.0, early_stopping),
        jnp.int32(4),
        batch=1,
        capacity=4,
        eos_ids=(EOS,),
    )
    assert ended.tokens_BWN[0, 0, : ended.lengths_BW[0, 0]].tolist() == tokens
    best = np.log(0.6) if tokens == [3] else (np.log(0.39) + 3 * np.log(0.97)) / 16
    np.testing.assert_allclose(ended.scores_BW[0, 0], best, rtol=1e-5)


@pytest.fixture(scope="module")
def gpt():
    config = dataclasses.replace(tiny.GPT, init_std=0.3)
    model = build(config)
    with jax.set_mesh(tiny.mesh()):
        params = jax.jit(lambda: parameters.init(model, jax.random.key(1)))()
        yield params, Decoder(model, config)


def test_one_beam_is_greedy_and_more_are_better(gpt):
    params, decoder = gpt
    limits = {"max_tokens": 10, "vocab_limit": 60, "eos_ids": ()}
    prompts = [[5], [1, 2, 3]]
    (chunk,) = decoder.stream(params, prompts, sampling=Sampling(0.0), seeds=[0, 0], logprobs=True, **limits)
    one = decoder.beam(params, prompts, beams=Beams(1, 0.0), **limits)
    eight = decoder.beam(params, prompts, beams=Beams(8, 0.0), num_return=8, **limits)
    for row in range(2):
        assert one[row][0].tokens == chunk.tokens_BN[row].tolist()
        np.testing.assert_allclose(one[row][0].score, chunk.logprobs_BN[row].sum(), rtol=1e-5)
        assert eight[row][0].score > one[row][0].score + 0.1
        assert len({tuple(found.tokens) for found in eight[row]}) == 8
        assert [found.score for found in eight[row]] == sorted((found.score for found in eight[row]), reverse=True)
        assert max(max(found.tokens) for found in eight[row]) < 60


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"beams": Beams(0)}, "size is 0"),
        ({"beams": Beams(2, float("nan"))}, "length_penalty is nan"),
        ({"beams": Beams(2, 1.0, "always")}, "early_stopping is 'always'"),
        ({"num_return": 3}, "num_return is 3: use 1 to 2"),
        ({"sampling": Sampling(0.5)}, "temperature is 0.5: beam search draws nothing"),
        ({"max_tokens": 31}, "2 tokens and 31 new ones do not fit the context of 32.*at most 30"),
        ({"eos_ids": (64,)}, "eos_ids are"),
    ],
)
def test_errors(gpt, options, says):
    params, decoder = gpt
    arguments = {"max_tokens": 4, "beams": Beams(2), "vocab_limit": 64, "eos_ids": (), **options}
    with pytest.raises(ValueError, match=says):
        decoder.beam(params, [[1, 2]], **arguments)


def peer(family, folder):
    """A tiny random network of transformers, and the same one as ours."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if family == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=50, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.4, bos_token_id=0
        )
        theirs = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.T5Config(
            vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
        theirs = transformers.T5ForConditionalGeneration(config)
        with torch.no_grad():
            for weight in theirs.parameters():
                weight.mul_(3.0 if weight.ndim > 1 else 1.0)
    theirs.eval().save_pretrained(folder)
    ours, _ = read_config(folder)
    ours = dataclasses.replace(ours, dropout=0.0, max_length=64)
    model = build(ours)
    weights = parameters.weights(model)
    decoder = Decoder(model, ours)
    shardings = parameters.shardings(weights, decoder.rules, jax.sharding.get_mesh())
    params, _ = load_weights(folder, ours, weights, shardings)
    return theirs, params, decoder


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    made = {}

    def get(family):
        if family not in made:
            made[family] = peer(family, tmp_path_factory.mktemp(family))
        return made[family]

    with jax.set_mesh(tiny.mesh()):
        yield get


TEXTS = [[7, 8, 9, 10, 11], [12, 13], [14, 15, 16]]


def theirs_and_ours(peers, family, beams, eos, max_tokens, num_return, **penalties):
    torch = pytest.importorskip("torch")

    theirs, params, decoder = peers(family)
    longest = max(map(len, TEXTS))
    left = [[49] * (longest - len(text)) + text for text in TEXTS]
    mask = [[0] * (longest - len(text)) + [1] * len(text) for text in TEXTS]
    if family == "t5":  # an encoder counts from the left, but its positions are relative
        left, mask = [row[::-1] for row in left], [row[::-1] for row in mask]
    output = theirs.generate(
        torch.tensor(left),
        attention_mask=torch.tensor(mask),
        do_sample=False,
        num_beams=beams.size,
        length_penalty=beams.length_penalty,
        early_stopping=beams.early_stopping,
        num_return_sequences=num_return,
        max_new_tokens=max_tokens,
        eos_token_id=list(eos),
        pad_token_id=49,
        output_scores=True,
        return_dict_in_generate=True,
        **penalties,
    )
    sequences = output.sequences[:, longest if family == "gpt2" else 1 :].numpy().reshape(len(TEXTS), num_return, -1)
    given = {"prompts": TEXTS} if family == "gpt2" else {"prompts": [[]] * 3, "sources": [t[::-1] for t in TEXTS]}
    sampling = Sampling(
        0.0,
        repetition_penalty=penalties.get("repetition_penalty", 1.0),
        no_repeat_ngram=penalties.get("no_repeat_ngram_size", 0),
        min_tokens=penalties.get("min_new_tokens", 0),
    )
    found = decoder.beam(
        params,
        **given,
        max_tokens=max_tokens,
        beams=beams,
        vocab_limit=50,
        eos_ids=eos,
        num_return=num_return,
        sampling=sampling,
    )
    return sequences, output.sequences_scores.numpy().reshape(len(TEXTS), num_return), found


CASES = [
    (Beams(4, 1.0, False), (3, 5, 6), 4, {}),
    (Beams(4, 0.0, "never"), (3, 20, 31), 2, {}),
    (Beams(3, 2.0, "never"), (5, 31, 6), 3, {}),
    (Beams(4, 1.0, True), (3, 20, 31, 5, 6), 4, {}),
    (Beams(4, -0.5, False), (3, 20, 31, 5, 6), 4, {}),
    (
        Beams(4, 1.0, False),
        (3, 20, 31, 5, 6),
        4,
        {"no_repeat_ngram_size": 2, "min_new_tokens": 5, "repetition_penalty": 1.3},
    ),
]


@pytest.mark.parametrize(("family", "case"), [*(("gpt2", case) for case in range(len(CASES))), ("t5", 3), ("t5", 5)])
def test_beams_equal_those_of_transformers(peers, family, case):
    beams, eos, num_return, penalties = CASES[case]
    sequences, scores, found = theirs_and_ours(peers, family, beams, eos, 12, num_return, **penalties)
    for row in range(len(TEXTS)):
        for place, hypothesis in enumerate(found[row]):
            tokens = hypothesis.tokens
            padded = tokens + [49] * (sequences.shape[2] - len(tokens))
            assert sequences[row, place].tolist() == padded
            np.testing.assert_allclose(hypothesis.score, scores[row, place], rtol=1e-4)
        assert len(found[row]) == num_return
