"""How the C library keeps memory, for programs on a CPU."""

import ctypes
import sys
from pathlib import Path

TPU = ("/dev/accel0", "/dev/vfio/0")
# Names and numbers of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def accelerated() -> bool:
    """Whether this machine has a GPU or TPU, so that large arrays do not live in the process's own memory."""
    return has_tpu() or any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/kfd"))


def has_tpu() -> bool:
    """Whether there is a TPU chip in this machine."""
    return any(Path(device).exists() for device in TPU)


def keep_memory() -> bool:
    """Tells glibc to keep freed memory; call it before jax is imported. False where there is no glibc.

    XLA allocates the temporaries of a step anew each time. glibc gives blocks of that size back to the system, so that
    every step pays for hundreds of thousands of page faults (measured: `docs/log.md`). One arena without mmap and
    without trimming serves them from memory that is already there.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1))
    return all(libc.mallopt(name, value) == 1 for name, value in settings)
