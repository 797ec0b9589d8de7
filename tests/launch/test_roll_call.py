"""Processes that say hello, here as threads."""

import socket
import threading
from typing import Any

import pytest

from launch.roll_call import roll_call


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def called(*processes, timeout=1.0, hosts=(), port=None):
    """What each of some (index, count) hears: a roster, or an error."""
    heard, coordinator = list[Any](processes), f"127.0.0.1:{port or free_port()}"

    def call(place, index, count):
        try:
            heard[place] = roll_call(coordinator, index, count, timeout=timeout, hosts=hosts)
        except (OSError, ValueError) as error:
            heard[place] = error

    threads = [threading.Thread(target=call, args=(place, *one)) for place, one in enumerate(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return heard


def test_all_hear_the_same_roster_and_the_port_is_free_again():
    port = free_port()
    for _ in range(2):
        heard = called((2, 3), (0, 3), (1, 3), timeout=30, port=port)
        assert heard[0] == heard[1] == heard[2]
        assert [one.index for one in heard[0]] == [0, 1, 2] and heard[0][1].host == socket.gethostname()


def test_the_missing_are_named_by_all():
    for error in called((0, 4), (2, 4), hosts=("a", "b", "c", "d")):
        assert isinstance(error, TimeoutError)
        assert "2 of 4 processes did not come to 127.0.0.1:" in str(error)
        assert "within 1 s; missing: 1 (host b), 3 (host d); there: process 0 (host" in str(error)


def test_process_0_is_missed():
    (error,) = called((1, 2), timeout=0.5)
    assert isinstance(error, TimeoutError) and "process 0 is missing: process 1 (host" in str(error)


@pytest.mark.parametrize(
    ("processes", "says"),
    [
        (((0, 3), (1, 2)), "is one of 2 processes"),
        (((0, 3), (1, 3), (1, 3)), "each needs an index of its own"),
        (((0, 2), (5, 2)), "each needs an index of its own"),
    ],
)
def test_processes_that_contradict_each_other(processes, says):
    heard = called(*processes, timeout=10)
    assert isinstance(heard[0], ValueError) and says in str(heard[0])
    assert any(isinstance(other, ValueError) and says in str(other) for other in heard[1:])


def test_a_taken_port_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"cannot listen at 127.0.0.1:{port}.*in use"):
            roll_call(f"127.0.0.1:{port}", 0, 2, timeout=1)


def test_strangers_are_not_counted():
    port, heard = free_port(), []
    thread = threading.Thread(target=lambda: heard.extend(called((0, 2), (1, 2), timeout=20, port=port)))
    thread.start()
    for line in (b"GET / HTTP/1.1\n", b'{"index": "1"}\n', b"[]\n", b""):
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:
                stranger.sendall(line)
        except OSError:
            pass  # before or after the roll call
    thread.join()
    assert len(heard) == 2 and heard[0] == heard[1] and len(heard[0]) == 2
