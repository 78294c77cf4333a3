"""Reading source: the text is that of the loaded code, or there is none."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import linecache
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from treadle._core.reading import ModuleText
from treadle._runtime.code.source import ModuleSource


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "fp_source.py"
    sys.modules.pop("fp_source", None)


def load(path: Path, text: str, *, age_s: float = 1e6) -> ModuleType:
    write(path, text, age_s=age_s)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(path: Path, text: str, *, age_s: float = -100.0) -> None:
    path.write_text(text)
    written = time.time() - age_s
    os.utime(path, (written, written))


TEXT = '''
def deco(f):
    return f


@deco
def work(x):
    """Doc."""
    return x + 1


class Shape:
    sides = 3

    @deco
    def area(self):
        text = """
  not indented
"""
        return text

    class Inner:
        def deep(self):
            return lambda: self
'''


def test_the_text_is_the_definition_with_its_decorators_as_it_stands(path: Path) -> None:
    module, reader = load(path, TEXT), ModuleSource()
    assert reader.source(module.work) == '@deco\ndef work(x):\n    """Doc."""\n    return x + 1\n'
    area = reader.source(module.Shape.area)
    assert area is not None
    assert area.startswith("    @deco\n    def area(self):")
    assert '\n  not indented\n"""\n' in area
    assert reader.source(module.Shape.Inner.deep) is not None
    shape = reader.source(module.Shape)
    assert shape is not None
    assert shape.startswith("class Shape:\n    sides = 3\n")
    assert shape.endswith("return lambda: self\n")
    assert reader.source(module.Shape().Inner().deep()) == "lambda: self"


@pytest.mark.parametrize(
    "edited",
    [TEXT.replace("x + 1", "x + 2"), TEXT.replace("x + 1", "x - 1"), "", "def work(", TEXT.replace("work", "w")],
)
def test_a_function_whose_file_was_edited_after_its_import_has_no_source(path: Path, edited: str) -> None:
    module = load(path, TEXT)
    write(path, edited)
    assert ModuleSource().source(module.work) is None


def test_a_function_that_only_moved_in_its_file_keeps_its_source(path: Path) -> None:
    module = load(path, TEXT)
    write(path, "# a new comment\nNEW = 1\n\n" + TEXT.replace('"""Doc."""', '"""Other words."""'))
    found = ModuleSource().source(module.work)
    assert found is not None
    assert "x + 1" in found


def test_source_once_read_outlives_an_edit_of_the_file(path: Path) -> None:
    module, reader = load(path, TEXT), ModuleSource()
    before = reader.source(module.work)
    write(path, TEXT.replace("x + 1", "x + 2"))
    assert before == reader.source(module.work)
    assert before is not None


def test_a_class_whose_file_is_newer_than_the_process_has_no_source(path: Path) -> None:
    module = load(path, TEXT)
    write(path, TEXT.replace("sides = 3", "sides = 4"))
    assert ModuleSource().source(module.Shape) is None


def test_of_two_functions_of_one_name_each_has_its_own_text(path: Path) -> None:
    module = load(
        path, "import sys\ndef make():\n    def f(): return 1\n    yield f\n    def f(): return 2\n    yield f\n"
    )
    reader = ModuleSource()
    assert [(reader.source(fn) or "").strip() for fn in module.make()] == ["def f(): return 1", "def f(): return 2"]


@pytest.mark.parametrize(
    "body",
    [
        "x",
        "1",
        "(x + 1)",
        "[i for i in x]",
        "(i for i in x)",
        "{**x}",
        "lambda y: x",
        "x if x else 2",
        "not x",
        "x and 2",
        "x[0].a(1, *x)",
        "f'{x} and {x!r}'",
        "(yield x)",
        "(y := x)",
        "x < 1 < 2",
        "(\n  x\n  + 1\n)",
        "-1",
        "'é' + x",
        "[x, (lambda: x)()]",
    ],
)
def test_of_several_lambdas_on_one_line_each_has_its_own_text(path: Path, body: str) -> None:
    module = load(path, f"def make():\n    'é'; return (lambda x: {body}), (lambda x: x * 9), lambda *x: 7\n")
    reader = ModuleSource()
    first, second, third = (reader.source(item) for item in module.make())
    assert first is None or first.replace("(", "").startswith("lambda x: " + body.replace("(", "")[:3])
    assert first is not None
    assert (second, third) == ("lambda x: x * 9", "lambda *x: 7")


def test_a_function_of_a_notebook_cell_has_source_and_one_of_exec_has_none() -> None:
    cell, name = "def work(x):\n    return x\n\nclass A:\n    size = 1\n    def f(self): return 1\n", "<cell-1>"
    linecache.cache[name] = (len(cell), None, cell.splitlines(keepends=True), name)
    reader = ModuleSource()
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(cell, name, "exec"), space)
    assert reader.source(space["work"]) == "def work(x):\n    return x\n"
    assert (reader.source(space["A"]) or "").startswith("class A:\n    size = 1")
    exec(cell, space)
    assert reader.source(space["work"]) is None


@pytest.mark.parametrize(
    "around",
    [
        "if 0:\n    pass\nelse:\n    {0}",
        "try:\n    pass\nfinally:\n    {0}",
        "X = '''\ndef no(:\n'''\nif X:\n    Y = '''\nat the margin\n'''\n    {0}",
        "@(\n    lambda f: f\n)\n@(lambda f: f)\nclass A:\n    {0}\nwork = A.work",
        "class A:\n    class B:\n        pass\n# at the margin\n    {0}\nwork = A.work",
        "X = [\n    1,\n]\nif X:\n    {0}\nwork.__name__ = 'other'",
    ],
)
def test_a_definition_is_found_wherever_it_stands(path: Path, around: str) -> None:
    module = load(path, "import sys\n" + around.format("def work(x): return x\n"))
    assert ModuleSource().source(module.work) == "    def work(x): return x\n"
    write(path, "import os\n\n\n" + around.format("def work(x): return x\n"))
    assert ModuleSource().source(module.work) == "    def work(x): return x\n"


def test_of_two_classes_of_one_name_each_has_its_own_text(path: Path) -> None:
    text = "class A:\n    x = 1\n    def f(self): return 1\nB = A\nclass A:\n    x = 2\n    def f(self): return 2\n"
    module, reader = load(path, text), ModuleSource()
    assert [(reader.source(cls) or "")[13:18] for cls in (module.B, module.A)] == ["x = 1", "x = 2"]


def test_future_imports_of_the_file_are_heeded(path: Path) -> None:
    module = load(
        path, "from __future__ import annotations\n\ndef work(x: int) -> int:\n    y: str = x\n    return y\n"
    )
    assert ModuleSource().source(module.work) is not None


def test_what_is_installed_is_no_part_of_the_project(path: Path, tmp_path: Path) -> None:
    reader = ModuleSource()
    load(path, "")
    assert reader.is_project("fp_source")
    assert reader.is_project("__main__")
    assert reader.is_project("a_module_made_by_exec")
    for name in (
        "json",
        "json.decoder",
        "sys",
        "builtins",
        "pytest",
        "_pytest.fixtures",
        "treadle._core.closure",
        "os.path",
    ):
        assert not reader.is_project(name), name
    assert "mailbox" not in sys.modules
    assert not reader.is_project("mailbox")
    folder = tmp_path / "venv" / "lib" / "site-packages"
    folder.mkdir(parents=True)
    load(folder / "fp_source.py", "")
    assert not ModuleSource().is_project("fp_source")


def test_a_module_is_found_without_being_imported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = path.parent / "fp_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError\n")
    (folder / "part.py").write_text("X = 1\n")
    monkeypatch.syspath_prepend(str(path.parent))
    reader = ModuleSource()
    assert reader.is_project("fp_package.part")
    assert reader.find_module("fp_package.part") == ModuleText("X = 1\n", "fp_package")
    assert reader.find_module("fp_package") == ModuleText("raise RuntimeError\n", "fp_package")
    assert reader.find_module("fp_package.none") is None
    assert reader.find_module("fp_no_such_module") is None
    assert "fp_package" not in sys.modules


def test_a_module_whose_file_is_newer_than_the_process_is_handed_out_itself(path: Path) -> None:
    module = load(path, "X = 1\n")
    reader = ModuleSource()
    assert reader.find_module("fp_source") == ModuleText("X = 1\n", "")
    write(path, "X = 2\n")
    assert reader.find_module("fp_source") is module
    assert ModuleSource().find_module("fp_source") is module


def test_a_module_that_was_not_loaded_when_first_asked_for_keeps_its_text_when_it_is(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, "X = 1\n", age_s=-50)
    monkeypatch.syspath_prepend(str(path.parent))
    reader = ModuleSource()
    before = reader.find_module("fp_source")
    assert before == ModuleText("X = 1\n", "")
    importlib.import_module("fp_source")
    assert reader.find_module("fp_source") == before


def test_functions_of_the_standard_library_have_source_too() -> None:
    assert (ModuleSource().source(json.dumps) or "").startswith("def dumps(")


IMPORTS = {
    "at the margin": "import json, os.path as paths\nfrom os import (\n    path,  # (\n    sep as slash,\n)\n",
    "under a condition": "if True:\n    import json\n    import os.path as paths\n    from os import path\n",
    "with an alternative": "try:\n    import json, os.path as paths\n    from os import path\nexcept OSError: ...\n",
}
CALLING = """

def through_a_module(x):
    return json.dumps(x), paths.join(x)

class Saved:
    def through_an_alias(self):
        return path.join("a"), (lambda: json.dumps(1))
"""


# Python compiles `json.dumps(x)` in another way where `json` is imported by the same file.
@pytest.mark.parametrize("imports", IMPORTS.values(), ids=list(IMPORTS))
def test_a_call_through_an_imported_module_hides_no_source(path: Path, imports: str) -> None:
    module, reader = load(path, imports + CALLING), ModuleSource()
    assert str(reader.source(module.through_a_module)).startswith("def through_a_module(x):\n")
    assert str(reader.source(module.Saved.through_an_alias)).strip().startswith("def through_an_alias(self):\n")


def test_a_functions_block_is_enough_to_find_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[int] = []
    parse = ast.parse

    def counting(text: str, *args: Any, **kwargs: Any) -> ast.AST:
        parsed.append(len(text.strip()))
        return parse(text, *args, **kwargs)

    filler = "".join(f"def other_{i}(x):\n    return {i}\n\n" for i in range(500))
    module = load(path, "import json\n" + filler + "def work(x):\n    return json.dumps(x)\n")
    monkeypatch.setattr(ast, "parse", counting)
    assert ModuleSource().source(module.work) == "def work(x):\n    return json.dumps(x)\n"
    assert sum(parsed) < 200
