"""`tessera generate` on a tiny run: what it prints, and what it says when it cannot."""

import re

import pytest

import tessera
from launch import train
from tests import tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of 20 steps."""
    folder = tmp_path_factory.mktemp("generate")
    config = tiny.config(folder)
    config.checkpoint.every_steps = 10
    assert train.run(config) == train.DONE
    return folder / "run"


@pytest.fixture
def generate(run, capsys):
    """Runs the command with `--run`: exit code, stdout, stderr."""

    def command(*arguments):
        code = tessera.main(["generate", f"--run={run}", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def samples(out):
    """(heading, text) of every sample in the output."""
    parts = re.split(r"^--- (sample .*)\n", out, flags=re.MULTILINE)
    assert parts[0] == ""
    return list(zip(parts[1::2], parts[2::2], strict=True))


def test_one_prompt_is_printed_with_its_continuation(generate, run):
    code, out, err = generate("--prompt=abc", "--max_tokens=200")
    assert code == 0 and err == ""
    # The defaults of the command line are temperature 0.8 and seed 0.
    lm = tessera.load(run)
    assert out == "abc" + lm.generate("abc", max_tokens=200, temperature=0.8, seed=0) + "\n"
    assert out != "abc" + lm.generate("abc", max_tokens=200, temperature=1.0, seed=0) + "\n"


def test_the_text_streams(generate, monkeypatch):
    """What is printed comes in pieces, each flushed: first the prompt, then some tokens at a time."""
    pieces = []
    monkeypatch.setattr("builtins.print", lambda *a, **k: pieces.append((*a, k.get("flush", False))))
    assert generate("--prompt=abc", "--max_tokens=28", "--temperature=0")[0] == 0
    assert pieces[0] == ("abc", True) and len([text for text, *flush in pieces[1:-1] if text and flush == [True]]) == 2


def test_options_reach_the_network(generate, run):
    """Temperature 0 and --top_k=1 agree, a later step of the run does not."""
    lm = tessera.load(run)
    greedy = generate("--prompt=ab", "--max_tokens=20", "--temperature=0")[1]
    assert greedy == "ab" + lm.generate("ab", max_tokens=20, temperature=0.0) + "\n"
    assert generate("--prompt=ab", "--max_tokens=20", "--top_k=1")[1] == greedy
    assert generate("--prompt=ab", "--max_tokens=20", "--step=10")[1] != generate("--prompt=ab", "--max_tokens=20")[1]


def test_the_same_seed_says_the_same(generate):
    first = generate("--prompt=ab", "--max_tokens=20", "--seed=5")
    assert generate("--prompt=ab", "--max_tokens=20", "--seed=5") == first
    assert generate("--prompt=ab", "--max_tokens=20", "--seed=6") != first


def test_samples_count_up_from_the_seed(generate):
    code, out, err = generate("--prompt=ab", "--prompt=cde", "--num_samples=2", "--max_tokens=12", "--seed=7")
    found = samples(out)
    assert code == 0 and err == ""
    assert [heading for heading, _ in found] == [f"sample {n} of 4 (seed {7 + (n - 1) % 2})" for n in (1, 2, 3, 4)]
    assert [text[:3] for _, text in found[2:]] == ["cde", "cde"] and all(text.startswith("ab") for _, text in found[:2])
    assert len({text for _, text in found}) == 4
    # A sample is what its prompt and seed give alone.
    alone = generate("--prompt=cde", "--max_tokens=12", "--seed=8")[1]
    assert found[3][1].rstrip("\n") == alone.rstrip("\n")


def test_prompts_come_from_a_file(generate, tmp_path):
    """One a line; empty lines are none; those of --prompt come first."""
    file = tmp_path / "prompts.txt"
    file.write_text("cd\n\nef gh\n", encoding="utf-8")
    code, out, _ = generate("--prompt=ab", f"--prompts_file={file}", "--max_tokens=4")
    assert code == 0
    for (_, text), prompt in zip(samples(out), ("ab", "cd", "ef gh"), strict=True):
        assert text.startswith(prompt)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--prompt=a", "--top_k=-1"], 78, "top_k is -1: use 0 (off) to 257, the vocabulary"),
        (["--prompt=a", "--top_k=300"], 78, "top_k is 300: use 0 (off) to 257, the vocabulary"),
        (["--prompt=a", "--temperature=-0.5"], 78, "temperature is -0.5"),
        (["--prompt=a", "--max_tokens=0"], 78, "max_tokens is 0: it must be at least 1"),
        (["--prompt=a", "--num_samples=0"], 2, "--num_samples is 0: it must be at least 1"),
        (
            ["--prompt=" + "a" * 40],
            78,
            "prompt 0 has 40 tokens, the context has 32: shorten it by 8 tokens",
        ),
        (["--prompt=a", "--step=3"], 65, "no checkpoint of step 3"),
        ([], 78, "no prompt: give --prompt=TEXT or --prompts_file=FILE"),
        (["--prompts_file=/no/such/prompts.txt"], 65, "/no/such/prompts.txt"),
        (["--prompt=a", "--max_tokens=many"], 2, "max_tokens"),
    ],
)
def test_mistakes_get_a_clear_error(generate, arguments, code, says):
    got, out, err = generate(*arguments)
    assert got == code and err.startswith("tessera: ") and says in err and "Traceback" not in err
    assert out == ""


def test_a_prompts_file_that_is_no_text_is_refused(generate, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"abc\xff\n")
    code, _, err = generate(f"--prompts_file={file}")
    assert code == 65 and "is not UTF-8 at byte 3" in err
    file.write_text("\n\n")
    code, _, err = generate(f"--prompts_file={file}")
    assert code == 78 and "no prompt" in err
