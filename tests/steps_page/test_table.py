"""The table of the two pages' promises: complete, and each test that it names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TABLE = HERE.parents[1] / "docs" / "steps-page.md"


def rows() -> list[list[str]]:
    """The cells of each row of the document's tables."""
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("|") and not line.startswith("|--")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def links_in(text: str) -> list[tuple[str, str]]:
    """File and name of each test that a text links to."""
    return re.findall(r"\[`(test_\w+)`\]\(\.\./(tests/[\w/]+\.py)\)", text)


def test_every_row_of_the_steps_page_is_there_once_and_passing_or_later() -> None:
    numbered = [row for row in rows() if row[0].isdecimal()]
    assert [int(row[0]) for row in numbered] == list(range(1, 38))
    for row in numbered:
        assert row[-1] in ("passing", "passing; pods later", "later"), row
        assert links_in(row[2]) or row[-1] == "later", row
        for name, _ in links_in(row[2]):
            assert name.startswith(f"test_row_{int(row[0]):02}_"), row


def test_every_test_in_the_table_exists() -> None:
    found = links_in(TABLE.read_text())
    assert len(found) > 60
    for name, path in found:
        assert f"def {name}(" in (HERE.parents[1] / path).read_text(), f"{path} has no {name}"


@pytest.mark.parametrize("name", ["test_rows_01_to_19.py", "test_rows_20_to_37.py", "test_cache_probes.py"])
def test_every_test_is_in_the_table(name: str) -> None:
    listed = {test for test, path in links_in(TABLE.read_text()) if path.endswith(f"/{name}")}
    assert set(re.findall(r"^def (test_\w+)\(", (HERE / name).read_text(), re.MULTILINE)) == listed
