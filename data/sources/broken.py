"""Records that cannot be read: an error, or, as many as the source allows, counted and left out."""

from typing import Any

from data.errors import DataError

SHOWN = 5  # of the records that were left out, how many are named


class Broken:
    """The broken records of one reading of a source: `with broken:` goes around what makes one document.

    Raises the DataError itself where none is allowed, and one with the numbers for the first record too many.
    """

    def __init__(self, allowed: int):
        self._allowed = allowed
        self.count = 0
        self.first: list[str] = []  # what the first of them say: file, line and fault

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
        if not self._allowed or not isinstance(error, DataError):
            return False
        if self.count == self._allowed:
            earlier = "\n  ".join(self.first)
            raise DataError(
                f"{error}: that is one broken record more than the {self._allowed:,} of data.skip_broken: mend them, "
                f"or raise it. The first were\n  {earlier}"
            ) from error
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(str(error))
        return True

    def recorded(self) -> dict[str, Any]:
        """For manifests; nothing where none is allowed."""
        return {"num_skipped": self.count, "first_skipped": self.first} if self._allowed else {}


def told(path: str, recorded: dict[str, Any]) -> list[str]:
    """What there is to say of the source `path`, of which `Broken.recorded` was kept."""
    if not recorded.get("num_skipped"):
        return []
    head = f"{path}: {recorded['num_skipped']:,} broken record(s) skipped, as data.skip_broken allows; the first:"
    return [head, *(f"  {line}" for line in recorded["first_skipped"])]
