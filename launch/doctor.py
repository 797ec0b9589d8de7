"""`tessera doctor`: is this machine ready, and what is missing?"""

import os
import platform
import shutil
from importlib import metadata, util
from pathlib import Path

from launch.processes import discover, machine_attribute

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "sentencepiece", "ml-collections", "numpy")
EXTRAS = {"torch": "peers", "jupyterlab": "notebooks", "pytest": "dev", "libtpu": "tpu"}


def examine() -> int:
    """Prints what was found; 0 where training can run, 1 where something needed is broken."""
    problems = []
    print(f"python     {platform.python_version()}, {platform.platform()}, {os.cpu_count()} CPUs")
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            problems.append(f"{name} is not installed: make install")
    print(f"packages   {', '.join(versions)}")
    absent = [
        f"{module} (pip install -e '.[{extra}]')" for module, extra in EXTRAS.items() if not util.find_spec(module)
    ]
    print(f"optional   missing: {', '.join(absent) or 'nothing'}")
    try:
        print(f"processes  {_processes()}")
    except ValueError as error:
        problems.append(f"processes: {error}")
    try:
        print(f"devices    {_devices()}")
        print(f"mesh       {_mesh_test()}")
    except Exception as error:
        problems.append(f"devices: {type(error).__name__}: {error}")
    for place in (Path.cwd(), Path("~/.cache/tessera").expanduser()):
        exists = next(p for p in (place, *place.parents) if p.exists())
        free = shutil.disk_usage(exists).free
        print(f"disk       {free / 2**30:.1f} GiB free at {place}")
        if not os.access(exists, os.W_OK):
            problems.append(f"{exists} cannot be written")
        if free < 2**30:
            problems.append(f"less than 1 GiB is free at {place}")
    for problem in problems:
        print(f"PROBLEM    {problem}")
    print("ready" if not problems else f"{len(problems)} problem(s)")
    return 1 if problems else 0


def _processes() -> str:
    """What a training here would be one of."""
    found = discover(os.environ, machine_attribute())
    if found is None:
        return "one: nothing says that there are others"
    return f"process {found.index} of {found.count}, {found.coordinator} is process 0 (says {found.source})"


def _devices() -> str:
    import jax

    devices = jax.devices()
    stats = devices[0].memory_stats()
    memory = f", {stats['bytes_limit'] / 2**30:.1f} GiB each" if stats and "bytes_limit" in stats else ""
    return f"{len(devices)} × {devices[0].device_kind} ({devices[0].platform}){memory}"


def _mesh_test() -> str:
    """A sum over all devices must come out right."""
    import jax
    import jax.numpy as jnp

    from train.mesh import MeshConfig, make_mesh

    mesh = make_mesh(MeshConfig(-1, 1, 1, 1, 1))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    total = jax.jit(jnp.sum, in_shardings=sharding)(jnp.arange(4.0 * mesh.size))
    expected = 4 * mesh.size * (4 * mesh.size - 1) / 2
    if float(total) != expected:
        raise RuntimeError(f"a sum over {mesh.size} devices gave {float(total)}, not {expected}")
    return f"a sum over {mesh.size} device(s) is right"
