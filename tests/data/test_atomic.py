import pytest

from data.atomic import new_folder, write_file


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
