"""What processes write, copied from their pipes: to the terminal, and as whole lines into the logs of the run."""

import os
import re
import threading
import time

import pytest

from launch.logs import Logs, Pipe, copy, plain

BAR = b"\rstep 3/9 ---\r\x1b[2Kstep 4/9 \x1b[36m---\x1b[0m\r\x1b[2K"


@pytest.fixture
def run(tmp_path):
    """A run folder that process 0, of id 7, holds."""
    (tmp_path / ".lock").write_text("pid 7 on here")
    return tmp_path


def copied(folder, pieces, holder="pid 7 on", shown=(1, 2), pause=0.0):
    """Copies (process, bytes) as they are written one after the other; closes all pipes at the end."""
    ends = {index: os.pipe() for index in dict(pieces)}
    pipes = [Pipe(index, shown[index], read) for index, (read, _) in ends.items()]
    thread = threading.Thread(target=copy, args=(pipes, Logs(folder, holder, "tessera train", len(pipes))))
    thread.start()
    for index, data in pieces:
        os.write(ends[index][1], data)
        time.sleep(pause)
    for _, write in ends.values():
        os.close(write)
    thread.join(10)
    assert not thread.is_alive()
    for read, _ in ends.values():
        os.close(read)


def kept(folder, index):
    return (folder / "logs" / f"process_{index}.log").read_text().splitlines()


def test_lines_are_whole_and_those_of_the_others_have_their_number(run, capfd):
    copied(run, [(0, b"one "), (1, b"broken: a"), (0, b"line\nlast"), (1, b"b\n")])
    shown = capfd.readouterr()
    assert shown.out == "one line\nlast\n" and shown.err == "[process 1] broken: ab\n"
    assert kept(run, 0)[1:] == ["one line", "last"] and kept(run, 1)[1:] == ["broken: ab"]
    assert all(kept(run, index)[0].endswith("tessera train") for index in range(2))


def test_a_line_of_another_process_waits_for_the_end_of_a_line_but_not_of_a_bar(run, capfd):
    copied(run, [(0, b"one "), (1, b"two\n"), (0, b"line\n")], shown=(1, 1), pause=0.2)
    assert capfd.readouterr().out == "one line\n[process 1] two\n"
    copied(run, [(0, b"bar\r"), (1, b"two\n"), *[(0, b"bar\r")] * 8], shown=(1, 1), pause=0.2)
    assert re.search(r"two\n(bar\r)+$", capfd.readouterr().out)


def test_a_second_start_is_appended(run):
    for _ in range(2):
        copied(run, [(0, b"step 1\n")])
    assert [line.startswith("---") for line in kept(run, 0)] == [True, False] * 2


def test_a_bar_is_drawn_and_not_kept(run, capfd):
    copied(run, [(0, BAR), (0, b"\x1b[33mwarning: x\x1b[0m\nstep 4/9 ---\r")])
    assert capfd.readouterr().out.encode().startswith(BAR)
    assert kept(run, 0)[1:] == ["warning: x", "step 4/9 ---"]
    assert plain(b"a table   1 \r") == b"a table   1"


@pytest.mark.parametrize("holder", ["pid 8 on", "pid 77 on"])
def test_the_folder_of_another_run_gets_no_logs(run, capfd, holder):
    copied(run, [(0, b"tessera: the folder is in use\n")], holder)
    assert capfd.readouterr().out == "tessera: the folder is in use\n" and not (run / "logs").exists()


def test_a_folder_that_cannot_be_written_stops_nothing(run, capfd):
    (run / "logs").write_text("a file")
    copied(run, [(0, b"step 1\n"), (0, b"step 2\n")])
    assert capfd.readouterr().out == "step 1\nstep 2\n"
