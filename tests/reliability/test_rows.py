"""Every fault that docs/reliability.md promises something for is made in a test, and the page says in which."""

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = set(range(1, 34))


def rows_of_tests() -> dict[int, set[str]]:
    """Row -> files with a test whose docstring names it: "Row 7.", "Rows 1, 2 and 20: …"."""
    found = defaultdict(set)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for named in re.findall(r"\b[Rr]ows? (\d+(?:, \d+)*(?: and \d+)?)", ast.get_docstring(node) or ""):
                    for row in re.findall(r"\d+", named):
                        found[int(row)].add(path.relative_to(ROOT / "tests").as_posix())
    return found


def test_every_row_has_a_test_and_the_page_names_it():
    found = rows_of_tests()
    assert ROWS - found.keys() == set()
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    table = re.findall(r"\n\| (\d+) \| [^|]+ \| [^|]+ \| ([^|]+) \|", page)
    told = {int(row): set(re.findall(r"`(\S+\.py)`", tests)) for row, tests in table}
    assert told == {row: found[row] for row in ROWS}
