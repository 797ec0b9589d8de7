"""Generation: cached equals uncached for every family and setting, and rows do not disturb each other."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import parameters
from model.beam import Beams
from model.build import build
from model.config import ModelConfig
from model.decoding import Decoder
from model.ngram_table import count_ngrams
from model.sampling import Sampling, choose, penalize
from model.transformer import apply
from tests import tiny

GREEDY = Sampling(0.0)
T5 = dataclasses.replace(
    tiny.LLAMA, architecture="encoder_decoder", positions="relative", attention_scale=1.0, decoder_start_id=7
)
CONFIGS = {
    "gpt": dataclasses.replace(tiny.GPT, init_std=0.3),
    "llama": dataclasses.replace(tiny.LLAMA, init_std=0.3),
    "t5": dataclasses.replace(T5, init_std=0.3),
    "gru": ModelConfig(architecture="gru", vocab_size=64, max_length=32, num_layers=2, embed_dim=32, num_heads=4),
    "ngram": ModelConfig(architecture="ngram", vocab_size=64, max_length=32, ngram_order=3),
}
SOURCES = [[3, 4, 5], [9] * 11, [1, 63]]


EVERYTHING = Sampling(
    0.9, top_k=20, top_p=0.95, min_p=0.001, typical_p=0.97, repetition_penalty=1.3, no_repeat_ngram=2, min_tokens=6
)


EOS = tuple(range(11, 27))


class Network:
    """A tiny network of one family, generating with its cache and without one."""

    def __init__(self, name):
        self.config = CONFIGS[name]
        self.model = build(self.config)
        if name == "ngram":
            tokens = np.random.default_rng(0).integers(0, 64, 3000).astype(np.int32)
            self.params = count_ngrams(tokens, order=3, vocab_size=64)
        else:
            self.params = jax.jit(lambda: parameters.init(self.model, jax.random.key(1)))()
        self.decoder = Decoder(self.model, self.config)
        self.bounded = self.config.architecture in ("decoder", "encoder_decoder")
        self.reads_source = self.config.architecture == "encoder_decoder"
        self.forward = jax.jit(lambda params, ids_BT: apply(self.model, params, ids_BT).logits)
        self._next = jax.jit(self._uncached_step, static_argnames="eos")

    def run(self, prompts, max_tokens, sampling=GREEDY, seeds=None, limit=64, eos=(), decoder=None, **options):
        if self.reads_source:
            options = {"sources": [SOURCES[i % 3] for i in range(len(prompts))], **options}
        chunks = (decoder or self.decoder).stream(
            options.pop("params", self.params),
            prompts,
            max_tokens=max_tokens,
            sampling=sampling,
            seeds=seeds or [0] * (len(prompts) * options.get("num_samples", 1)),
            vocab_limit=limit,
            eos_ids=eos,
            **options,
        )
        tokens, logprobs = zip(*chunks, strict=True)
        if options.get("logprobs"):
            return np.concatenate(tokens, axis=1), np.concatenate(logprobs, axis=1)
        assert set(logprobs) == {None}
        return np.concatenate(tokens, axis=1)

    def _uncached_step(self, params, ids_1T, length, source, sampling, key, n, eos):
        logits_1V = self.model.apply({"params": params}, ids_1T, **source).logits[:, length - 1]
        T = ids_1T.shape[1]
        history_1T = jnp.where(jnp.arange(T) < T - length, -1, jnp.roll(ids_1T, T - length, axis=1))
        allowed_1V = penalize(logits_1V, sampling, history_1T, n, eos)
        token = choose(allowed_1V, jax.random.fold_in(key, n)[None], sampling)[0]
        return token, jax.nn.log_softmax(logits_1V)[0, token]

    def uncached(self, prompt, count, sampling=GREEDY, seed=0, source=0, eos=(), logprobs=False, first=0):
        """What `run` must give for a row from token `first` on: the network reads the whole text for each token."""
        ids = [self.config.decoder_start_id, *prompt] if self.reads_source else list(prompt)
        inputs = {"source_BS": np.asarray([SOURCES[source]])} if self.reads_source else {}
        start, logps, sampling = len(ids), [], sampling.checked(64)
        for n in range(first, first + count):
            padded = np.zeros((1, 32 if self.bounded else 64), np.int32)
            padded[0, : len(ids)] = ids
            token, logp = self._next(self.params, padded, len(ids), inputs, sampling, jax.random.key(seed), n, eos=eos)
            ids.append(int(token))
            logps.append(float(logp))
        return (ids[start:], logps) if logprobs else ids[start:]


@pytest.fixture(scope="module")
def networks():
    """Made when first asked for."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = Network(name)
        return made[name]

    with jax.set_mesh(tiny.mesh()):
        yield get


@pytest.fixture(params=CONFIGS)
def network(networks, request):
    return networks(request.param)


@pytest.fixture
def gpt(networks):
    return networks("gpt")


@pytest.fixture
def t5(networks):
    return networks("t5")


def test_cached_equals_uncached_for_prompts_of_several_lengths(network):
    prompts = [[5], [1, 2, 3, 4, 5, 6, 7], [60, 3, 9]]
    count = 20 if network.bounded else 45  # what has no window goes on for ever
    together = network.run(prompts, count)
    for row, prompt in enumerate(prompts):
        assert together[row].tolist() == network.uncached(prompt, count, source=row)


@pytest.mark.parametrize("name", ["gpt", "t5"])
def test_cached_equals_uncached_with_every_setting(networks, name):
    network, eos = networks(name), EOS
    prompts, seeds = [[1, 2, 3, 4, 5, 6, 7], [60, 3]], [5, 6]
    tokens, logprobs = network.run(prompts, 18, EVERYTHING, seeds, eos=eos, logprobs=True)
    ends = []
    for row, prompt in enumerate(prompts):
        expected, logps = network.uncached(prompt, 18, EVERYTHING, seeds[row], row, eos, logprobs=True)
        end = next((n + 1 for n, token in enumerate(expected) if token in eos), 18)
        ends.append(end)
        assert tokens[row, :end].tolist() == expected[:end]
        assert (tokens[row, end:] == 11).all() and (logprobs[row, end:] == 0).all()
        np.testing.assert_allclose(logprobs[row, :end], logps[:end], atol=1e-4)
    assert 6 < min(ends) < 16  # so that a finished row is seen


def test_a_row_does_not_depend_on_the_others(gpt):
    sampling, long = Sampling(1.0, top_k=10, top_p=0.9, repetition_penalty=1.2), [1, 2, 3, 4, 5, 6, 7, 8, 9]
    row = gpt.run([[5, 6], long], 16, sampling, seeds=[3, 4])[0].tolist()
    assert row == gpt.run([[60], [5, 6]], 16, sampling, seeds=[9, 3])[1].tolist()
    assert row != gpt.run([[5, 6], long], 16, sampling, seeds=[4, 4])[0].tolist()


def test_samples_of_one_prompt_are_those_of_their_seeds_and_the_prompt_is_read_once(t5):
    seen, prefill = [], t5.decoder._prefill
    t5.decoder._prefill = lambda params, arrays, **rest: (
        seen.append(len(arrays["ids_BT"])),
        prefill(params, arrays, **rest),
    )[1]
    try:
        samples = t5.run([[5, 6], [7]], 6, EVERYTHING, seeds=[1, 2, 3, 4], num_samples=2, eos=EOS)
    finally:
        t5.decoder._prefill = prefill
    assert seen == [2]
    for row in range(4):
        expected = t5.uncached([[5, 6], [7]][row // 2], 6, EVERYTHING, seed=row + 1, source=row // 2, eos=EOS)
        assert samples[row].tolist() == expected


def test_an_answer_depends_on_its_source_and_follows_its_prefix(t5):
    first, second = t5.run([[], []], 8).tolist()
    assert first != second and first == t5.uncached([], 8)
    assert t5.run([first[:3], second[:1]], 5).tolist() == [first[3:], second[1:6]]


@pytest.mark.parametrize("name", ["gpt", "gru", "ngram"])
def test_scores_of_beams_are_those_of_the_sequence_read_at_once(networks, name):
    """Wrong rows of the cache after a step would give the tokens of one beam and the score of another."""
    network, prompts = networks(name), [[1, 2, 3, 4, 5], [60]]
    limits = {"max_tokens": 8, "vocab_limit": 64, "eos_ids": EOS}
    found = network.decoder.beam(network.params, prompts, beams=Beams(5, 0.7), num_return=5, **limits)
    for prompt, hypotheses in zip(prompts, found, strict=True):
        assert len({tuple(hypothesis.tokens) for hypothesis in hypotheses}) == 5
        for tokens, score in hypotheses:
            text = np.zeros((1, 32), np.int32)
            text[0, : len(prompt) + len(tokens)] = prompt + tokens
            logp_TV = jax.nn.log_softmax(network.forward(network.params, text)[0])
            total = sum(float(logp_TV[len(prompt) - 1 + n, token]) for n, token in enumerate(tokens))
            np.testing.assert_allclose(score, total / len(tokens) ** 0.7, rtol=1e-4)


def test_prompt_and_answer_fill_the_context_to_the_last_slot(gpt):
    prompt = list(range(12))
    assert gpt.run([prompt], 20)[0].tolist() == gpt.uncached(prompt, 20)


def test_beyond_the_context_the_younger_half_is_read_anew(gpt):
    prompt, sampling = list(range(12)), Sampling(0.9)
    tokens = gpt.run([prompt], 40, sampling)[0].tolist()
    assert tokens[:21] == gpt.uncached(prompt, 21, sampling)  # the last one sees the whole context
    window = (prompt + tokens[:21])[-16:]
    assert tokens[21:38] == gpt.uncached(window, 17, sampling, first=21)
    assert len(tokens) == 40


def test_beyond_the_context_samples_keep_their_source_their_history_and_their_draws(t5):
    """With bigrams forbidden over the whole text, none comes twice in 60 tokens, whatever the window."""
    sampling = Sampling(1.0, no_repeat_ngram=2)
    samples = t5.run([[1], [2]], 60, sampling, seeds=[1, 2, 3, 4], num_samples=2).tolist()
    assert all(len({*itertools.pairwise(row)}) == 59 for row in samples)
    others = t5.run([[7], [2]], 60, sampling, seeds=[9, 9, 9, 4], num_samples=2, sources=[[5], SOURCES[1]])
    assert samples[3] == others[3].tolist() and samples[0] != others[0].tolist()


def test_a_prompt_that_fills_the_context_is_seen_whole(gpt):
    prompt = np.random.default_rng(3).integers(0, 64, 32).tolist()
    assert gpt.run([prompt], 1)[0].tolist() == gpt.uncached(prompt, 1)


@pytest.mark.parametrize("ends", [lambda free: (free[3],), lambda free: (0, free[7], free[3])])
def test_each_eos_ends_a_row_and_then_the_batch(gpt, ends):
    free = gpt.uncached([5], 20)
    eos = ends(free)
    first = next(n for n, token in enumerate(free) if token in eos)
    tokens = gpt.run([[5]], 20, eos=eos)[0]
    assert tokens[: first + 1].tolist() == free[: first + 1]
    assert (tokens[first + 1 :] == eos[0]).all() and len(tokens) == 16  # not all 20: it stopped at a chunk


def test_a_caller_may_end_rows(gpt):
    free, chunks = gpt.run([[5], [6]], 40), []

    def finished(tokens_BN):
        chunks.append(tokens_BN)
        return np.array([len(chunks) >= 1, len(chunks) >= 2])

    tokens = gpt.run([[5], [6]], 40, finished=finished)
    assert tokens.shape == (2, 32) and [chunk.shape for chunk in chunks] == [(2, 16), (2, 16)]
    assert tokens[1].tolist() == free[1, :32].tolist()
    assert tokens[0].tolist() == free[0, :16].tolist() + [0] * 16


def test_ids_beyond_the_tokeniser_are_never_drawn(gpt):
    assert gpt.run([[1], [2]], 20, Sampling(100.0), limit=7).max() < 7


def test_on_a_sharded_mesh_the_tokens_are_the_same(gpt):
    prompts, sampling = [[5, 6, 7], [1]], Sampling(0.8, repetition_penalty=1.1)
    expected = gpt.run(prompts, 12, sampling, seeds=[1, 2, 3, 4], num_samples=2)
    with jax.set_mesh(tiny.mesh(fsdp=2, tensor=2)):
        decoder = Decoder(gpt.model, gpt.config)
        shardings = parameters.shardings(parameters.weights(gpt.model), decoder.rules, jax.sharding.get_mesh())
        sharded = {"decoder": decoder, "params": jax.device_put(gpt.params, shardings)}
        tokens = gpt.run([*prompts, [9]], 12, sampling, seeds=[1, 2, 3, 4, 5, 6], num_samples=2, **sharded)
    assert tokens.shape == (6, 12)  # three prompts on two parts of the batch
    assert tokens[:4].tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("prompts", "kwargs", "says"),
    [
        ([[1] * 33], {}, "33 tokens, the context has 32.*by 1 tokens"),
        ([[]], {}, "prompt 0 has no tokens"),
        ([], {}, "no prompt"),
        ([[1], [64]], {}, "prompt 1 has ids from 64 to 64.*0 to 63"),
        ([[1]], {"sources": [[1]]}, "1 sources were given.*'decoder' reads none"),
        ([[1]], {"max_tokens": 0}, "max_tokens is 0"),
        ([[1]], {"sampling": Sampling(-1.0)}, "temperature is -1.0"),
        ([[1]], {"sampling": Sampling(min_tokens=5)}, "min_tokens is 5, more than max_tokens, 4"),
        ([[1]], {"num_samples": 0, "seeds": [1]}, "num_samples is 0"),
        ([[1]], {"num_samples": 2, "seeds": [1]}, "1 seeds for 1 prompts of 2 samples: give 2"),
        ([[1]], {"seeds": [-1]}, "seed -1"),
        ([[1]], {"limit": 65}, "vocab_limit is 65: use 1 to 64"),
        ([[1]], {"limit": 7, "eos": (3, 7)}, "from 0 to 6"),
    ],
)
def test_errors_come_at_the_call(gpt, prompts, kwargs, says):
    with pytest.raises(ValueError, match=says):
        options = {"max_tokens": 4, "sampling": GREEDY, "seeds": [0], "limit": 64, "eos": (), **kwargs}
        limits = {"vocab_limit": options.pop("limit"), "eos_ids": options.pop("eos")}
        gpt.decoder.stream(gpt.params, prompts, **options, **limits)  # not iterated


def test_errors_of_an_encoder_decoder_and_of_an_encoder(t5):
    for sources, says in (
        ((), "0 sources.*one for each of 1"),
        ([[]], "source 0 has no"),
        ([[64]], "source 0 has ids from 64"),
    ):
        with pytest.raises(ValueError, match=says):
            t5.run([[1]], 4, sources=sources)
    encoder = dataclasses.replace(tiny.GPT, architecture="encoder", head="none")
    with pytest.raises(ValueError, match="an encoder has no next token"):
        Decoder(build(encoder), encoder)
