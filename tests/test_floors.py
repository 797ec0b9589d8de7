"""The house: a folder imports only from floors below it, and the product has none of what it must not have."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "configs": set(),
    "model": set(),
    "data": set(),
    "train": {"model", "data"},
    "evaluation": {"model", "data"},
    "studies": {"train", "evaluation", "model", "data"},
    "launch": {"configs", "studies", "train", "evaluation", "model", "data"},
}
FORBIDDEN = {"torch", "tensorflow", "pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal", "tarfile"}
CALLS = {"eval", "exec", "unpack_archive", "extractall", "system", "allow_pickle"}  # `allow_pickle=` but for False
READS_ZIP = {"model/ngram_table.py"}  # the headers of an .npz; nothing of it is unpacked to a disk


def imports(path: Path) -> set[str]:
    """Top-level names of all modules that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the floor"
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_only_from_floors_below(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        ours = imports(path) & {*MAY_IMPORT, "tessera", "tests", "bench"}
        assert ours <= MAY_IMPORT[folder] | {folder}, f"{path.relative_to(ROOT)} imports {ours}"


def test_data_does_not_import_jax():
    for path in (ROOT / "data").rglob("*.py"):
        assert not imports(path) & {"jax", "flax"}, path


def test_no_forbidden_imports_and_no_deprecated_names():
    for folder in MAY_IMPORT:
        for path in (ROOT / folder).rglob("*.py"):
            assert not imports(path) & FORBIDDEN, path
            assert "jax.experimental.pjit" not in path.read_text(encoding="utf-8"), path


def calls(path: Path) -> set[str]:
    """Names of all functions and methods that a file calls, and `allow_pickle` where it is given and not False."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            found.add(getattr(node.func, "id", getattr(node.func, "attr", "")))
            given = [one.value for one in node.keywords if one.arg == "allow_pickle"]
            found |= {"allow_pickle" for value in given if not isinstance(value, ast.Constant) or value.value}
    return found


def test_nothing_that_is_read_is_run_or_unpacked():
    for path in [*(path for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py")), ROOT / "tessera.py"]:
        assert not calls(path) & CALLS, f"{path} calls {calls(path) & CALLS}"
        assert "zipfile" not in imports(path) or path.relative_to(ROOT).as_posix() in READS_ZIP, path


def test_files_are_short():
    for folder in MAY_IMPORT:
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path
