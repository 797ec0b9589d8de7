"""Stage 2 of a cleaning, of all chunks at once: which documents repeat an earlier one, noted for each chunk.

It reads hashes only. Each chunk's notes name the documents that stay by their ids, so that the next stage, which works
chunk by chunk, has to look at no other chunk.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data.atomic import new_folder
from data.cleaning import duplicates
from data.cleaning.chunks import Chunk
from data.cleaning.stages import EXACT, NEAR, Job, chunk_names

_SEARCH = "search.json"


def find_duplicates(job: Job, tell: Callable[[int, int, int], object]) -> None:
    """Writes FOLDER/.work/repeats, where it is not there yet.

    `tell` hears of the search for near duplicates: documents compared, those that stay, and how many there are.
    """
    settings = job.settings
    if job.repeats.exists() or not (settings.exact_duplicates or settings.near_duplicates):
        return
    chunks = chunk_names(job)
    folders = [job.ruled(chunk) for chunk in chunks]
    counts = [json.loads((folder / "tally.json").read_bytes())["documents_out"] for folder in folders]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    of_N, jaccard_N, crowded = np.full(starts[-1], -1, np.int64), np.full(starts[-1], np.nan, np.float32), 0
    if settings.exact_duplicates and len(of_N):
        of_N = duplicates.equal_texts(np.concatenate([np.load(folder / "keys.npy") for folder in folders]))
    if settings.near_duplicates and len(of_N):
        crowded = _add_near(job, folders, starts, of_N, jaccard_N, tell)
    names = _names(job, chunks, starts, np.unique(of_N[of_N >= 0]))
    with new_folder(job.repeats) as folder:
        for chunk, first, last in zip(chunks, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            rows = np.flatnonzero(of_N[first:last] >= 0).tolist()
            if found := {row: _why(names[int(of_N[first + row])], float(jaccard_N[first + row])) for row in rows}:
                (folder / f"{chunk}.json").write_text(json.dumps(found))
        (folder / _SEARCH).write_text(json.dumps({"crowded": crowded}))


def crowded_documents(job: Job) -> int:
    """See `data.cleaning.duplicates.Duplicates.crowded`."""
    path = job.repeats / _SEARCH
    return json.loads(path.read_bytes())["crowded"] if path.exists() else 0


def _add_near(
    job: Job,
    folders: list[Path],
    starts: np.ndarray,
    of_N: np.ndarray,
    jaccard_N: np.ndarray,
    tell: Callable[[int, int, int], object],
) -> int:
    """Adds near duplicates to the table of equal texts; how many of those that stay stand in full buckets."""
    settings = job.settings
    keys = np.concatenate([np.load(folder / "bands.npy") for folder in folders])
    buckets = duplicates.candidates(keys, of_N >= 0)
    rows = np.flatnonzero((buckets >= 0).any(axis=1))
    signatures = _gathered(job.work / "candidates.bin", folders, starts, rows, settings.permutations)
    near = duplicates.near_duplicates(
        buckets[rows], signatures, settings.near_duplicates, lambda done, kept: tell(done, kept, len(rows))
    )
    gone = near.of_N >= 0
    of_N[rows[gone]], jaccard_N[rows[gone]] = rows[near.of_N[gone]], near.jaccard_N[gone]
    # An earlier document that an equal one named may itself have gone since: name the one that stays.
    again = np.flatnonzero((of_N >= 0) & np.isnan(jaccard_N))
    moved = of_N[of_N[again]] >= 0
    again = again[moved]
    jaccard_N[again], of_N[again] = jaccard_N[of_N[again]], of_N[of_N[again]]
    return near.crowded


def _gathered(path: Path, folders: list[Path], starts: np.ndarray, rows: np.ndarray, permutations: int) -> np.ndarray:
    """uint32 (rows, permutations): the signatures of some documents, in a file, so that memory does not have to do."""
    if not len(rows):
        return np.empty((0, permutations), np.uint32)
    signatures = np.memmap(path, np.uint32, "w+", shape=(len(rows), permutations))
    for folder, start, end in zip(folders, starts[:-1], starts[1:], strict=True):
        first, last = np.searchsorted(rows, [start, end])
        if last > first:
            signatures[first:last] = np.load(folder / "signatures.npy", mmap_mode="r")[rows[first:last] - start]
    return signatures


def _names(job: Job, chunks: list[str], starts: np.ndarray, documents: np.ndarray) -> dict[int, str]:
    """Document -> how a report calls it, for some of them, in order; the ids of a chunk are read once."""
    names = {}
    owners = np.searchsorted(starts, documents, "right") - 1
    for owner, first in zip(*np.unique(owners, return_index=True), strict=True):
        ids = json.loads((job.ruled(chunks[owner]) / "ids.json").read_bytes())
        source = job.sources[Chunk.source_of(chunks[owner])].path
        for document in documents[first : np.searchsorted(owners, owner, "right")].tolist():
            names[document] = f"{ids[document - int(starts[owner])]!r} of {source}"
    return names


def _why(named: str, jaccard: float) -> tuple[str, str, str]:
    """The step that drops a document, the reason, and what it repeats."""
    if np.isnan(jaccard):
        return EXACT, "equal", f"the text of {named}"
    return NEAR, "similar", f"to {named}: estimated Jaccard {jaccard:.3f}"
