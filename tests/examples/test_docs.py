"""The code in the documents works: each document's Python blocks are one program, and print what stands below them."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

from treadle._core.machine import CALLS

DOCUMENTS = ("README.md", "docs/tutorial.md", "docs/executors.md")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = "--- end of block {} ---"


def program(text: str) -> tuple[str, dict[int, str]]:
    """The Python blocks, on the lines that they have in the document; and what some of them should print."""
    lines = [""] * (text.count("\n") + 1)
    expected: dict[int, str] = {}
    number = -1
    previous = ""
    for fence in FENCE.finditer(text):
        language, body = fence.groups()
        if language == "python":
            number += 1
            first = text[: fence.start(2)].count("\n")
            block = body.splitlines()
            lines[first : first + len(block) + 1] = [*block, f"print({MARK.format(number)!r})"]
        elif language == "text" and previous == "python":
            expected[number] = body
        previous = language
    return "\n".join(lines), expected


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_code_of_a_document_runs_and_prints_what_it_says(
    document: str, root: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    source, expected = program((root / document).read_text())
    assert MARK.format(0) in source
    script = tmp_path / f"{Path(document).stem.lower()}.py"
    script.write_text(source)
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    rest = done.stdout
    for number in range(source.count("--- end of block")):
        printed, mark, rest = rest.partition(MARK.format(number) + "\n")
        assert mark
        if number in expected:
            flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            said = f"block {number} printed:\n{printed}\nand the document says:\n{expected[number]}"
            assert doctest.OutputChecker().check_output(expected[number], printed, flags), said


@pytest.mark.parametrize("document", [*DOCUMENTS, "docs/life-of-a-call.md", "docs/glossary.md", "docs/design.md"])
def test_links_between_documents_lead_somewhere(document: str, root: Path) -> None:
    text = (root / document).read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    missing = [link for link in links if not ((root / document).parent / link).exists()]
    assert not missing


def test_the_picture_of_a_call_s_states_is_the_table_that_decides(root: Path) -> None:
    text = (root / "docs/life-of-a-call.md").read_text()
    drawn = re.findall(r"^    (\w+) --> (\w+): (\w+)$", text, re.MULTILINE)
    assert sorted(drawn) == sorted((a.name, b.name, trigger.name) for (a, trigger), b in CALLS.items())
