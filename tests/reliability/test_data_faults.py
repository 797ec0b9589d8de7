"""Row 22: a data worker dies, a record is corrupt: an error that names it, soon; what is whole again goes on."""

import pytest

from data.corpus import prepare
from data.errors import DataError
from launch.experiment import read
from tests import tiny
from tests.reliability import harness


@pytest.mark.slow
def test_a_data_worker_that_is_killed_ends_the_run_which_goes_on(tmp_path):
    """Row 22."""
    folder = harness.write(tmp_path / "one", {"data.workers": 2})
    code, said = harness.run(folder, FAULT="step:7:killworker")
    assert code == 75, said
    assert "a process that prepares batches (data.workers) has died: pid " in said and "exit code -9" in said, said
    code, said = harness.run(folder)
    assert code == 0 and "resuming after step" in said, said
    harness.assert_same_run(folder / "run", harness.here(folder, **{"data.workers": 0}))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", b"caf\xe9 au lait", r"a\.txt is not UTF-8: byte 0xe9 at offset 3"),
        ("a.jsonl", b'{"text": "one"}\n{"text": "caf\xe9"}\n', r"a\.jsonl:2 is not UTF-8: byte 0xe9 at offset 29"),
        ("a.csv", b"text\none\ncaf\xe9\n", r"a\.csv:3 is not UTF-8: byte 0xe9 at offset 12"),
        ("a.jsonl", b'{"text": "one"}\n{"text": "tw', r"a\.jsonl:2: not JSON \(Unterminated string"),
    ],
)
def test_a_source_with_a_broken_record_names_file_and_place(name, content, says, tmp_path):
    """Row 22."""
    (tmp_path / name).write_bytes(content)
    config = tiny.config(tmp_path)
    config.data.path = str(tmp_path / name)
    with pytest.raises(DataError, match=says):
        prepare(read(config).data)
