"""A finished run as one object: text, logits, losses, each against a computation by hand."""

import jax
import numpy as np
import pytest

import tessera
from evaluation import network
from evaluation.generation import INCOMPLETE
from evaluation.language_model import LanguageModel
from launch import train
from tests import tiny
from train.records import RunError
from train.restore import CheckpointError

EOS = 256
OPTIONS = {"max_tokens": 24, "temperature": 1.0, "seed": 3}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of 20 steps on "a€é" over and over: characters of one, three and two bytes."""
    folder = tmp_path_factory.mktemp("language_model")
    config = tiny.config(folder, "a€é" * 8000)
    config.checkpoint.every_steps = 10
    assert train.run(config) == train.DONE
    return folder / "run"


@pytest.fixture(scope="module")
def lm(run):
    return tessera.load(run)


def nats(lm, ids):
    """-ln p of each of `ids` but the first, from `lm.logits`, in float64."""
    ids = np.asarray(ids)
    logits_TV = lm.logits(ids[None, :-1])[0].astype(np.float64)
    log_sum_T = np.log(np.exp(logits_TV).sum(axis=-1))
    return log_sum_T - logits_TV[np.arange(len(ids) - 1), ids[1:]]


def pieces(lm, prompts, **options):
    """The pieces that every row gets."""
    stream = lm.stream(prompts, **({"temperature": 1.0, "top_k": 0} | options))
    return list(zip(*stream, strict=True))


def test_it_has_its_parameters_config_and_tokenizer(lm):
    assert lm.config.vocab_size == 257 and lm.config.max_length == 32 and lm.config.mlp_dim == 128
    assert lm.tokenizer.kind == "byte" and lm.tokenizer.decode(lm.tokenizer.encode("né")) == "né"
    assert lm.params["embedding"]["embedding"].shape == (257, 32)
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(lm.params))


def test_a_string_gives_a_string_and_a_list_a_list(lm):
    one = lm.generate("a€", **OPTIONS)
    assert isinstance(one, str) and len(one) >= 6
    many = lm.generate(["a€", "é"], **OPTIONS)
    assert isinstance(many, list) and len(many) == 2 and all(isinstance(text, str) for text in many)
    assert many[0] == one and lm.generate(["a€"], **OPTIONS) == [one]


def test_the_seed_decides_the_text(lm):
    first = lm.generate("a", **OPTIONS)
    assert lm.generate("a", **OPTIONS) == first
    assert lm.generate("a", **(OPTIONS | {"seed": 4})) != first


def test_a_continuation_does_not_depend_on_the_other_prompts(lm):
    options = OPTIONS | {"max_tokens": 20}  # all of it fits the context
    alone = [lm.generate(prompt, **options) for prompt in ("a", "a€éa€")]
    assert lm.generate(["a€éa€", "é", "a"], **options)[::2] == alone[::-1]


def test_other_prompts_get_other_draws(lm):
    """All logits of a network of zeros are 0: its texts differ by their draws alone."""
    uniform = LanguageModel(lm.config, jax.tree.map(np.zeros_like, lm.params), lm.tokenizer, lm.mesh)
    assert not uniform.logits([[EOS, *b"ab"]]).any()
    assert len(set(uniform.generate(["a", "b", "aa"], **OPTIONS))) == 3


def test_temperature_zero_takes_the_most_likely_token(lm):
    text = lm.generate("a", max_tokens=30, temperature=0.0)
    ids = np.array([[EOS, *f"a{text}".encode()]])
    np.testing.assert_array_equal(lm.logits(ids)[0, 1:-1].argmax(axis=-1), ids[0, 2:])
    assert {"a", "€", "é"} == set(text) and ids.shape == (1, 32)  # it can spell, so the tests below mean something
    assert lm.generate("a", max_tokens=30, temperature=0.0, seed=1) == text
    assert lm.generate("a", max_tokens=30, temperature=1.0, top_k=1, seed=5) == text


def test_a_prompt_begins_a_document(lm):
    """It follows an end of document, so even an empty one can be continued, by what begins documents."""
    first = int(lm.logits([[EOS]])[0, 0].argmax())
    assert lm.generate("", max_tokens=1, temperature=0.0) == lm.tokenizer.decode([first])


def test_pieces_joined_are_the_text(lm):
    streamed = pieces(lm, ["a", "é"], max_tokens=40, seeds=[3, 3])
    assert len(streamed[0]) > 2
    assert ["".join(row) for row in streamed] == lm.generate(["a", "é"], max_tokens=40, seed=3)


def test_no_piece_breaks_a_character(lm):
    (greedy,) = pieces(lm, ["a"], max_tokens=30, temperature=0.0, seeds=[0])
    text = "".join(greedy)
    assert len(text.encode()) == 30  # nothing is lost,
    assert INCOMPLETE not in text  # and no half of a character was written, though the first 16 bytes end in one:
    with pytest.raises(UnicodeDecodeError):
        text.encode()[:16].decode()


def test_a_character_that_never_ends_is_shown_at_the_end(lm):
    (row,) = pieces(lm, ["a"], max_tokens=1, temperature=0.0, seeds=[0])
    assert row == ("", INCOMPLETE)  # one byte of "€"


def test_a_stream_leaves_the_mesh_of_its_reader_alone(lm):
    mesh = tiny.mesh(data=2)
    with jax.set_mesh(mesh):
        stream = lm.stream(["a"], max_tokens=40, temperature=1.0, top_k=0, seeds=[0])
        next(stream)
        assert dict(jax.sharding.get_abstract_mesh().shape) == dict(mesh.shape)
        other = lm.stream(["a"], max_tokens=40, temperature=1.0, top_k=0, seeds=[0])
        next(other)
        stream.close()
        other.close()
        assert dict(jax.sharding.get_abstract_mesh().shape) == dict(mesh.shape)


@pytest.mark.parametrize(
    ("prompts", "options", "says"),
    [
        (["a"], {"max_tokens": 0}, "max_tokens is 0"),
        (["a"], {"top_k": 258}, "top_k is 258: use 0 .off. to 257"),
        (["a"], {"temperature": -1.0}, "temperature is -1.0"),
        (["a", "b" * 35], {}, "prompt 1 has 35 tokens, the context has 32: shorten it by 3 tokens"),
        ([], {}, "no prompt"),
    ],
)
def test_impossible_requests_are_refused(lm, prompts, options, says):
    with pytest.raises(ValueError, match=says):
        lm.generate(prompts, **(OPTIONS | options))


def test_a_prompt_may_fill_the_context(lm):
    assert lm.generate("a€é" * 5 + "aa", max_tokens=8, temperature=0.0)


def test_logits_are_float32_scores_that_see_only_the_past(lm):
    ids = np.array([[EOS, *b"aaaa"], [EOS, *b"aaba"]])
    logits = lm.logits(ids)
    assert logits.shape == (2, 5, 257) and logits.dtype == np.float32 and np.isfinite(logits).all()
    np.testing.assert_allclose(logits[0, :3], logits[1, :3], rtol=1e-5, atol=1e-5)
    assert np.abs(logits[0, 3] - logits[1, 3]).max() > 0.1
    np.testing.assert_allclose(lm.logits(ids.tolist()), logits)


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        (np.zeros(4, int), r"shape \(4,\) and type int64: pass integers of shape \(batch, length\)"),
        (np.zeros((2, 4), np.float32), r"shape \(2, 4\) and type float32"),
        (np.zeros((1, 33), int), "33 tokens do not fit the context of 32"),
        (np.array([[3, 257]]), "ids run from 3 to 257: the vocabulary is 0 to 256"),
        (np.array([[-1, 2]]), "ids run from -1 to 2"),
    ],
)
def test_logits_of_what_are_no_ids_are_refused(lm, ids, says):
    with pytest.raises(ValueError, match=says):
        lm.logits(ids)


@pytest.mark.parametrize("text", ["a", "a€éa€", "a€é" * 5 + "zz", "ba€é" * 16], ids=["1", "9", "32", "112 bytes"])
def test_loss_and_bits_per_byte_are_those_of_the_logits(lm, text):
    """By hand: windows of 32 targets, each of which begins with the last token of the one before."""
    ids = [EOS, *text.encode()]
    by_hand = np.concatenate([nats(lm, ids[start : start + 33]) for start in range(0, len(ids) - 1, 32)])
    assert len(by_hand) == len(text.encode())
    assert lm.loss([text]) == pytest.approx(by_hand.mean(), rel=1e-5)
    assert lm.loss(text) == lm.loss([text])
    assert lm.bits_per_byte([text]) == pytest.approx(by_hand.sum() / np.log(2) / len(text.encode()), rel=1e-5)


def test_texts_count_by_their_tokens(lm):
    """The mean is over tokens, not over texts."""
    short, long = "zz", "a€é" * 10
    weights = np.array([2, 60])
    mean = np.array([lm.loss(short), lm.loss(long)]) @ weights / weights.sum()
    assert lm.loss([short, long]) == pytest.approx(mean, rel=1e-5)
    assert abs(mean - (lm.loss(short) + lm.loss(long)) / 2) > 0.1
    # What it was trained on is likelier than what it never saw.
    assert lm.bits_per_byte(long) < 3 < lm.bits_per_byte(short)


def test_nothing_to_predict_is_refused(lm):
    for texts in ("", [], [""]):
        with pytest.raises(ValueError, match="no token to predict"):
            lm.loss(texts)


def test_an_earlier_step_is_another_network(run, lm):
    earlier = tessera.load(run, step=10)
    assert earlier.loss("a€é") > lm.loss("a€é") + 0.1
    assert tessera.load(str(run), step=20).loss("a€é") == lm.loss("a€é")


def test_a_step_that_is_not_there_names_those_that_are(run):
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7 in .*: there are \[10, 20\]"):
        tessera.load(run, step=7)


def test_a_folder_that_is_no_run_names_the_runs_beside_it(run):
    with pytest.raises(RunError, match=r"rum is not the folder of a run: it has no config.json; runs in .*: run$"):
        tessera.load(run.with_name("rum"))
    with pytest.raises(RunError, match=r"checkpoints is not the folder of a run: it has no config.json$"):
        tessera.load(run / "checkpoints")


@pytest.mark.parametrize("axes", [{}, {"data": 2, "context": 2}, {"context": 3}], ids=["one", "cut", "uneven"])
def test_a_loss_never_holds_more_logits_than_its_bound(run, lm, monkeypatch, axes):
    """4 rows of 32 tokens over 257 ids, in parts: f32 logits of 4 tokens each; and whole, by hand above."""
    text = "a€é" * 18 + "zz" * 10
    whole = lm.loss(text)
    monkeypatch.setattr(network, "LOGITS", 4 * 4 * 4 * 257)
    parts = (
        tessera.load(run, mesh=tiny.mesh(**axes))
        if axes
        else LanguageModel(lm.config, lm.params, lm.tokenizer, lm.mesh)
    )
    assert parts.loss(text) == pytest.approx(whole, rel=1e-6)
    batch = {name: np.zeros((4, 32), kind) for name, kind in (("inputs", int), ("targets", int), ("weights", "f4"))}
    with jax.set_mesh(parts.mesh):
        lowered = parts._sums.lower(parts.params, batch).as_text()
    assert "tensor<4x4x257xf32>" in lowered and "tensor<4x32x257xf32>" not in lowered
