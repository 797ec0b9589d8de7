"""What every family must do, whatever it is made of: masks by gradient, caches, packing, losses on a mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import parameters
from model.build import build
from model.decoding import empty_cache
from model.losses import language_model_loss
from model.sharding import ShardingRules
from model.transformer import apply
from tests import tiny

GPT = tiny.GPT
BERT = dataclasses.replace(
    GPT, architecture="encoder", head="masked_lm", embedding_norm=True, norm_placement="post", token_types=2,
    mlp="gelu_exact",
)  # fmt: skip
T5 = dataclasses.replace(
    GPT, architecture="encoder_decoder", positions="relative", relative_buckets=8, relative_max_distance=12, norm="rms",
    bias="none", mlp="geglu", attention_scale=1.0, init_scheme="t5", tied_output=False, num_encoder_layers=3,
)  # fmt: skip
VANILLA = dataclasses.replace(
    GPT,
    architecture="encoder_decoder",
    positions="sinusoidal",
    norm_placement="post",
    mlp="relu",
    scale_embeddings=True,
)
DECODERS = {
    "gpt": GPT,
    "llama": tiny.LLAMA,
    "llama3": dataclasses.replace(tiny.LLAMA, rope_scaling="llama3", rope_factor=8.0, rope_original_length=16),
    "linear": dataclasses.replace(tiny.LLAMA, rope_scaling="linear", rope_factor=4.0),
    "qwen": dataclasses.replace(tiny.LLAMA, bias="qkv", qk_norm=True),
    "gemma": dataclasses.replace(
        tiny.LLAMA, mlp="geglu", scale_embeddings=True, attention_softcap=5.0, logits_softcap=3.0, tied_output=True
    ),
    "window": dataclasses.replace(tiny.LLAMA, window=4),
    "relative": dataclasses.replace(GPT, positions="relative", relative_buckets=8, relative_max_distance=12),
    "alibi": dataclasses.replace(GPT, positions="alibi"),
    "sinusoidal": dataclasses.replace(GPT, positions="sinusoidal"),
    "post": dataclasses.replace(GPT, norm_placement="post"),
    "none": dataclasses.replace(GPT, positions="none"),
}
PAIRS = {"t5": T5, "vanilla": VANILLA}


@pytest.fixture(autouse=True)
def one_device():
    with jax.set_mesh(tiny.mesh()):
        yield


def made(config):
    return build(config), tiny.by_chance(config, 0.1)


def random_ids(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).integers(0, 64, shape), jnp.int32)


@functools.partial(jax.jit, static_argnames=("model", "last"))
def run(model, params, ids, last=False, **options):
    return apply(model, params, ids, last=last, **options)


@pytest.mark.parametrize("name", DECODERS)
def test_decoder_cached_equals_uncached(name):
    """A padded prompt, then token by token, past the window and the buckets."""
    model, params = made(DECODERS[name])
    ids = random_ids(2, 20)
    whole = run(model, params, ids).logits
    cache = empty_cache(DECODERS[name], ShardingRules(), 2, 24)
    padded = jnp.concatenate([jnp.full((2, 3), 9), ids[:, :8]], axis=1)
    segments, positions = jnp.asarray([[0] * 3 + [1] * 8] * 2), jnp.asarray([[0] * 3 + list(range(8))] * 2)
    output = run(model, params, padded, segments_BT=segments, positions_BT=positions, cache=cache)
    np.testing.assert_allclose(output.logits[:, 3:], whole[:, :8], atol=2e-5)
    for t in range(8, 20):
        output = run(model, params, ids[:, t : t + 1], positions_BT=jnp.full((2, 1), t), cache=output.cache)
        np.testing.assert_allclose(output.logits[:, 0], whole[:, t], atol=2e-5)
    assert np.abs(np.asarray(whole)).max() > 0.1


@pytest.mark.parametrize("name", PAIRS)
def test_encoder_decoder_cached_equals_uncached(name):
    """The source is read once, its padding never; the decoder goes on from the cache."""
    config = PAIRS[name]
    model, params = made(config)
    ids, source = random_ids(2, 16), random_ids(2, 12, seed=1)
    seen = jnp.asarray([[1] * 12, [1] * 7 + [0] * 5])
    whole = run(model, params, ids, source_BS=source, source_segments_BS=seen).logits
    cache = empty_cache(config, ShardingRules(), 2, 20, source_length=12)
    output = run(model, params, ids[:, :1], source_BS=source, source_segments_BS=seen, cache=cache)
    for t in range(1, 16):
        np.testing.assert_allclose(output.logits[:, 0], whole[:, t - 1], atol=2e-5)
        output = run(model, params, ids[:, t : t + 1], cache=output.cache)
    changed = source.at[1, 7:].set(3)
    np.testing.assert_array_equal(whole, run(model, params, ids, source_BS=changed, source_segments_BS=seen).logits)
    other = run(model, params, ids, source_BS=source.at[:, 3].set(5), source_segments_BS=seen).logits
    assert np.abs(other - whole).max() > 1e-3
    alone = run(model, params, ids[1:], source_BS=source[1:, :7]).logits
    np.testing.assert_allclose(whole[1:], alone, atol=1e-5)


def test_encoder_decoder_packs_pairs():
    """Two pairs in one row, with segments and positions on both sides, give the logits of each alone."""
    model, params = made(T5)
    ids, source = [random_ids(1, n, seed=n) for n in (6, 9)], [random_ids(1, n, seed=n) for n in (7, 5)]
    alone = [run(model, params, i, source_BS=s).logits for i, s in zip(ids, source, strict=True)]
    packed = run(
        model, params, jnp.concatenate(ids, axis=1),
        source_BS=jnp.concatenate(source, axis=1),
        source_segments_BS=jnp.asarray([[1] * 7 + [2] * 5]),
        segments_BT=jnp.asarray([[1] * 6 + [2] * 9]),
        positions_BT=jnp.asarray([[*range(6), *range(9)]]),
    ).logits  # fmt: skip
    np.testing.assert_allclose(packed[:, :6], alone[0], atol=1e-5)
    np.testing.assert_allclose(packed[:, 6:], alone[1], atol=1e-5)


def test_an_encoder_sees_both_sides_and_no_padding():
    model, params = made(BERT)
    ids, seen = random_ids(2, 10), jnp.asarray([[1] * 10, [1] * 6 + [0] * 4])
    whole = run(model, params, ids, segments_BT=seen).logits
    np.testing.assert_allclose(whole[1:, :6], run(model, params, ids[1:, :6]).logits, atol=1e-5)
    for place in (0, 9):
        changed = run(model, params, ids.at[0, place].set(7), segments_BT=seen).logits
        assert (np.abs(changed - whole)[0].max(axis=1) > 1e-4).all()
    types = run(model, params, ids, segments_BT=seen, token_types_BT=jnp.ones_like(ids)).logits
    assert np.abs(types - whole).max() > 1e-3


def test_a_prefix_is_seen_by_all_and_the_rest_is_causal():
    model, params = made(GPT)
    ids, prefix = random_ids(1, 12), jnp.asarray([[1] * 5 + [0] * 7])
    whole = run(model, params, ids, prefix_BT=prefix).logits

    def touched(place):
        changed = run(model, params, ids.at[0, place].set(1), prefix_BT=prefix).logits
        return np.abs(changed - whole)[0].max(axis=1) > 1e-6

    assert touched(4).all() and not touched(5)[:5].any() and touched(5)[5:].all() and not touched(11)[:11].any()
    # With a cache the prompt is the prefix, and what follows sees it as before.
    output = run(model, params, ids[:, :5], prefix_BT=prefix[:, :5], cache=empty_cache(GPT, ShardingRules(), 1, 16))
    np.testing.assert_allclose(output.logits, whole[:, :5], atol=1e-5)
    for t in range(5, 12):
        output = run(model, params, ids[:, t : t + 1], cache=output.cache)
        np.testing.assert_allclose(output.logits[:, 0], whole[:, t], atol=1e-5)


def test_last_is_the_last_of_all():
    for config, more in ((GPT, {}), (T5, {"source_BS": random_ids(2, 5)})):
        model, params = made(config)
        ids = random_ids(2, 7)
        whole, last = (run(model, params, ids, last=last, **more).logits for last in (False, True))
        np.testing.assert_allclose(last, whole[:, -1:], atol=1e-6)


def test_a_cache_row_can_be_taken_twice():
    model, params = made(T5)
    ids, source = random_ids(3, 4), random_ids(3, 6, seed=1)
    cache = empty_cache(T5, ShardingRules(), 3, 8, source_length=6)
    cache = run(model, params, ids, source_BS=source, cache=cache).cache
    rows = jnp.asarray([2, 2, 0])
    more = run(model, params, jnp.full((3, 1), 5), cache=cache.take(rows)).logits
    longer = jnp.concatenate([ids[rows], jnp.full((3, 1), 5)], axis=1)
    np.testing.assert_allclose(more[:, 0], run(model, params, longer, source_BS=source[rows]).logits[:, -1], atol=1e-5)


def test_an_encoder_decoder_without_a_source_says_so():
    model, params = made(T5)
    with pytest.raises(ValueError, match="needs source_BS"):
        run(model, params, random_ids(1, 3))
    cache = empty_cache(T5, ShardingRules(), 1, 8, source_length=6)
    with pytest.raises(ValueError, match=r"shape \(1, 5\), the cache was made for \(1, 6\)"):
        run(model, params, random_ids(1, 3), source_BS=random_ids(1, 5), cache=cache)


@pytest.mark.parametrize("size", ["gpt2", "t5"])
def test_initial_loss_is_about_log_vocab(size):
    """Both schemes start from logits of order 1, whatever the width."""
    base = GPT if size == "gpt2" else T5
    for width in (32, 128):
        config = dataclasses.replace(base, vocab_size=512, embed_dim=width)
        model = build(config)
        params = jax.jit(lambda model=model: parameters.init(model, jax.random.key(0)))()
        batch = tiny.batch(rows=8, vocab=512)
        if size == "t5":
            batch["source"] = batch["inputs"]
        sums = jax.jit(language_model_loss(model))(params, batch, None)
        assert float(sums.loss / sums.weight) == pytest.approx(np.log(512), abs=0.1 if size == "gpt2" else 1.0)


SHARDED = {  # more in test_matrix
    "bert": BERT,
    "vanilla": VANILLA,
    "alibi": DECODERS["alibi"],
    "rnn": dataclasses.replace(GPT, architecture="rnn", norm="layer"),
    "lstm": dataclasses.replace(GPT, architecture="lstm", norm="layer"),
    "gru": dataclasses.replace(GPT, architecture="gru", norm="layer"),
}


@pytest.mark.parametrize("name", SHARDED)
def test_loss_and_gradients_on_a_mesh_are_those_of_one_device(name):
    config = SHARDED[name]
    batch = tiny.batch()
    if config.architecture == "encoder_decoder":
        batch |= {"source": batch["targets"], "source_segments": (batch["weights"] > 0).astype(np.int32)}

    def gradients(on):
        rules = ShardingRules()
        with jax.set_mesh(on):
            params, loss = tiny.start(config, on), language_model_loss(build(config, rules), rules)
            placed = jax.tree.map(lambda x: x.sharding, params)
            step = jax.jit(jax.value_and_grad(lambda p: loss(p, batch, None).loss), out_shardings=(None, placed))
            return jax.device_get(step(params))

    (value, grads), (other, other_grads) = gradients(tiny.mesh()), gradients(tiny.mesh(data=2, fsdp=2, tensor=2))
    assert float(other) == pytest.approx(float(value), rel=1e-5)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(grads))
    for mine, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(other_grads), strict=True):
        np.testing.assert_allclose(theirs, mine, atol=1e-5 * largest)
