import pytest
from ml_collections import ConfigDict

from configs.defaults import source
from data.config import SourceConfig


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("path", "", "data.path or data.mixture says what is read, and neither is given"),
        ("mixture", {"a": {}}, "data.path or data.mixture says what is read, and both are given"),
        ("mixture_stages", (10,), "data.mixture_stages and data.mixture_temperature would change nothing without"),
        ("mixture_stages", (10, 5), "data.mixture_stages = (10, 5) is not allowed: it must be rising steps above 0"),
        ("mixture_temperature", 0.0, "data.mixture_temperature = 0.0 is not allowed: it must be above 0"),
        ("packing", "chunks", "data.packing = 'chunks' is not allowed: it must be one of chunk, isolate, first_fit"),
        ("curriculum", "score", "data.curriculum='score' needs data.score_field"),
        ("text_field", "", "data.text_field = '' is not allowed"),
        ("tokenizer", "", "data.tokenizer = '' is not allowed"),
        ("cache_dir", "", "data.cache_dir = '' is not allowed"),
        ("tokenizer_vocab", 0, "data.tokenizer_vocab = 0 is not allowed: it must be 1 or more"),
        ("held_out", 0.0, "data.held_out = 0.0 is not allowed: it must be a fraction, above 0 and below 1"),
        ("held_out", 1.0, "data.held_out = 1.0 is not allowed"),
        ("held_out_by", "tial", "data.held_out_by = 'tial' is not allowed: it must be one of document, tail"),
        ("prefetch", -1, "data.prefetch = -1 is not allowed: it must be 0 or more"),
        ("held_out", "0.1", "data.held_out = '0.1' is a str: it must be a number"),
        ("prefetch", True, "data.prefetch = True is a bool: it must be int"),
        ("document_separator", None, "data.document_separator = None is a NoneType: it must be str"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(config, field, value, message):
    with pytest.raises(ValueError) as error:
        config(**{field: value})
    assert message in str(error.value)


def test_good_values_pass(config):
    made = config(document_separator="\n\n", prefetch=0, held_out_by="tail", held_out=0.5)
    assert (made.document_separator, made.prefetch, made.held_out_by, made.held_out) == ("\n\n", 0, "tail", 0.5)


def test_a_single_path_is_a_part_without_limit(config):
    (part,) = config(path="x.jsonl", text_field="body", licence="CC0").parts.values()
    assert (part.source.path, part.source.text_field, part.source.licence) == ("x.jsonl", "body", "CC0")
    assert (part.weight, part.max_epochs) == ((), float("inf"))


def test_parts_of_a_mixture_come_in_the_order_of_their_names(config):
    mixture = ConfigDict(
        {"b": source("b.txt", weight=(2.0, 1.0), language="en"), "a": source("a.txt", weight=(3.0,), max_epochs=2.0)}
    )
    parts = config(path="", mixture=mixture, mixture_stages=(10,)).parts
    assert list(parts) == ["a", "b"]
    assert (parts["b"].weight, parts["b"].max_epochs, parts["b"].source.language) == ((2.0, 1.0), 1.0, "en")
    assert (parts["a"].weight, parts["a"].max_epochs) == ((3.0,), 2.0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weight": (1.0, 2.0, 3.0)}, r"data.mixture.a.weight is \(1.0, 2.0, 3.0\): give none, one, or 2"),
        ({"weight": (-1.0,)}, "each 0 or more"),
        ({"weight": 1.0}, "must be a tuple of numbers"),
        ({"max_epochs": 0.0}, "data.mixture.a.max_epochs is 0.0: it must be a number above 0"),
        ({"path": ""}, "data.mixture.a.path = '' is not allowed"),
        ({"pth": "x"}, "data.mixture.a has unknown or missing leaves: pth"),
    ],
)
def test_a_bad_part_of_a_mixture(config, change, says):
    with pytest.raises(ValueError, match=says):
        config(path="", mixture={"a": {**source("a.txt"), **change}}, mixture_stages=(10,))


@pytest.mark.parametrize(
    ("weights", "stages", "says"),
    [
        ([(1.0,), ()], (), "data.mixture: a have a weight and b none: give one to all or none"),
        ([(), ()], (10,), r"data.mixture_stages \(10,\) change nothing: no part has a weight"),
        ([(0.0,), (0.0,)], (), "all weights of the stage from step 0 on are 0: one must be above"),
        ([(1.0, 0.0), (1.0, 0.0)], (10,), "all weights of the stage from step 10 on are 0"),
    ],
)
def test_weights_that_do_not_fit_together(config, weights, stages, says):
    mixture = {name: source("a.txt", weight=weight) for name, weight in zip("ab", weights, strict=True)}
    with pytest.raises(ValueError, match=says):
        config(path="", mixture=mixture, mixture_stages=stages)


@pytest.mark.parametrize(
    "name", ["text_field", "id_field", "score_field", "document_separator", "dataset_split", "language", "licence"]
)
def test_settings_of_a_source_that_a_mixture_would_not_read_are_refused(config, name):
    mixture = {"a": source("a.txt", **{name: "own"})}
    assert getattr(config(path="", mixture=mixture).parts["a"].source, name) == "own"
    with pytest.raises(ValueError, match=rf"data has {name}='other', which a mixture does not read: set it in each"):
        config(path="", mixture=mixture, **{name: "other"})


def test_source_refuses_unknown_leaves():
    with pytest.raises(ValueError, match="data.skip_broken = -1 is not allowed: it must be 0 or more"):
        SourceConfig("a.txt", skip_broken=-1)
    with pytest.raises(ValueError, match="a source has no lang"):
        source("a.txt", lang="en")
