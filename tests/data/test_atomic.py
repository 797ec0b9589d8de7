import multiprocessing
import os
import time

import pytest

from data.atomic import LEFTOVER_AGE, locked, new_folder, remove_leftovers, write_file


def test_a_folder_appears_only_when_it_is_whole(tmp_path):
    final = tmp_path / "deep" / "final"
    with new_folder(final) as temporary:
        (temporary / "a").write_text("a")
        assert not final.exists()
    assert (final / "a").read_text() == "a"
    assert [entry.name for entry in final.parent.iterdir()] == ["final"]


def test_an_error_leaves_no_folder(tmp_path):
    with pytest.raises(RuntimeError), new_folder(tmp_path / "final") as temporary:
        (temporary / "a").touch()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_writers_wins(tmp_path):
    final = tmp_path / "final"
    with new_folder(final) as slow:
        (slow / "who").write_text("slow")
        with new_folder(final) as fast:
            (fast / "who").write_text("fast")
    assert (final / "who").read_text() == "fast"
    assert list(tmp_path.iterdir()) == [final]


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "final").write_text("a file")
    with pytest.raises(OSError), new_folder(tmp_path / "final"):
        pass
    assert (tmp_path / "final").read_text() == "a file"


def test_write_file_replaces_and_leaves_nothing_beside(tmp_path):
    for content in (b"one", b"two"):
        write_file(tmp_path / "a", content)
        assert (tmp_path / "a").read_bytes() == content
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def _make(final, barrier, events):
    barrier.wait()
    with locked(final, lambda line: events.put(("waits", line))):
        if not final.exists():
            events.put(("makes", os.getpid()))
            time.sleep(0.3)
            final.mkdir()


def test_one_process_makes_it_and_the_others_wait(tmp_path):
    context, final = multiprocessing.get_context("spawn"), tmp_path / "final"
    barrier, events = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_make, args=(final, barrier, events)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    seen = [events.get(timeout=5) for _ in range(3)]
    ((_, maker),) = (event for event in seen if event[0] == "makes")
    waiting = [line for kind, line in seen if kind == "waits"]
    assert len(waiting) == 2 and any(f"waiting for pid {maker} on " in line and str(final) in line for line in waiting)
    assert list(tmp_path.iterdir()) == [final]  # the lock is gone too


def test_the_lock_of_a_failure_stays_free(tmp_path):
    for _ in range(2):
        with pytest.raises(RuntimeError), locked(tmp_path / "final", lambda line: pytest.fail(line)):
            raise RuntimeError


def test_a_lock_whose_file_was_removed_keeps_nobody_out_and_is_not_trusted(tmp_path):
    path, lines = tmp_path / ".final.lock", []
    context = multiprocessing.get_context("spawn")
    started, go = context.Event(), context.Event()
    owner = context.Process(target=_hold_and_remove, args=(tmp_path / "final", started, go))
    owner.start()
    assert started.wait(60)

    def waiting(line):  # we now have the old file open: its owner removes it and ends
        lines.append(line)
        go.set()

    with locked(tmp_path / "final", waiting):
        assert path.read_text().startswith(f"pid {os.getpid()} ")  # a new file, which others see
    owner.join(60)
    assert len(lines) == 1


def _hold_and_remove(final, started, go):
    with locked(final, print):
        started.set()
        go.wait(60)
        final.with_name(".final.lock").unlink()


def test_leftovers_of_killed_processes_go_after_two_weeks(tmp_path):
    old = time.time() - LEFTOVER_AGE - 60
    for name in (".a.1.ff.tmp", ".b.building", ".young.building", ".held.building", "store"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    for name in (".b.lock", ".lonely.lock", ".young.lock", ".held.lock", ".c.2.ff.tmp"):
        (tmp_path / name).touch()
    for entry in tmp_path.iterdir():
        if "young" not in entry.name:
            os.utime(entry, (old, old))
    with locked(tmp_path / "held", print):
        os.utime(tmp_path / ".held.lock", (old, old))
        remove_leftovers(tmp_path)
    left = {".young.building", ".young.lock", ".held.building", ".held.lock", "store"}
    assert {entry.name for entry in tmp_path.iterdir()} == left
