"""The compilation cache: on by default, below the user's settings, and a second process finds what the first made."""

import os
import subprocess
import sys

import jax
import pytest

from launch import compiled

PROGRAM = """
import jax, jax.numpy as jnp
from launch import compiled
from pathlib import Path
compiled.FOLDER = Path({folder!r})
folder = compiled.keep_compiled()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("/cache_hits") else None)
jax.jit(lambda x: jnp.tanh(x @ x.T).sum())(jnp.ones((4, 5)))
print(folder, len(hits))
"""


def test_a_second_process_reads_what_the_first_compiled(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    answers = []
    for _ in range(2):
        command = [sys.executable, "-c", PROGRAM.format(folder=str(tmp_path / "compiled"))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
        answers.append(done.stdout.split())
    assert answers[0][0] == answers[1][0] and answers[0][0].startswith(str(tmp_path / "compiled"))
    assert int(answers[0][1]) == 0 < int(answers[1][1])
    assert (tmp_path / "compiled").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "setting", [{"JAX_COMPILATION_CACHE_DIR": "/elsewhere"}, {"JAX_ENABLE_COMPILATION_CACHE": "false"}]
)
def test_the_users_settings_rule(setting, tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(compiled, "FOLDER", tmp_path / "compiled")
    before = jax.config.jax_compilation_cache_dir
    assert compiled.keep_compiled() is None
    assert jax.config.jax_compilation_cache_dir == before and not (tmp_path / "compiled").exists()


def test_a_home_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(compiled, "FOLDER", tmp_path / "file" / "compiled")
    assert compiled.keep_compiled() is None
