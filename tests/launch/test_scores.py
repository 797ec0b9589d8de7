"""The commands that a finished run proposes are those that a shell can run."""

import subprocess

import pytest

from launch.scores import in_shell


@pytest.mark.parametrize(
    "text", ["def ", "\n", "it's", 'say "a"', 'it\'s "b"', "a\\n", "$HOME `id` !!", "naïve 日本", "a\tb\x07", ""]
)
def test_a_prompt_reaches_the_command_as_it_is(text):
    found = subprocess.run(["bash", "-c", f"printf %s {in_shell(text)}"], capture_output=True, check=True)
    assert found.stdout.decode() == text


def test_a_plain_prompt_is_shown_in_double_quotes():
    assert in_shell("def ") == '"def "' and in_shell("\n") == r"$'\n'"
