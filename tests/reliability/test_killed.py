"""Processes that are killed: the same command again gives the run that nobody disturbed, to the bit."""

from tests.reliability import harness


def test_a_kill_between_saves_changes_nothing(tmp_path):
    """Row 1."""
    folder = harness.write(tmp_path / "one")
    code, said = harness.run(folder, FAULT="between:13:sigkill")
    assert code == -9, said
    code, said = harness.run(folder, FAULT="between:13:sigkill")
    assert code == 0 and "resuming after step 10" in said, said
    harness.assert_same_run(folder / "run", harness.here(folder))
