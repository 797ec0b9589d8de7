"""n-gram models: the definitions of Chen & Goodman, nltk, and the habits of the other networks."""

import functools
import os
from collections import Counter, defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.ngram import CHILDREN, NGram, empty_ngram_cache, ngram_loss
from model.ngram_table import count_ngrams, load_ngram, save_ngram
from model.transformer import apply

V, ORDER = 12, 4  # id 11 is never seen


class Reference:
    """Interpolated modified Kneser-Ney, from the definitions, with dictionaries and recursion."""

    def __init__(self, tokens, vocab_size, order):
        self.vocab_size, self.order, self.estimated = vocab_size, order, {}
        grams = {n: [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)] for n in range(1, order + 1)}
        self.counts = {order: Counter(grams[order])}
        for n in range(1, order):
            self.counts[n] = Counter(gram[1:] for gram in set(grams[n + 1]))  # N1+(. gram)
        self.discounts = {n: self.estimate(n) for n in self.counts}
        self.followers = {n: defaultdict(list) for n in self.counts}
        for n, counts in self.counts.items():
            for gram, count in counts.items():
                self.followers[n][gram[:-1]].append(count)

    def estimate(self, n):
        n1, n2, n3, n4 = (sum(count == i for count in self.counts[n].values()) for i in (1, 2, 3, 4))
        self.estimated[n] = False
        if n1 and n2 and n3 and n4:
            y = n1 / (n1 + 2 * n2)
            discounts = [0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
            if min(discounts[1:]) > 0:
                self.estimated[n] = True
                return discounts
        return [0, 0.5, 1.0, 1.5]

    def p(self, context, word):
        context = tuple(context)[max(0, len(context) - self.order + 1) :]
        n = len(context) + 1
        lower = self.p(context[1:], word) if context else 1 / self.vocab_size
        followers, discounts = self.followers[n][context], self.discounts[n]
        if not followers:
            return lower
        count = self.counts[n][(*context, word)]
        rest = sum(discounts[min(3, c)] for c in followers)
        return (count - discounts[min(3, count)] + rest * lower) / sum(followers)

    def distribution(self, context):
        return [self.p(context, word) for word in range(self.vocab_size)]


def corpus(length=1200, vocab_size=V, seed=0):
    """Zipfian bigrams; the last id never occurs, and some n-grams only once."""
    rng = np.random.default_rng(seed)
    successors = np.array([rng.permutation(vocab_size - 1) for _ in range(vocab_size - 1)])
    ids = [0]
    while len(ids) < length:
        ids.append(int(successors[ids[-1]][min(rng.zipf(1.7) - 1, vocab_size - 2)]))
    return np.array(ids)


@pytest.fixture(scope="module")
def table():
    return count_ngrams(corpus(), V, ORDER)


@functools.cache
def forward(order):
    return jax.jit(functools.partial(apply, NGram(order)), static_argnames="last")


def logits(order, table, ids_BT, **options):
    return np.asarray(forward(order)(table, jnp.asarray(ids_BT, jnp.int32), **options).logits)


def random_ids(*shape, seed=1, vocab_size=V):
    return np.random.default_rng(seed).integers(0, vocab_size, shape)


@pytest.mark.parametrize("order", [1, 2, 3, ORDER])
def test_every_probability_is_the_definitions(table, order):
    """One table serves all orders. Random contexts are mostly unseen at order 4, those of the corpus seen."""
    reference = Reference(corpus().tolist(), V, order)
    ids_BT = np.concatenate([random_ids(4, 9), corpus()[:36].reshape(4, 9)])
    found = np.exp(logits(order, table, ids_BT))
    expected = [[reference.distribution(row[: t + 1].tolist()) for t in range(9)] for row in ids_BT]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    if order == ORDER:
        assert sum(reference.estimated.values()) >= 2, "the test should see estimated discounts"
        assert not all(reference.estimated.values()), "the test should see fallback discounts"


def test_perplexity_on_unseen_text_is_the_references(table):
    reference, text = Reference(corpus().tolist(), V, ORDER), corpus(101, seed=0)[::-1].tolist()
    nats = -sum(np.log(reference.p(text[:t], text[t])) for t in range(1, 101))
    batch = {"inputs": np.array([text[:-1]]), "targets": np.array([text[1:]]), "weights": np.ones((1, 100), np.float32)}
    sums = jax.jit(ngram_loss(ORDER))(table, batch, None)
    np.testing.assert_allclose([sums.loss, sums.weight], [nats, 100], rtol=1e-5)


def test_probabilities_are_nltks():
    """nltk takes one discount from every order but the unigrams, which it does not mix with anything.

    It counts continuations of n-grams that begin the text as seen: a text that ends as it began has none of them.
    """
    models = pytest.importorskip("nltk.lm").KneserNeyInterpolated, pytest.importorskip("nltk.util").everygrams
    order, discount = 3, 0.4
    text = corpus(150)
    text = np.append(text, text[: order - 1])
    peer = models[0](order, discount=discount)
    peer.fit([models[1](list(map(str, text)), max_len=order)], vocabulary_text=list(map(str, text)))
    table = count_ngrams(text, V, order, discounts=np.array([[0.0] * 3, [discount] * 3, [discount] * 3]))
    ids_BT = np.concatenate([random_ids(4, 2, vocab_size=V - 1), text[:12].reshape(6, 2)])
    found = np.exp(logits(order, table, ids_BT))[:, -1]
    expected = [[peer.score(str(word), tuple(map(str, row))) for word in range(V - 1)] for row in ids_BT]
    np.testing.assert_allclose(found[:, : V - 1], expected, rtol=1e-5)
    np.testing.assert_array_equal(found[:, V - 1], 0)


def test_large_vocabularies_and_wide_contexts():
    """Several keys to sort by, 16-bit ids above 2^15, and a context with more children than one step adds."""
    vocab_size, order, wide = 60_000, 6, 3 * CHILDREN + 5
    rng = np.random.default_rng(0)
    text = np.concatenate([np.stack([np.full(wide, 59_999), rng.permutation(vocab_size - 1)[:wide]], 1).ravel()] * 2)
    text = np.append(text, np.tile(text[:40], 3))
    table = count_ngrams(text.astype(np.uint16), vocab_size, order)
    reference = Reference(text.tolist(), vocab_size, order)
    ids_BT = np.array([text[:7], text[-7:], [59_999, 5, 6, 7, 5, 6, 59_999]])
    found = np.exp(logits(order, table, ids_BT, last=True))[:, 0]
    words = np.unique(np.concatenate([text[:60], [0, 1, 32_768, 59_999]]))
    expected = [[reference.p(row.tolist(), word) for word in words.tolist()] for row in ids_BT]
    np.testing.assert_allclose(found[:, words], expected, rtol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1, dtype=np.float64), 1, rtol=1e-5)


@pytest.mark.parametrize("order", [1, 2, ORDER])
def test_distributions_sum_to_one_and_have_no_zero(table, order):
    p_BTV = np.exp(logits(order, table, np.concatenate([random_ids(20, 9), corpus(180).reshape(20, 9)])))
    np.testing.assert_allclose(p_BTV.sum(-1, dtype=np.float64), 1, atol=1e-6)
    assert p_BTV.min() > 0


def test_a_table_of_a_higher_order_is_that_of_the_lower(table):
    lower = count_ngrams(corpus(), V, 2)
    np.testing.assert_array_equal(logits(2, table, random_ids(2, 9)), logits(2, lower, random_ids(2, 9)))


@pytest.mark.parametrize("order", [1, 3])
def test_loss_is_that_of_the_logits(table, order):
    inputs, targets, segments = random_ids(3, 8), random_ids(3, 8, seed=2), np.array([[1, 1, 1, 2, 2, 3, 0, 0]] * 3)
    weights = np.random.default_rng(0).random((3, 8), np.float32)
    batch = {"inputs": inputs, "targets": targets, "weights": weights, "segments": segments}
    sums = jax.jit(ngram_loss(order))(table, batch, None)
    log_p = logits(order, table, inputs, segments_BT=jnp.asarray(segments))
    picked = np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose([sums.loss, sums.weight], [-(picked * weights).sum(), weights.sum()], rtol=1e-6)


def test_segments_and_padding_end_the_context(table):
    ids = corpus(9)
    packed = logits(ORDER, table, [ids], segments_BT=jnp.array([[0, 0, 1, 1, 1, 1, 2, 2, 2]]))
    np.testing.assert_array_equal(packed[0, 2:6], logits(ORDER, table, [ids[2:6]])[0])
    np.testing.assert_array_equal(packed[0, 6:], logits(ORDER, table, [ids[6:]])[0])
    assert np.abs(packed[0, 6] - logits(ORDER, table, [ids])[0, 6]).max() > 0.01


def test_padding_on_the_right_is_passed_over(table):
    ids = corpus(8)
    padded, segments = np.array([[*ids[:3], 7, 7, *ids[3:5], 7]]), jnp.array([[1, 1, 1, 0, 0, 1, 1, 0]])
    cache = empty_ngram_cache(ORDER, 1)
    output = forward(ORDER)(table, jnp.asarray(padded), segments_BT=segments, cache=cache, last=True)
    rest = forward(ORDER)(table, jnp.asarray(ids[None, 5:]), cache=output.cache).logits
    whole = logits(ORDER, table, [ids])[0]
    np.testing.assert_array_equal(output.logits[0, 0], whole[4])
    np.testing.assert_array_equal(rest[0], whole[5:])


def test_cached_equals_uncached_for_prompts_of_several_lengths(table):
    """Left padding as in generation; rows change places on the way, as in a beam search."""
    ids_BT = np.stack([corpus(12), random_ids(12), corpus(40)[28:]])
    first = np.array([3, 0, 2])  # tokens of padding
    segments = (np.arange(6) >= first[:, None]).astype(np.int32)
    assert set(segments.sum(1)) == {3, 6, 4}
    garbage = np.where(segments > 0, ids_BT[:, :6], 7)
    output = forward(ORDER)(
        table,
        jnp.asarray(garbage),
        segments_BT=jnp.asarray(segments),
        cache=empty_ngram_cache(ORDER, 3),
        last=True,
    )
    rows = np.array([2, 0, 1, 0])
    steps, cache = [output.logits[rows]], output.cache.take(rows)
    assert int(cache.filled) == 6
    for t, width in ((6, 1), (7, 1), (8, 4)):
        output = forward(ORDER)(table, jnp.asarray(ids_BT[rows, t : t + width]), cache=cache)
        steps, cache = [*steps, output.logits], output.cache
    found = np.concatenate(steps, axis=1)
    for place, row in enumerate(rows):
        whole = logits(ORDER, table, ids_BT[row, None, first[row] :])[0]
        np.testing.assert_array_equal(found[place], whole[-7:])
    assert int(cache.filled) == 12


def test_last_is_the_end_of_all(table):
    whole = logits(3, table, random_ids(2, 5))
    np.testing.assert_array_equal(logits(3, table, random_ids(2, 5), last=True), whole[:, -1:])


def test_counting_reads_memory_maps_of_small_ids(table, tmp_path):
    corpus().astype("<u2").tofile(tmp_path / "tokens.bin")
    again = count_ngrams(np.memmap(tmp_path / "tokens.bin", "<u2", mode="r"), V, ORDER)
    for name, array in table.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)


@pytest.mark.parametrize(
    ("tokens", "order", "discounts", "problem"),
    [
        ([0, 5, 12], 2, None, "0 to 12, outside 0 to 11"),
        ([0, -1, 2], 2, None, "-1 to 2, outside"),
        ([0, 1], 3, None, "2 tokens: order 3"),
        ([0.0, 1.0], 1, None, "float64"),
        ([[0, 1]], 1, None, r"\(1, 2\)"),
        ([0, 1], 0, None, "order is 0"),
        ([0, 1], 2, [[0.5, 1, 1]], r"needs \(2, 3\)"),
        ([0, 1], 1, [[1.5, 1, 1]], "each must be 0 to the count"),
    ],
)
def test_what_cannot_be_counted_is_an_error(tokens, order, discounts, problem):
    with pytest.raises(ValueError, match=problem):
        count_ngrams(np.array(tokens), V, order, discounts=discounts)


def test_wrong_use_is_an_error(table):
    ids = jnp.zeros((2, 3), jnp.int32)
    with pytest.raises(ValueError, match="order is 5: the table was counted for orders 1 to 4"):
        apply(NGram(5), table, ids)
    batch = {"inputs": ids, "targets": ids, "weights": ids}
    with pytest.raises(ValueError, match="order is 0"):
        ngram_loss(0)(table, batch, None)
    with pytest.raises(ValueError, match="the batch has prefix"):
        ngram_loss(2)(table, {**batch, "prefix": ids}, None)
    with pytest.raises(ValueError, match=r"states \(2, 2\), the tokens need \(2, 1\)"):
        apply(NGram(2), table, ids, cache=empty_ngram_cache(3, 2))


@pytest.mark.parametrize("bad", [-1, V])
def test_ids_outside_the_vocabulary_give_nan_and_leave_other_rows_alone(table, bad):
    ids = np.array([[1, bad, 2], [1, 2, 3]])
    found = logits(2, table, ids)
    assert np.isnan(found[0]).all() and np.isfinite(found[1]).all()
    good, weights = np.array([[1, 2, 3]] * 2), np.ones((2, 3), np.float32)
    for inputs, targets in ((ids, good), (good, ids)):
        sums = ngram_loss(2)(table, {"inputs": inputs, "targets": targets, "weights": weights}, None)
        assert np.isnan(sums.loss)


def test_a_saved_table_comes_back(table, tmp_path):
    save_ngram(tmp_path / "ngram.npz", table)
    loaded = load_ngram(tmp_path / "ngram.npz")
    assert loaded.keys() == table.keys() and os.listdir(tmp_path) == ["ngram.npz"]
    for name, array in table.items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array)


def test_a_failed_write_leaves_the_old_file(table, tmp_path, monkeypatch):
    file = tmp_path / "ngram.npz"
    save_ngram(file, table)
    before = file.read_bytes()

    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        save_ngram(file, table)
    assert file.read_bytes() == before and os.listdir(tmp_path) == ["ngram.npz"]


DAMAGES = {
    "missing": (lambda t: t.pop("rest_2"), "the names of its arrays"),
    "offsets": (lambda t: t["children_2"].__setitem__(5, 10**6), "children_2 does not rise"),
    "end": (lambda t: t["children_1"].__setitem__(-1, 3), "children_1 does not rise"),
    "ids": (lambda t: t["tokens_3"].__setitem__(4, V), "tokens_3 has ids outside 0 to 11"),
    "order": (lambda t: t["tokens_2"].__setitem__(slice(0, 2), [3, 3]), "tokens_2 does not rise among"),
    "dtype": (lambda t: t.update(mass_1=t["mass_1"].astype(float)), "mass_1 is float64"),
    "length": (lambda t: t.update(top_rest_3=t["top_rest_3"][:-1]), "top_rest_3 is float32"),
    "nan": (lambda t: t["top_mass_4"].__setitem__(0, np.nan), "top_mass_4 has numbers outside 0 to 1"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_table_is_an_error(table, tmp_path, damage):
    spoil, problem = DAMAGES[damage]
    broken = {name: array.copy() for name, array in table.items()}
    spoil(broken)
    np.savez(tmp_path / "ngram.npz", **broken)
    with pytest.raises(ValueError, match=problem):
        load_ngram(tmp_path / "ngram.npz")


def test_other_files_are_errors(table, tmp_path):
    file = tmp_path / "ngram.npz"
    with pytest.raises(FileNotFoundError):
        load_ngram(file)
    save_ngram(file, table)
    contents = [file.read_bytes()[:-100], b"", b"some text"]
    np.savez(tmp_path / "objects.npz", tokens_2=np.array([{}], object))
    np.save(tmp_path / "one.npy", np.zeros(3))
    contents += [(tmp_path / "objects.npz").read_bytes(), (tmp_path / "one.npy").read_bytes()]
    for content in contents:
        file.write_bytes(content)
        with pytest.raises(ValueError, match="is not a table of n-grams"):
            load_ngram(file)
