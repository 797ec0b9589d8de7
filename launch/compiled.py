"""The persistent compilation cache: what was compiled once on this machine is read the next time."""

import hashlib
import os
import platform
from pathlib import Path

FOLDER = Path("~/.cache/tessera/compiled")
LARGEST = 8 * 2**30  # bytes; the least recently used go first


def keep_compiled() -> Path | None:
    """Switches the cache on, in a folder that only this user may write; None where the user has said otherwise.

    jax's own settings rule: JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=false is none.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR") or os.environ.get("JAX_ENABLE_COMPILATION_CACHE") == "false":
        return None
    import jax

    folder = FOLDER.expanduser() / _processor()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.parent.chmod(0o700)  # programs are read back as code
    except OSError:
        return None  # a home that cannot be written: compile each time
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", LARGEST)
    return folder


def _processor() -> str:
    """A name for this kind of processor: jax's key does not tell CPUs apart, and a home may be on many machines."""
    about = platform.machine() + platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        about += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        pass
    return f"{platform.machine()}-{hashlib.blake2b(about.encode(), digest_size=4).hexdigest()}"
