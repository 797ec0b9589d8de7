"""How a network lies on a mesh, as a picture: every weight cut into its tiles, with bytes and copies."""

import dataclasses
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from evaluation.network import Network
from launch.experiment import Experiment, read, sharding_rules
from launch.plan.layout import Laid, full_sizes, lay_tokens, lay_weights
from launch.plan.mosaic import array_svg, mesh_svg, seen
from launch.plan.plan import Plan
from launch.plan.variants import with_vocabulary
from launch.saved import read_run, recorded_model
from model import parameters
from model.build import build
from model.config import ModelConfig
from model.sharding import ShardingRules, mesh_axes
from train.console import size

_STYLE = """
.mosaic { --ink: #1c2330; --dim: #5b6475; --paper: #fff; --card: #f6f7f9; --line: #d9dde4; color-scheme: light dark;
  font: 14px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 0 auto; padding: 1rem; color: var(--ink);
  background: var(--paper) }
@media (prefers-color-scheme: dark) {
  .mosaic { --ink: #e6e9ef; --dim: #9aa3b2; --paper: #14171c; --card: #1c2027; --line: #333a45 }
}
.mosaic h2 { margin: 1rem 0 .3rem; overflow-wrap: anywhere } .mosaic h3 { margin: 1.6rem 0 .5rem; font-size: 1.05rem }
.mosaic .cards { display: flex; flex-wrap: wrap; gap: .8rem }
.mosaic .card { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .7rem .9rem;
  width: 15rem; display: flex; flex-direction: column; gap: .5rem }
.mosaic .card svg { max-width: 100% } .mosaic .card .drawn { min-height: 11.5rem; display: flex; align-items: center }
.mosaic .name { font: 600 12.5px/1.4 ui-monospace, monospace; overflow-wrap: anywhere }
.mosaic .dim, .mosaic .card p { color: var(--dim); font-size: 12.5px; margin: 0 }
.mosaic .axis { display: inline-block; border: 1px solid var(--line); border-radius: 4px; padding: 0 .35rem;
  margin: 0 .2rem .2rem 0; font-size: 12px; color: var(--dim) }
.mosaic .cut { border-color: var(--ink); color: var(--ink); font-weight: 600 }
.mosaic table { border-collapse: collapse } .mosaic th { text-align: left; font-weight: 600 }
.mosaic th, .mosaic td { padding: .15rem 1.4rem .15rem 0; vertical-align: top; border-bottom: 1px solid var(--line) }
.mosaic td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.mosaic .sheet { fill: var(--line); stroke: var(--card) } .mosaic .copies { fill: url(#mosaic-copies) }
.mosaic svg text { font: 12px system-ui, sans-serif; fill: var(--ink) }
.mosaic .bar { fill: #4a7fd4 } .mosaic .whole { fill: var(--dim) }
.mosaic .mesh { display: flex; flex-wrap: wrap; gap: 2rem; align-items: flex-start }
"""
# Whatever lies on more than one device is hatched; one pattern serves every drawing of the page.
_HATCH = (
    '<svg width="0" height="0" style="position:absolute"><defs><pattern id="mosaic-copies" width="6" height="6" '
    'patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="1.6" height="6" fill="#fff" '
    'fill-opacity=".42"/></pattern></defs></svg>'
)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


@dataclasses.dataclass(frozen=True)
class Picture:
    """What a notebook shows of a network on a mesh; `page()` is the same as a file of its own."""

    title: str
    mesh: Mapping[str, int]  # size of each axis
    rules: ShardingRules
    arrays: tuple[Laid, ...]  # the weights in the order of the network; last, where there is a batch, its tokens
    plan: Plan | None = None  # adds memory and collectives

    def page(self) -> str:
        """A whole HTML document, which fetches nothing and runs nothing."""
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            f"<title>{_text(self.title)}</title></head>\n"
            f'<body style="margin:0">{self._repr_html_()}</body></html>\n'
        )

    def _repr_html_(self) -> str:
        cards = "".join(map(_card, self.arrays))
        return (
            f'<div class="mosaic"><style>{_STYLE}</style>{_HATCH}<h2>{_text(self.title)}</h2>'
            f'<p class="dim">{_text(self._summary())}</p><h3>mesh</h3><div class="mesh">{mesh_svg(self.mesh)}'
            f"{self._axes()}</div>{_planned(self.plan) if self.plan else ''}"
            '<h3>arrays</h3><p class="dim">A tile is what one device holds, in the colour of its place on the mesh; '
            "hatched: other devices hold the same. Drawn by parts, not to scale; layers lie behind each other.</p>"
            f'<div class="cards">{cards}</div></div>\n'
        )

    def _summary(self) -> str:
        weights = [laid for laid in self.arrays if laid.name != "tokens"]
        count = sum(math.prod(laid.shape) for laid in weights)
        once, held = sum(laid.bytes for laid in weights), sum(laid.device_bytes for laid in weights)
        devices = math.prod(self.mesh.values())
        return (
            f"{count:,} parameters: {size(once)} once, {size(held)} on each of {devices} devices, "
            f"{devices * held / once:.2f} times the weights on all of them together"
        )

    def _axes(self) -> str:
        shown, rows = dict(zip(seen(self.mesh), ("rows, hue", "columns, lightness", "blocks, depth"), strict=False)), []
        for axis, count in self.mesh.items():
            logical = [f.name for f in dataclasses.fields(self.rules) if axis in mesh_axes(getattr(self.rules, f.name))]
            if count > 1:
                cuts = ", ".join(logical) or "nothing: its devices hold the same"
                rows.append([axis, f"{count:,}", shown.get(axis, "blocks"), cuts])
        return table(["mesh axis", "size", "seen as", "cuts"], rows) if rows else "one device: everything is whole"


def picture(what: Any, mesh: Mapping[str, int] | Mesh | Plan | None = None) -> Picture:
    """How the weights of `what` lie on a mesh, for a notebook cell or (`.page()`) a file. Needs none of its devices.

    Args:
        what: an experiment's config, a network's `ModelConfig`, the folder of a run, or what `tessera.load` returns.
        mesh: sizes of the mesh axes, those of size 1 left out: `{"fsdp": 4, "tensor": 2}`; or a mesh of JAX; or a
            plan, whose memory and collectives are then shown too. None: the mesh of the config on the devices of this
            machine, of a loaded network its own, else one device.

    Raises:
        ValueError: a dimension that the mesh cannot cut, an axis that does not exist, or a model without arrays.
    """
    title, model, rules, batch = _read(what)
    plan = mesh if isinstance(mesh, Plan) else None
    given = mesh.mesh if isinstance(mesh, Plan) else mesh.shape if isinstance(mesh, Mesh) else mesh
    sizes = _own_mesh(what) if given is None else full_sizes(given)
    if model.architecture == "ngram":
        raise ValueError("an n-gram model counts: it has no weights that lie on a mesh")
    arrays = lay_weights(parameters.weights(build(model, rules)), rules, sizes)
    if batch:
        arrays.append(lay_tokens(batch, model.max_length, rules, sizes))
    return Picture(title, sizes, rules, tuple(arrays), plan)


def _own_mesh(what: Any) -> dict[str, int]:
    """Axis sizes of a thing itself; one device where it has none."""
    if isinstance(what, Network):
        return dict(what.mesh.shape)
    if isinstance(what, ConfigDict):
        what = read(what)
    return what.mesh.sizes(jax.device_count()) if isinstance(what, Experiment) else full_sizes({})


def _read(what: Any) -> tuple[str, ModelConfig, ShardingRules, int]:
    """Title, network, rules, and rows of a batch (0: none)."""
    if isinstance(what, str | Path):
        record = read_run(Path(what).expanduser())
        given = {name.removeprefix("sharding."): v for name, v in record["config"].items() if name[:9] == "sharding."}
        rules = sharding_rules(given) if given else ShardingRules()
        return str(what), recorded_model(Path(what), record), rules, 0
    if isinstance(what, ModelConfig):
        return f"{what.architecture}, width {what.embed_dim}", what, ShardingRules(), 0
    if isinstance(what, Network):
        config = what.config
        return f"{config.architecture}, width {config.embed_dim}", config, what.rules, 0
    if isinstance(what, ConfigDict):
        what = read(what)
    if not isinstance(what, Experiment):
        raise ValueError(
            f"a {type(what).__name__} has no weights to draw: pass a config, a run's folder or a loaded model"
        )
    model = what.model if what.model.architecture == "ngram" else with_vocabulary(what).model
    return what.run.dir, model, what.rules, what.train.global_batch


def _card(laid: Laid) -> str:
    chips = []
    for name, length, cut, parts in zip(laid.axes, laid.shape, laid.cuts, laid.parts, strict=True):
        by = f" ÷ {'·'.join(cut)} {parts}" if cut else ""
        chips.append(f'<span class="axis{" cut" * bool(cut)}">{_text(f"{name} {length:,}{by}")}</span>')
    shape = " × ".join(f"{n:,}" for n in laid.tile_shape)
    pieces = f"{laid.tiles:,} tiles of {shape}" if laid.tiles > 1 else f"whole, {shape}"
    copies = f"{laid.copies:,} devices hold each" if laid.copies > 1 else "each on one device"
    return (
        f'<div class="card" data-name="{_text(laid.name)}" data-tiles="{laid.tiles}" data-copies="{laid.copies}">'
        f'<div class="name">{_text(laid.name)}</div><div class="drawn">{array_svg(laid)}</div><div>{"".join(chips)}'
        f"</div><p>{pieces}: {size(laid.device_bytes)} a device of {size(laid.bytes)}; {copies}</p></div>"
    )


def _planned(plan: Plan) -> str:
    """Memory of one device as bars, and what devices say to each other."""
    held = [(kind, n) for kind, n in plan.bytes.items() if n > 0 and kind not in ("total", "host")]
    total, most = plan.bytes["total"], max(plan.bytes["total"], plan.limit_bytes or 0)
    rows = [*held, ("total", total), *([("usable", plan.limit_bytes)] if plan.limit_bytes else [])]
    bars = "".join(
        f'<text x="108" y="{22 * row + 15}" text-anchor="end">{_text(kind)}</text>'
        f'<rect class="{"whole" if kind in ("total", "usable") else "bar"}" x="116" y="{22 * row + 3}" rx="2" '
        f'height="15" width="{320 * n / most:.1f}"/>'
        f'<text x="{122 + 320 * n / most:.1f}" y="{22 * row + 15}">{size(n)}</text>'
        for row, (kind, n) in enumerate(rows)
    )
    label = f"memory of one of {plan.num_devices} devices, {plan.method}"
    chart = f'<svg width="540" height="{22 * len(rows)}" role="img" aria-label="{_text(label)}">{bars}</svg>'
    spoken = [
        [c.kind, " + ".join(c.axes), size(c.bytes), f"{c.times:,}", size(c.bytes * c.times), c.where]
        for c in sorted(plan.collectives, key=lambda c: -c.bytes * c.times)
    ]
    columns = ["collective", "along", "each", "times", "a step", "where"]
    wires = f"<h3>collectives of one step, of one device</h3>{table(columns, spoken)}" if spoken else ""
    problem = f'<p class="dim">{_text(plan.problem)}</p>' if plan.problem else ""
    return f"<h3>{_text(label)}</h3>{problem}{chart}{wires}"


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A table; numbers, and what begins with one, stand to the right."""
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    cells = ("".join(f"<td{_number(cell)}>{_text(cell)}</td>" for cell in row) for row in rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _number(cell: str) -> str:
    return ' class="number"' if cell[:1].isdigit() else ""


def _text(text: str) -> str:
    return escape(text, quote=True)
