"""Arrays and meshes drawn as mosaics: inline SVG, a tile for a shard, a colour for a place on the mesh."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from launch.plan.layout import Laid

# Which mesh axis is seen as hue, which as lightness, which as depth of colour: the first three of these above size 1.
SEEN_FIRST = ("fsdp", "tensor", "expert", "stage", "context", "data")
MOST = 16  # bands along one side; more parts are drawn in groups
LONG, SHORT, GROUT = 168, 44, 2.0  # pixels: sides of an array, and what is left between two tiles
SHEET = 5  # pixels between the sheets of a stack of layers

Span = tuple[int, int]  # coordinates on a mesh axis, from the first to behind the last
Place = Mapping[str, Span]  # on the axes that a tile is bound to


def array_svg(laid: Laid) -> str:
    """An array as the matrix it is nearest to: rows and columns cut as the mesh cuts them, layers as sheets behind."""
    stacked = laid.axes[0] == "layers" and len(laid.shape) > 1
    layers, shape, cuts = int(stacked), laid.shape[stacked:], laid.cuts[stacked:]
    rows = _rows(shape)
    down = list(_bands([axis for cut in cuts[:rows] for axis in cut], laid.mesh))
    across = list(_bands([axis for cut in cuts[rows:] for axis in cut], laid.mesh))
    # A stack that the mesh cuts stands side by side, a group of layers each; one that it does not is drawn as depth.
    groups = list(_bands([axis for cut in laid.cuts[:layers] for axis in cut], laid.mesh))
    height, width = _extent(shape, rows)
    tall, wide, depth = height / len(down), width / len(across), 2 * SHEET * (laid.shape[:layers] > (1,))
    drawn = []
    for number, group in enumerate(groups):
        left = number * (width + depth + 2 * SHEET)
        for back in range(depth, 0, -SHEET):
            box = f'x="{left + back}" y="{depth - back}" width="{width}" height="{height}" rx="2"'
            drawn.append(f'<rect class="sheet" {box}/>')
        for y, row in enumerate(down):
            for x, column in enumerate(across):
                place = {**group, **row, **column}
                at = (left + x * wide, depth + y * tall, wide, tall)
                drawn.append(_tile(at, place, laid.mesh, _told(place) or "whole", hatched=laid.copies > 1))
    total = len(groups) * (width + depth + 2 * SHEET) - 2 * SHEET
    return _svg(total, height + depth, drawn, f"{laid.name}: {laid.tiles} tiles, {laid.copies} copies")


def mesh_svg(mesh: Mapping[str, int]) -> str:
    """Every device of a mesh (or group of them) at its place: the axes seen first make a table, others repeat it."""
    down, across, rest = seen(mesh)[:1], seen(mesh)[1:2], seen(mesh)[2:]
    rows, columns = list(_bands(down, mesh)), list(_bands(across, mesh))
    cell = 22
    height, width = cell * len(rows), cell * len(columns)
    panels = list(_bands(rest, mesh))
    per_line = max(1, min(len(panels), 640 // (width + cell)))
    drawn = []
    for number, panel in enumerate(panels):
        left, top = number % per_line * (width + cell), number // per_line * (height + cell)
        for y, row in enumerate(rows):
            for x, column in enumerate(columns):
                place = {**panel, **row, **column}
                at = (left + x * cell, top + y * cell, cell, cell)
                drawn.append(_tile(at, place, mesh, _device(place, mesh)))
    lines = math.ceil(len(panels) / per_line)
    title = f"mesh of {math.prod(mesh.values())} devices"
    return _svg(per_line * (width + cell) - cell, lines * (height + cell) - cell, drawn, title)


def colour(place: Place, mesh: Mapping[str, int]) -> str:
    """The colour of a place: each of the three axes seen first sets one side of it, if the place is bound to it.

    Oklab's lightness, chroma and hue (Ottosson 2020), under which equal steps look equal.
    """
    share = [place[axis][0] / mesh[axis] if axis in place else None for axis in seen(mesh)] + [None] * 3
    hue, light, deep = share[:3]
    lightness = 0.68 if light is None else 0.82 - 0.36 * light
    chroma = 0.13 if deep is None else 0.15 - 0.10 * deep
    # Bound to nothing that has a hue: slate, as far as it goes.
    return _hex(lightness, 0.03 if hue is None else chroma, 255.0 if hue is None else 25 + 310 * hue)


def seen(mesh: Mapping[str, int]) -> list[str]:
    """The mesh axes above size 1, those that are seen best first."""
    known = [axis for axis in SEEN_FIRST if mesh.get(axis, 1) > 1]
    return known + [axis for axis, size in mesh.items() if size > 1 and axis not in SEEN_FIRST]


def _rows(shape: Sequence[int]) -> int:
    """How many of the dimensions are rows, the others columns: so that the matrix is as square as can be."""
    if len(shape) < 2:
        return 0
    return min(range(1, len(shape)), key=lambda at: abs(math.log(math.prod(shape[:at]) / math.prod(shape[at:]))))


def _extent(shape: Sequence[int], rows: int) -> tuple[int, int]:
    """Height and width in pixels; long ones are drawn shorter than they are."""
    if not rows:
        return 20, LONG
    ratio = math.sqrt(math.prod(shape[:rows]) / math.prod(shape[rows:]))
    return (LONG, max(SHORT, round(LONG / ratio))) if ratio > 1 else (max(SHORT, round(LONG * ratio)), LONG)


def _bands(axes: Sequence[str], mesh: Mapping[str, int]) -> Iterator[Place]:
    """The parts that `axes` (outermost first) make, in order; where there are more than MOST, groups of them."""
    left, steps = MOST, {}
    for axis in axes:
        drawn = max(d for d in range(1, min(left, mesh[axis]) + 1) if mesh[axis] % d == 0)
        left //= drawn
        if drawn > 1:
            steps[axis] = (drawn, mesh[axis] // drawn)
    for number in range(math.prod(drawn for drawn, _ in steps.values())):
        place: dict[str, Span] = {}
        for axis, (drawn, size) in reversed(steps.items()):
            number, at = divmod(number, drawn)
            place[axis] = (at * size, (at + 1) * size)
        yield dict(reversed(place.items()))


def _tile(at: tuple[float, ...], place: Place, mesh: Mapping[str, int], told: str, *, hatched: bool = False) -> str:
    x, y, wide, tall = at
    grout = min(GROUT, wide / 5, tall / 5)
    box = f'x="{x:.1f}" y="{y:.1f}" width="{wide - grout:.1f}" height="{tall - grout:.1f}" rx="2"'
    over = f'<rect class="copies" {box}/>' * hatched
    return f'<g><title>{escape(told)}</title><rect class="tile" {box} fill="{colour(place, mesh)}"/>{over}</g>'


def _told(place: Place) -> str:
    spans = (f"{axis} {low}" + (f" to {high - 1}" if high - low > 1 else "") for axis, (low, high) in place.items())
    return ", ".join(spans)


def _device(place: Place, mesh: Mapping[str, int]) -> str:
    each = math.prod(mesh.values()) // math.prod(mesh[axis] // (high - low) for axis, (low, high) in place.items())
    return f"{_told(place) or 'the only device'}" + (f": {each} devices" if each > 1 else "")


def _svg(width: float, height: float, drawn: Sequence[str], label: str) -> str:
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    return f'<svg {size} role="img" aria-label="{escape(label, quote=True)}">{"".join(drawn)}</svg>'


def _hex(lightness: float, chroma: float, hue: float) -> str:
    """Oklch as #rrggbb."""
    a, b = chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue))
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    clipped = (min(max(value, 0.0), 1.0) for value in linear)
    coded = (12.92 * value if value <= 0.0031308 else 1.055 * value ** (1 / 2.4) - 0.055 for value in clipped)
    return "#" + "".join(f"{round(255 * value):02x}" for value in coded)
