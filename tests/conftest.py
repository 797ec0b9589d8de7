"""Eight emulated devices and one compilation cache for the whole run."""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(tempfile.gettempdir()) / "tessera-test-compiled"))
# Tiny programs: compiling them is most of the time. `.ci/run` also trains with the optimisations on.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax

jax.config.update("jax_num_cpu_devices", 8)


def pytest_configure(config):
    # A program that is compiled a second time on the way is a mistake.
    config.addinivalue_line("filterwarnings", "error::train.goodput.Recompiled")
