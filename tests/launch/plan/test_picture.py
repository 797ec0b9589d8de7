"""The picture shows every array, cut as JAX itself cuts it."""

import dataclasses
import json
import math
import re
from html.parser import HTMLParser

import jax
import pytest
from jax.sharding import AxisType, NamedSharding

import tessera
from configs import defaults, gpt2_124m, gpt_7b
from launch.experiment import read
from launch.plan import mosaic
from launch.plan.layout import full_sizes, lay_tokens, lay_weights
from launch.plan.plan import stand_in
from model import parameters
from model.build import build
from model.sharding import PRESETS, ShardingRules
from tests import tiny
from tests.launch.plan.tiny_plans import tiny_config
from train.console import size


class Page(HTMLParser):
    """Cards with the tiles that each draws, tags, and whether all that is opened is closed."""

    def __init__(self, text):
        super().__init__()
        self.cards, self.tags, self.open, self._card = {}, set(), [], None
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.add(tag)
        if tag not in ("meta", "rect"):
            self.open.append(tag)
        if given.get("class") == "card":
            self._card = self.cards[given["data-name"]] = {"tiles": 0, "hatched": 0, **given}
        if tag == "rect" and self._card is not None:
            self._card["tiles"] += given.get("class") == "tile"
            self._card["hatched"] += given.get("class") == "copies"

    def handle_endtag(self, tag):
        assert tag == "rect" or self.open.pop() == tag


def config(mesh=None, **model):
    made = defaults.get_config()
    made.model.update(vocab_size=64, max_length=32, num_layers=2, embed_dim=32, num_heads=4, **model)
    made.mesh.update(data=1, **(mesh or {"fsdp": -1}))
    return made


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    "sizes", [{"fsdp": 4, "tensor": 2}, {"data": 2, "fsdp": 4}, {"data": 2, "tensor": 2, "context": 2}]
)
def test_arrays_lie_as_jax_lays_them(sizes, preset):
    """Tiles, copies and bytes of each weight against the shards of real (emulated) devices."""
    rules, sizes = PRESETS[preset], full_sizes(sizes)
    mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
    weights = parameters.weights(build(tiny.LLAMA, rules))
    laid = lay_weights(weights, rules, sizes)
    assert [one.name for one in laid] == list(parameters.named_leaves(weights))
    for one in laid:
        placed = NamedSharding(mesh, rules.spec(*one.axes))
        shards = [str(index) for index in placed.devices_indices_map(one.shape).values()]
        assert (one.tiles, one.copies) == (len(set(shards)), shards.count(shards[0])), one.name
        array = jax.device_put(jax.numpy.zeros(one.shape), placed)
        assert one.device_bytes == array.addressable_shards[0].data.nbytes and one.bytes == array.nbytes
    tokens = lay_tokens(8, 32, rules, sizes)
    assert tokens.tile_shape == NamedSharding(mesh, rules.spec("batch", "length")).shard_shape((8, 32))


def test_the_page_has_every_weight_with_its_tiles():
    made = config()
    page = Page(tessera.picture(made, mesh={"data": 2, "fsdp": 2, "tensor": 4}).page())
    weights = parameters.named_leaves(parameters.weights(build(tiny.GPT)))
    assert list(page.cards) == [*weights, "tokens"]
    for name, card in page.cards.items():
        assert card["tiles"] == int(card["data-tiles"]), name
        assert int(card["data-tiles"]) * int(card["data-copies"]) == 16, name
        assert card["hatched"] == (card["tiles"] if int(card["data-copies"]) > 1 else 0), name
    assert page.cards["decoder/layers/mlp/up/kernel"]["tiles"] == 8
    assert not page.tags & {"script", "link", "img", "iframe"}


def test_nothing_is_drawn_more_than_sixteen_times_along_a_side():
    """4,096 chips: groups stand for many, and the page stays small."""
    page = tessera.picture(gpt_7b.get_config(), mesh={"fsdp": 512, "tensor": 8}).page()
    cards = Page(page).cards
    up = cards["decoder/layers/mlp/up/kernel"]
    assert up["data-tiles"] == "4096" and up["tiles"] == 16 * 8 and len(page) < 200_000
    assert "fsdp 0 to 31, tensor 0" in page


@pytest.mark.parametrize("axes, sizes", [(["fsdp"], [128]), (["data", "fsdp"], [4, 8]), (["fsdp", "tensor"], [3, 24])])
def test_bands_cover_every_coordinate_once(axes, sizes):
    bands = list(mosaic._bands(axes, dict(zip(axes, sizes, strict=True))))
    assert len(bands) <= mosaic.MOST
    whole = {axis: (0, size) for axis, size in zip(axes, sizes, strict=True)}
    covered = [math.prod(high - low for low, high in {**whole, **band}.values()) for band in bands]
    assert sum(covered) == math.prod(sizes) and len({str(band) for band in bands}) == len(bands)


def test_places_have_colours_of_their_own():
    mesh = {"data": 2, "fsdp": 4, "tensor": 4}
    svg = mosaic.mesh_svg(mesh)
    colours = re.findall(r'fill="(#[0-9a-f]{6})"', svg)
    assert len(colours) == 32 == len(set(colours)) and svg == mosaic.mesh_svg(dict(reversed(mesh.items())))
    # A tile on some axes only has the hue of its place: the same whatever other axes there are.
    assert mosaic.colour({"fsdp": (1, 2)}, {"fsdp": 4}) == mosaic.colour({"fsdp": (1, 2)}, mesh)
    assert mosaic._hex(1.0, 0.0, 0.0) == "#ffffff" and mosaic._hex(0.0, 0.0, 0.0) == "#000000"
    assert mosaic._hex(0.627955, 0.257683, 29.2339) == "#ff0000"  # red, in the table of Oklch


def test_layers_on_an_axis_stand_side_by_side():
    rules = ShardingRules()
    laid = lay_weights(parameters.weights(build(tiny.GPT, rules)), rules, full_sizes({"stage": 2, "fsdp": 2}))
    kernel = next(one for one in laid if one.name.endswith("mlp/up/kernel"))
    assert kernel.parts == (2, 2, 1) and mosaic.array_svg(kernel).count('class="tile"') == 4


def test_what_is_given_is_escaped():
    made = config()
    made.run.dir = "runs/<script>alert('1')</script>&\"/run"
    page = tessera.picture(made).page()
    assert "<script" not in page and "runs/&lt;script&gt;" in page
    Page(page)


def test_the_same_picture_every_time():
    first, second = (tessera.picture(gpt2_124m.get_config(), mesh={"fsdp": 8}) for _ in range(2))
    assert first.page() == second.page() and first._repr_html_() in first.page()


def test_without_a_mesh_it_is_the_configs():
    shown = tessera.picture(config({"fsdp": 2, "tensor": 4}))
    assert {axis: n for axis, n in shown.mesh.items() if n > 1} == {"fsdp": 2, "tensor": 4}


def test_a_mesh_that_is_given_needs_no_other():
    """That of the config does not go on the devices of this machine."""
    made = config({"fsdp": 3})
    with pytest.raises(ValueError, match="there are 8"):
        tessera.picture(made)
    assert dict(tessera.picture(made, mesh={"tensor": 4}).mesh) == full_sizes({"tensor": 4})


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="no mesh axis 'fsbp': the axes are data, stage, fsdp"):
        tessera.picture(config(), mesh={"fsbp": 2})
    with pytest.raises(ValueError, match="fsdp has size -1: it must be at least 1"):
        tessera.picture(config(), mesh={"fsdp": -1})
    with pytest.raises(ValueError, match="not divisible by 3, the size of mesh axis 'fsdp'"):
        tessera.picture(config(), mesh={"fsdp": 3})
    with pytest.raises(ValueError, match="the batch 16 of a batch|batch 16 .* not divisible by the 32 parts"):
        tessera.picture(config(), mesh={"data": 32})
    with pytest.raises(ValueError, match="a list has no weights"):
        tessera.picture([1])
    with pytest.raises(ValueError, match="an n-gram model counts"):
        tessera.picture(dataclasses.replace(tiny.GPT, architecture="ngram"))


def test_a_plan_adds_memory_and_collectives(tmp_path, capsys):
    """Through the command: what the plan says in numbers stands on the page."""
    (tmp_path / "config.py").write_text(
        "from configs import defaults\n\n\ndef get_config():\n    made = defaults.get_config()\n"
        "    made.model.update(vocab_size=64, max_length=32, num_layers=2, embed_dim=32, num_heads=4)\n"
        "    made.data.tokenizer_vocab = 64\n    made.mesh.update(data=2, fsdp=4)\n    return made\n"
    )
    page, numbers = tmp_path / "plan.html", tmp_path / "plan.json"
    words = ["plan", f"--config={tmp_path}/config.py", "--topology=cpu:8", f"--html={page}", f"--json={numbers}"]
    assert tessera.main(words) == 0
    text, said = page.read_text(), json.loads(numbers.read_text())
    cards = Page(text).cards
    assert cards["decoder/layers/mlp/up/kernel"]["tiles"] == 4
    for kind, held in said["bytes"].items():
        assert held <= 0 or (f">{kind}</text>" in text and f">{size(held)}</text>" in text), kind
    assert said["collectives"]
    for one in said["collectives"]:
        assert f"<td>{one['kind']}</td><td>{' + '.join(one['axes'])}</td>" in text
    assert tessera.main([*words, "--search_compiles=2"]) == 78
    assert "would change nothing without --search" in capsys.readouterr().err


def test_the_vocabulary_is_the_tokenisers():
    """Bytes with their special ids, not the size that a trained tokeniser would have."""
    config = tiny_config(data=8)
    config.model.vocab_size, config.data.tokenizer_vocab = 0, 32_000
    table = next(laid for laid in tessera.picture(config).arrays if "vocab" in laid.axes)
    assert table.shape[table.axes.index("vocab")] == stand_in(read(config)).vocab_size < 300
