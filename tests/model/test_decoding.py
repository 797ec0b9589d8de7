"""Generation: cached equals uncached, rows do not disturb each other, and sampling follows its distribution."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import parameters
from model.build import build
from model.decoding import Decoder, Sampling, sample
from tests import tiny

GREEDY = Sampling(0.0)
CONFIGS = {
    name: dataclasses.replace(config, init_std=0.3) for name, config in (("gpt", tiny.GPT), ("llama", tiny.LLAMA))
}


@pytest.fixture(scope="module", params=CONFIGS)
def network(request):
    config = CONFIGS[request.param]
    model = build(config)
    with jax.set_mesh(tiny.mesh()):
        params = jax.jit(lambda: parameters.init(model, jax.random.key(1)))()
        yield config, params, Decoder(model, config), jax.jit(lambda p, ids: model.apply({"params": p}, ids).logits_BTV)


def run(decoder, params, prompts, max_tokens, sampling=GREEDY, seeds=None, limit=64, eos=None):
    chunks = decoder.stream(
        params,
        prompts,
        max_tokens=max_tokens,
        sampling=sampling,
        seeds=seeds or [0] * len(prompts),
        vocab_limit=limit,
        eos_id=eos,
    )
    return np.concatenate(list(chunks), axis=1)


def uncached_greedy(forward, params, prompt, count):
    ids = list(prompt)
    for _ in range(count):
        padded = np.zeros((1, 32), np.int32)
        padded[0, : len(ids)] = ids
        ids.append(int(np.argmax(forward(params, padded)[0, len(ids) - 1])))
    return ids[len(prompt) :]


def test_cached_equals_uncached_for_prompts_of_several_lengths(network):
    _, params, decoder, forward = network
    prompts = [[5], [1, 2, 3, 4, 5, 6, 7], [60, 3, 9]]
    together = run(decoder, params, prompts, 20)
    for row, prompt in enumerate(prompts):
        assert together[row].tolist() == uncached_greedy(forward, params, prompt, 20)


def test_a_row_does_not_depend_on_the_others(network):
    _, params, decoder, _ = network
    sampling = Sampling(1.0, top_k=10)
    batch = run(decoder, params, [[5, 6], [1, 2, 3, 4, 5, 6, 7, 8, 9]], 20, sampling, seeds=[3, 4])
    assert batch[0].tolist() == run(decoder, params, [[5, 6]], 20, sampling, seeds=[3])[0].tolist()
    assert batch[0].tolist() != run(decoder, params, [[5, 6]], 20, sampling, seeds=[4])[0].tolist()


def test_prompt_and_answer_fill_the_context_to_the_last_slot(network):
    _, params, decoder, forward = network
    prompt = list(range(12))
    assert run(decoder, params, [prompt], 20)[0].tolist() == uncached_greedy(forward, params, prompt, 20)


def test_beyond_the_context_the_younger_half_is_read_anew(network):
    _, params, decoder, forward = network
    prompt = list(range(12))
    tokens = run(decoder, params, [prompt], 40)[0].tolist()
    assert tokens[:21] == uncached_greedy(forward, params, prompt, 21)  # the last one sees the whole context
    window = (prompt + tokens[:21])[-16:]
    assert tokens[21:38] == uncached_greedy(forward, params, window, 17)
    assert len(tokens) == 40


def test_a_prompt_that_fills_the_context_is_seen_whole(network):
    _, params, decoder, forward = network
    prompt = np.random.default_rng(3).integers(0, 64, 32).tolist()
    assert run(decoder, params, [prompt], 1)[0].tolist() == uncached_greedy(forward, params, prompt, 1)


def test_eos_ends_a_row_and_then_the_batch(network):
    _, params, decoder, forward = network
    free = uncached_greedy(forward, params, [5], 20)
    eos = free[3]
    first = free.index(eos)
    tokens = run(decoder, params, [[5]], 20, eos=eos)[0]
    assert tokens[: first + 1].tolist() == free[: first + 1]
    assert (tokens[first:] == eos).all() and len(tokens) <= 16  # not all 20: it stopped at a chunk


def test_ids_beyond_the_tokeniser_are_never_drawn(network):
    _, params, decoder, _ = network
    assert run(decoder, params, [[1], [2]], 20, Sampling(100.0), limit=7).max() < 7


def test_on_a_sharded_mesh_the_tokens_are_the_same(network):
    config, params, decoder, _ = network
    prompts, sampling = [[5, 6, 7], [1]], Sampling(0.8)
    expected = run(decoder, params, prompts, 12, sampling, seeds=[1, 2])
    model = build(config)
    with jax.set_mesh(tiny.mesh(fsdp=2, tensor=2)) as mesh:
        shardings = parameters.shardings(parameters.weights(model), decoder.rules, jax.sharding.get_mesh())
        sharded = jax.device_put(params, shardings)
        tokens = run(Decoder(model, config), sharded, [*prompts, [9]], 12, sampling, seeds=[1, 2, 3])
    del mesh
    assert tokens.shape == (3, 12)  # three rows on two parts of the batch
    assert tokens[:2].tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("prompts", "kwargs", "says"),
    [
        ([[1] * 33], {}, "33 tokens, the context has 32.*by 1 tokens"),
        ([[]], {}, "at least one"),
        ([], {}, "no prompt"),
        ([[1]], {"max_tokens": 0}, "max_tokens is 0"),
        ([[1]], {"sampling": Sampling(-1.0)}, "temperature is -1.0"),
        ([[1]], {"sampling": Sampling(1.0, top_k=65)}, "top_k is 65.*64"),
    ],
)
def test_errors(network, prompts, kwargs, says):
    _, params, decoder, _ = network
    with pytest.raises(ValueError, match=says):
        run(decoder, params, prompts, **{"max_tokens": 4, **kwargs})


def test_sampling_follows_its_distribution():
    logits = jnp.log(jnp.asarray([0.5, 0.3, 0.15, 0.05]))
    keys = jax.random.split(jax.random.key(0), 20_000)

    def frequencies(sampling):
        draws = sample(jnp.tile(logits, (len(keys), 1)), keys, sampling)
        return np.bincount(draws, minlength=4) / len(keys)

    np.testing.assert_allclose(frequencies(Sampling(1.0)), [0.5, 0.3, 0.15, 0.05], atol=0.015)
    squares = np.array([0.25, 0.09, 0.0225, 0.0025])
    np.testing.assert_allclose(frequencies(Sampling(0.5)), squares / squares.sum(), atol=0.015)
    np.testing.assert_allclose(frequencies(Sampling(1.0, top_k=2)), [0.625, 0.375, 0, 0], atol=0.015)
    np.testing.assert_allclose(frequencies(Sampling(0.0)), [1, 0, 0, 0])
