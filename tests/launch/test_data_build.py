import os
from pathlib import Path

import pytest

from data.store.store import open_store
from data.tokenizers.tokenizer import ByteTokenizer
from launch.cli import BAD_DATA, OK, USAGE, main

CONFIG = """
from ml_collections import ConfigDict

from configs import defaults


def get_config():
    config = defaults.get_config()
    config.data.path = ""
    config.data.mixture = ConfigDict({{name: defaults.source("{folder}/" + name + ".txt") for name in ("one", "two")}})
    config.data.tokenizer = "byte"
    config.data.held_out_by = "tail"
    config.data.held_out = 0.25
    config.data.cache_dir = "{folder}/cache"
    return config
"""


@pytest.fixture
def config(tmp_path):
    (tmp_path / "one.txt").write_text("abcd" * 250_000)
    (tmp_path / "two.txt").write_text("é" * 100)
    (tmp_path / "config.py").write_text(CONFIG.format(folder=tmp_path))
    return tmp_path / "config.py"


def test_build_prints_a_line_for_each_store(config, capsys):
    assert main(["data", "build", f"--config={config}"]) == OK
    printed = capsys.readouterr()
    lines = [line.split() for line in printed.out.splitlines()]
    assert lines[0] == ["part", "split", "documents", "tokens", "MB", "bytes/token", "folder"]
    assert [line[:6] for line in lines[1:5]] == [
        ["one", "train", "1", "750,001", "0.8", "1.00"],
        ["one", "held_out", "1", "250,001", "0.2", "1.00"],
        ["two", "train", "1", "151", "0.0", "0.99"],
        ["two", "held_out", "1", "51", "0.0", "0.98"],
    ]
    assert len({Path(line[6]).parent for line in lines[1:5]}) == 2
    for line in lines[1:5]:
        store = open_store(line[6])
        assert store.manifest["split"] == line[1] and f"{store.num_tokens:,}" == line[3]
    assert lines[5] == ["tokenizer:", "byte,", "257", "ids,", "fingerprint", ByteTokenizer().fingerprint]
    assert "tokenised in" in printed.err and len(lines) == 6


def test_verify_reads_what_did_not_change(config, capsys):
    assert main(["data", "build", f"--config={config}", "--verify"]) == OK
    line = capsys.readouterr().out.splitlines()[1].split()
    file = Path(line[6]) / "tokens.bin"
    content, times = bytearray(file.read_bytes()), file.stat()
    content[7] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert main(["data", "build", f"--config={config}"]) == OK
    capsys.readouterr()
    assert main(["data", "build", f"--config={config}", "--verify"]) == BAD_DATA
    assert f"{file} was changed" in capsys.readouterr().err


def test_arguments_that_mean_nothing_are_refused(config, capsys):
    assert main(["data", "build", f"--config={config}", "more"]) == USAGE
    assert "takes no 'more'" in capsys.readouterr().err
    assert main(["data", "build"]) == USAGE
