"""What `tessera plan` does: a plan or a search, shown and written to files; and what would help where nothing fits."""

import json
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from launch.experiment import read
from launch.plan import search
from launch.plan.oom import advice
from launch.plan.picture import picture
from launch.plan.plan import in_slices, plan
from launch.plan.report import show
from launch.plan.topology import find_topology
from launch.plan.variants import as_it_is, with_vocabulary
from train.console import Console


def run(
    config: ConfigDict,
    topology: str,
    *,
    mesh: Mapping[str, int] | None,
    slices: int,
    tokens: float,
    compiles: int | None,
    json_file: str | None,
    html_file: str | None,
) -> int:
    """0 where the step fits or nobody can say, 1 where it does not.

    Args:
        mesh, slices, tokens: as `launch.plan.plan.plan` takes them.
        compiles: None plans the config as it is; a number searches for the best layout and compiles so many.
        json_file, html_file: where the plan goes as numbers and as a page.

    Raises:
        ValueError: what cannot be planned, before anything is compiled.
    """
    console = Console()
    if compiles is None:
        planned = plan(config, topology, mesh=mesh, slices=slices, tokens=tokens)
        experiment = with_vocabulary(read(config))
        show(console, planned)
    else:
        found = search.search(
            with_vocabulary(read(config)), find_topology(topology, slices), compiles=compiles, console=console
        )
        planned, experiment = found[0].plan, found[0].variant.experiment
        show(console, planned)
        search.show(console, found)
    if json_file:
        Path(json_file).expanduser().write_text(json.dumps(planned.to_dict(), indent=1) + "\n", encoding="utf-8")
    if html_file:
        Path(html_file).expanduser().write_text(picture(experiment, planned).page(), encoding="utf-8")
    if planned.fits is not False:
        return 0
    needed = planned.bytes["total"] - (planned.limit_bytes or 0)
    console.say("what would help most, each by itself:")
    for line in advice(as_it_is(in_slices(experiment, planned.slices), planned.mesh), needed):
        console.say(f"  {line}")
    return 1
