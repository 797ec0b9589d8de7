"""What a run folder says of its run."""

import pytest

from data.tokenizers.tokenizer import ByteTokenizer
from launch.records import write_run
from train.records import RunError


@pytest.mark.parametrize(("text", "says"), [("[" * 100_000, "is no JSON"), ("{}", "must hold a list of starts")])
def test_an_environment_that_is_broken_is_a_clear_error(tmp_path, text, says):
    (tmp_path / "environment.json").write_text(text)
    with pytest.raises(RunError, match=says):
        write_run(tmp_path, {}, ByteTokenizer())
