from types import SimpleNamespace

import numpy as np
import pytest

from data.errors import DataError
from data.objectives.examples import assemble
from data.objectives.objectives import (
    OBJECTIVES,
    READ_BY,
    ObjectiveConfig,
    check_objective,
    make_objective,
    special_names,
)

TEXT = ["a", "b", "c", " d", " e"]
SPECIAL = ["pad", "eos", "mask", "cls", "sep", *[f"extra_{n}" for n in range(100)], "mode_r", "mode_s", "mode_x"]


def tokenizer(lacks=()):
    """5 ids of text, then every special id there is; each of those claims 3 bytes, as some tokenizers do."""
    ids = {name: 5 + place for place, name in enumerate(SPECIAL) if name not in lacks}
    return SimpleNamespace(
        kind="toy",
        vocab_size=5 + len(SPECIAL),
        eos_id=6,
        special_ids=ids,
        token_bytes_V=np.array([*map(len, TEXT), *[3] * len(SPECIAL)], np.int32),
        decode=lambda ids: "".join(TEXT[id] for id in ids),
    )


def example_of(objective, ids, seed):
    """A row that holds one piece, or none, where nothing can be predicted."""
    pieces = [objective(ids, np.random.default_rng(seed))] if len(ids) > objective.overlap else []
    return assemble(pieces, objective.features, objective.pad_id)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("tokens", [None, 5, 1, 0])
def test_examples_have_the_promised_shapes_and_count_nothing_that_is_not_there(name, tokens):
    objective = make_objective(ObjectiveConfig(name), max_length=20, tokenizer=tokenizer())
    full = objective.stride + objective.overlap
    block = np.resize(np.arange(5, dtype=np.uint16), full if tokens is None else tokens)
    example = example_of(objective, block, 0)
    assert {key: (array.shape, array.dtype.type) for key, array in example.items()} == objective.features
    assert (example["weights"].sum() > 0) == (len(block) > objective.overlap)
    if "segments" in example:
        assert not example["weights"][example["segments"] == 0].any()
    if not len(block):
        assert not any(example.get(name, np.zeros(1)).any() for name in ("segments", "source_segments", "prefix"))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_generator_alone_decides(name):
    objective = make_objective(ObjectiveConfig(name), max_length=64, tokenizer=tokenizer())
    block = np.resize(np.arange(5), objective.stride + objective.overlap)
    examples = [example_of(objective, block, seed) for seed in (3, 3, 4, 5, 6)]
    as_bytes = [b"".join(example[key].tobytes() for key in objective.features) for example in examples]
    assert as_bytes[0] == as_bytes[1]
    assert (len(set(as_bytes)) > 1) == (name != "causal_lm")


def test_settings_reach_the_objective():
    def made(**settings):
        return make_objective(ObjectiveConfig(**settings), max_length=100, tokenizer=tokenizer())

    masked = made(name="masked_lm", mask_rate=0.5)
    block = np.resize(np.arange(5), masked.stride)
    example = example_of(masked, block, 0)
    assert (masked.stride, example["weights"].sum(), masked.starts_word_V) == (98, 49, None)
    assert (example["targets"][0], example["targets"][-1]) == (8, 9)  # cls, sep
    assert np.flatnonzero(masked.ordinary_V).tolist() == [0, 1, 2, 3, 4]  # whatever bytes special ids claim
    words = made(name="masked_lm", whole_words=True)
    assert np.flatnonzero(words.starts_word_V).tolist() == [3, 4]
    spans = made(name="span_corruption", noise_density=0.5, mean_span=5.0)
    example = example_of(spans, np.zeros(spans.stride, int), 0)
    assert (example["source"] >= 10).sum() == (example["targets"] >= 10).sum() == round(spans.stride / 2 / 5)
    assert (example["inputs"][0], example["source"][-1], example["targets"][-1]) == (5, 6, 6)  # pad, eos, eos
    assert made(name="ul2").mode_ids == (110, 111, 112)
    assert "prefix" in made(name="prefix_lm").features and "prefix" not in made(name="causal_lm").features


def test_special_names_are_all_that_is_needed():
    for name, count in (("causal_lm", 0), ("prefix_lm", 0), ("masked_lm", 4), ("span_corruption", 102), ("ul2", 105)):
        names = special_names(ObjectiveConfig(name))
        assert len(names) == len(set(names)) == count
        make_objective(ObjectiveConfig(name), max_length=32, tokenizer=tokenizer(set(SPECIAL) - set(names)))
        for lacking in {*names[:3], *names[-1:]}:
            with pytest.raises(DataError, match=f"{name} needs special ids that the toy tokenizer lacks: {lacking}$"):
                make_objective(ObjectiveConfig(name), max_length=32, tokenizer=tokenizer({lacking}))


@pytest.mark.parametrize(
    ("settings", "length", "message"),
    [
        ({"name": "span_corruption"}, 2048, "has 114 spans .* there are 100 sentinels: use a shorter length"),
        ({"name": "span_corruption"}, 2, "length 2 holds no token beside a sentinel and eos"),
        ({"name": "ul2"}, 1024, "has 189 spans .* there are 100 sentinels"),
        ({"name": "masked_lm"}, 2, "length 2 has no room for text"),
        ({"name": "causal_lm"}, 0, "length 0 must be 1 or more"),
    ],
)
def test_lengths_are_checked_without_a_tokenizer(settings, length, message):
    config = ObjectiveConfig(**settings)
    for check in (lambda: check_objective(config, length), lambda: made_of(config, length)):
        with pytest.raises(DataError, match=message):
            check()


def made_of(config, length):
    return make_objective(config, max_length=length, tokenizer=tokenizer())


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("settings", [{}, {"mean_span": 12.0}, {"whole_words": True}])
def test_lengths_that_every_tokenizer_takes_pass(name, settings):
    if all(READ_BY[setting] == name for setting in settings):
        check_objective(ObjectiveConfig(name, **settings), 512)


def test_many_missing_ids_are_cut_short():
    with pytest.raises(DataError, match="lacks: pad, eos, extra_0, extra_1, extra_2, extra_3, …$"):
        make_objective(ObjectiveConfig("ul2"), max_length=32, tokenizer=tokenizer(SPECIAL))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "mlm", "one of causal_lm, masked_lm, span_corruption, prefix_lm, ul2"),
        ("mask_rate", 0.0, "a fraction, above 0 and below 1"),
        ("mask_rate", "0.1", "of type float"),
        ("mask_rate", True, "of type float"),
        ("whole_words", 1, "of type bool"),
        ("noise_density", 1.0, "a fraction, above 0 and below 1"),
        ("mean_span", 0.5, "1 or more"),
        ("mean_span", float("inf"), "1 or more"),
        ("label_smoothing", 1.0, "a fraction, below 1"),
        ("label_smoothing", -0.1, "a fraction, below 1"),
        ("z_loss", -1.0, "0 or more"),
        ("z_loss", float("nan"), "0 or more"),
    ],
)
def test_a_bad_setting_is_named_with_what_is_allowed(field, value, message):
    with pytest.raises(ValueError) as error:
        ObjectiveConfig(**{field: value})
    assert str(error.value) == f"objective.{field} = {value!r} is not allowed: it must be {message}"


def test_good_settings_pass():
    assert ObjectiveConfig(name="span_corruption", mean_span=3, z_loss=1e-4).mean_span == 3
    assert ObjectiveConfig(name="masked_lm", whole_words=True, mask_rate=0.3).whole_words


@pytest.mark.parametrize(
    ("name", "setting", "reader"),
    [("causal_lm", {"mask_rate": 0.3}, "masked_lm"), ("ul2", {"mean_span": 8.0}, "span_corruption")],
)
def test_a_setting_that_the_objective_does_not_read_is_refused(name, setting, reader):
    with pytest.raises(ValueError, match=f"would change nothing: only {reader} reads it, the objective is {name}"):
        ObjectiveConfig(name=name, **setting)
