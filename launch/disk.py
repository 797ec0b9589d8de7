"""A full disk: told from other errors, and answered with what is free and what to do."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from train.console import size
from train.restore import finished_steps

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def answered(folder: Path) -> Iterator[None]:
    """Turns an error of its body that comes from a full disk into one that says where, and how the run goes on.

    Raises:
        OSError: nothing could be written to the run folder.
    """
    try:
        yield
    except Exception as error:
        if (why := _shortage(error)) is None:
            raise
        disk, saved = shutil.disk_usage(folder), finished_steps(folder / "checkpoints")
        raise OSError(
            f"run folder {folder.resolve()}: {why.lower()}, {size(disk.free)} of {size(disk.total)} are free. Make "
            "room, or keep fewer checkpoints (--config.checkpoint.keep_last=1); then the same command goes on "
            + (f"after step {saved[-1]}, which is whole" if saved else "from step 0: no checkpoint was finished")
        ) from error


def _shortage(error: BaseException | None) -> str | None:
    """The words of the system for a full disk, where that is the reason of an error or of one behind it."""
    while error is not None:
        for number in FULL:
            # The library that writes checkpoints says it in a text only.
            if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
                return os.strerror(number)
        error = error.__cause__ or error.__context__
    return None
