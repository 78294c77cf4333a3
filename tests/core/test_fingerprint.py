"""The code fingerprint: which edits change it, which do not, and that it is the same everywhere."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from treadle._core.fingerprint import Fingerprint, code_digest, explain, fingerprint
from treadle._runtime.code.source import ModuleSource

Write = Callable[..., ModuleType]


def digest(value: object) -> bytes:
    """A digest as the engine's: by content, and an error for what has none."""
    return hashlib.sha256(repr(type(value)).encode() + pickle.dumps(value, protocol=4)).digest()


def fingerprint_of(fn: object, *depends_on: object) -> Fingerprint:
    found = fingerprint(fn, ModuleSource(), digest, depends_on)
    assert found is not None
    return found


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """Write a module and load it; each call is a new version, as a new process would see it."""
    saved = dict(sys.modules)

    def load(text: str, name: str = "fp_main") -> ModuleType:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        path = folder / f"{name}.py"
        path.write_text(textwrap.dedent(text))
        os.utime(path, (1_600_000_000, 1_600_000_000))
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in set(sys.modules) - set(saved):
        if name.startswith("fp_"):
            del sys.modules[name]


PLAIN = """
    def work(x):
        y = x + 1
        return y
"""


@pytest.mark.parametrize(
    "edited",
    [
        "def work(x):\n    # why\n    y = x + 1  # more\n\n    return y\n",
        'def work(x):\n    """What it does."""\n    y = x + 1\n    return y\n',
        "def work(x: int) -> int:\n    y: int = x + 1\n    return y\n",
        "def work(x):\n    y: int\n    y = (x\n         + 1)\n    return y\n",
        "import functools\n\n\ndef same(f):\n    return f\n\n\n@same\ndef work(x):\n    y = x + 1\n    return y\n",
        "UNUSED = 3\n\n\ndef other():\n    return UNUSED\n\n\ndef work(x):\n    y = x + 1\n    return y\n",
    ],
    ids=["comment", "docstring", "annotation", "layout", "decorator", "something-else"],
)
def test_edits_that_change_no_behaviour_keep_the_fingerprint(write: Write, edited: str) -> None:
    assert fingerprint_of(write(PLAIN).work).digest == fingerprint_of(write(edited).work).digest


HELPERS = """
    LIMIT = 3

    def inner(x):
        return x * 2

    def scale(x):
        return inner(x) + 1

    class Base:
        def weight(self):
            return 1

    class Model(Base):
        size = 4

        def run(self, x):
            return x + self.size

        @classmethod
        def make(cls):
            return cls()

        @property
        def name(self):
            return "a"

        @staticmethod
        def fixed(x):
            return x - 1
"""

EDITS = [
    ("LIMIT = 3", "LIMIT = 4"),
    ("return x * 2", "return x * 3"),
    ("return inner(x) + 1", "return inner(x) + 2"),
    ("return 1", "return 2"),
    ("size = 4", "size = 5"),
    ("return x + self.size", "return x - self.size"),
    ("return cls()", "return cls"),
    ('return "a"', 'return "b"'),
    ("return x - 1", "return x - 2"),
]
BY_NAME = """
    from fp_helpers import LIMIT, scale, Model

    def work(x):
        return scale(x) + LIMIT + Model().run(x)
"""
BY_MODULE = """
    import fp_helpers as h

    def work(x):
        return h.scale(x) + h.LIMIT + h.Model.make().run(x)
"""


@pytest.mark.parametrize("main", [BY_NAME, BY_MODULE], ids=["by-name", "by-module"])
@pytest.mark.parametrize(("old", "new"), EDITS, ids=[new for _, new in EDITS])
def test_an_edit_of_what_the_step_names_in_another_module_changes_it(
    write: Write, main: str, old: str, new: str
) -> None:
    write(HELPERS, "fp_helpers")
    before = fingerprint_of(write(main).work)
    again = fingerprint_of(write(main).work)
    assert HELPERS.count(old) == 1
    write(HELPERS.replace(old, new), "fp_helpers")
    after = fingerprint_of(write(main).work)
    assert before.digest == again.digest
    assert before.digest != after.digest


def test_an_edit_of_the_body_changes_it(write: Write) -> None:
    assert fingerprint_of(write(PLAIN).work).digest != fingerprint_of(write(PLAIN.replace("+ 1", "- 1")).work).digest


def test_a_module_in_a_package_is_followed_attribute_by_attribute(write: Write) -> None:
    package = ModuleType("fp_pkg")
    main = "import fp_pkg\n\ndef work(x):\n    return fp_pkg.sub.scale(x)\n"
    found: list[bytes] = []
    for factor in (2, 3):
        package.sub = write(f"def scale(x):\n    return x * {factor}\n", "fp_sub")  # type: ignore[attr-defined]
        sys.modules["fp_pkg"] = package
        found.append(fingerprint_of(write(main).work).digest)
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("factor=2", "factor=3"),
        ("offset=1)", "offset=5)"),
        ("wrapper(x) + 0", "wrapper(x) + 1"),
        ("return x + 7", "return x + 8"),
        ("return x + 9", "return x + 10"),
        ("'b': second", "'b': first"),
        ("p, q = first, second", "p, q = second, first"),
        ("two, three = times(2), times(3)", "two, three = times(3), times(2)"),
        ("lambda x: x + 1, lambda x: x - 1", "lambda x: x - 1, lambda x: x + 1"),
        ("def deep(x): return x + 20", "def deep(x): return x + 21"),
        ("limit: int = 3", "limit: int = 4"),
        ("return self.limit + 30", "return self.limit + 31"),
        ("RED = 1", "RED = 2"),
    ],
)
def test_every_way_of_holding_a_helper_is_followed(write: Write, old: str, new: str) -> None:
    text = """
    import dataclasses
    import enum
    import functools

    def defaulted(x, factor=2):
        return x * factor

    def adds(x, offset=0):
        return x + offset

    shifted = functools.partial(adds, offset=1)

    def decorate(f):
        @functools.wraps(f)
        def inside(x):
            wrapper = f
            return wrapper(x) + 0
        return inside

    @decorate
    def decorated(x):
        return x + 7

    @functools.lru_cache
    def cached(x):
        return x + 9

    def first(x): return x

    def second(x): return -x

    TABLE = {'a': first, 'b': second}
    p, q = first, second

    def times(n):
        def inner(x):
            return x * n
        return inner

    two, three = times(2), times(3)
    up, down = lambda x: x + 1, lambda x: x - 1

    def deep(x): return x + 20

    @dataclasses.dataclass
    class Config:
        limit: int = 3

        def total(self):
            return self.limit + 30

    CONFIG = Config()

    class Colour(enum.Enum):
        RED = 1

    def work(x):
        def local(y):
            return [deep(z) for z in y]
        a = defaulted(x) + shifted(x) + decorated(x) + cached(x) + TABLE["a"](x) + CONFIG.total()
        return a + p(x) - q(x) + two(x) - three(x) + up(x) - down(x), Colour.RED, local
    """
    assert text.count(old) == 1
    before, again = fingerprint_of(write(text).work), fingerprint_of(write(text).work)
    after = fingerprint_of(write(text.replace(old, new)).work)
    assert before.digest == again.digest
    assert before.digest != after.digest


def test_a_global_that_is_not_named_makes_no_difference(write: Write) -> None:
    text = """
    config = 1

    def work(config, client):
        return client.config, config
    """
    assert fingerprint_of(write(text).work).digest == fingerprint_of(write(text.replace("= 1", "= 2")).work).digest


def test_a_global_that_is_no_plain_data_counts_by_its_type(write: Write) -> None:
    text = "import threading, logging\nLOCK = threading.{kind}()\n\ndef work(x):\n    return LOCK, x\n"
    lock, other, event = (fingerprint_of(write(text.format(kind=kind)).work) for kind in ("Lock", "Lock", "Event"))
    assert lock.digest == other.digest != event.digest


def test_recursion_and_cycles_end(write: Write) -> None:
    module = write("""
    LOOP = []
    LOOP.append(LOOP)

    class Node:
        def make(self): return Node(), work

    def even(x): return x == 0 or odd(x - 1)

    def odd(x): return x != 0 and even(x - 1)

    def work(x): return work(x - 1) if x else even(x), Node, LOOP
    """)
    labels = [label for label, _ in fingerprint_of(module.work).parts]
    assert {"code of fp_main.even", "code of fp_main.odd", "code of fp_main.Node.make"} <= set(labels)


class Proxy:
    """Answers every question with an error, as a proxy without its object does."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


def test_a_hostile_global_counts_by_its_type(write: Write) -> None:
    module = write("PROXY = None\n\ndef work(x): return PROXY.a, x\n")
    module.PROXY = Proxy()  # type: ignore[attr-defined]
    found = dict(fingerprint_of(module.work).parts)
    assert found["global fp_main.PROXY"].startswith("instance of")
    assert found["global fp_main.PROXY"].endswith(".Proxy")


def test_a_global_that_has_no_digest_counts_by_its_type(write: Write) -> None:
    module = write("SIZE = 3\n\ndef work(x): return SIZE\n")

    def failing(value: object) -> bytes:
        raise TypeError(value)

    found = fingerprint(module.work, ModuleSource(), failing)
    assert found is not None
    assert ("global fp_main.SIZE", "instance of builtins.int") in found.parts


def test_every_implementation_of_a_single_dispatch_function_counts(write: Write) -> None:
    text = """
    import functools

    @functools.singledispatch
    def show(x): return 1

    @show.register
    def _(x: int): return 2

    def work(x): return show(x)
    """
    found = {fingerprint_of(write(each).work).digest for each in (text, text.replace("2", "3"), text.replace("1", "3"))}
    assert len(found) == 3


def test_a_file_edited_after_its_import_gives_the_loaded_function_no_newer_fingerprint(write: Write) -> None:
    module = write(PLAIN)
    edited = PLAIN.replace("+ 1", "- 1")
    newer = fingerprint_of(write(edited).work)
    assert module.__file__ is not None
    Path(module.__file__).write_text(textwrap.dedent(edited))
    found = fingerprint_of(module.work)
    assert found.digest != newer.digest
    assert [label for label, _ in found.parts] == ["bytecode of fp_main.work", "python"]


def test_lambdas_on_one_line_are_told_apart(write: Write) -> None:
    module = write("pair = (lambda x: x + 1), (lambda x: x - 1), lambda x: (lambda y: x + y)\n")
    found = [fingerprint_of(item) for item in (*module.pair, module.pair[2](1))]
    assert len({item.digest for item in found}) == 4
    assert all(label.startswith("code of") for item in found for label, _ in item.parts if "lambda" in label)


@pytest.mark.parametrize(("old", "new"), [("+ 1", "- 1"), ("+ 1", "+ 2"), ("helper(x)", "abs(x)"), ("* 3", "* 4")])
def test_a_function_without_source_counts_by_its_bytecode(old: str, new: str) -> None:
    text = "def helper(x):\n    return x * 3\n\ndef work(x):\n    'doc'\n    return helper(x) + 1 in {'a', 'b'}\n"

    def made(source: str) -> Fingerprint:
        namespace: dict[str, Any] = {"__name__": "fp_made"}
        exec(source, namespace)
        return fingerprint_of(namespace["work"])

    assert made(text).digest != made(text.replace(old, new)).digest
    assert made(text).digest == made("# moved\n\n" + text.replace("'doc'", "'other words'")).digest


def test_a_function_without_code_has_no_fingerprint() -> None:
    assert fingerprint(len, ModuleSource(), digest) is None


def test_an_installed_helper_counts_by_its_name_only(write: Write, tmp_path: Path) -> None:
    main = "from fp_lib import helper\n\ndef work(x):\n    return helper(x)\n"
    found: list[Fingerprint] = []
    for factor in (2, 3):
        lib = write(f"def helper(x):\n    return x * {factor}\n", "fp_lib")
        lib.__file__ = str(tmp_path / "venv" / "site-packages" / "fp_lib.py")
        found.append(fingerprint_of(write(main).work))
    assert found[0].digest == found[1].digest
    assert ("global fp_main.helper", "function fp_lib.helper") in found[0].parts


def test_a_step_in_an_installed_package_counts_with_the_helpers_of_its_own_package(
    write: Write, tmp_path: Path
) -> None:
    found: list[Fingerprint] = []
    for factor in (2, 3):
        lib = write(f"def helper(x):\n    return x * {factor}\n\ndef work(x):\n    return helper(x)\n", "fp_lib")
        lib.__file__ = str(tmp_path / "site-packages" / "fp_lib.py")
        found.append(fingerprint_of(lib.work))
    assert found[0].digest != found[1].digest


def test_a_library_decorator_does_not_hide_the_function_that_it_wraps(write: Write, tmp_path: Path) -> None:
    def versions(wraps: str) -> list[bytes]:
        found: list[bytes] = []
        for offset in (1, 2):
            inner = f"    {wraps}\n    def inner(x):\n        return f(x)\n    return inner\n"
            lib = write(f"import functools\n\ndef deco(f):\n{inner}", "fp_lib")
            lib.__file__ = str(tmp_path / "site-packages" / "fp_lib.py")
            text = (
                f"from fp_lib import deco\n\n@deco\ndef helper(x): return x + {offset}\n\ndef work(x): return helper(x)"
            )
            found.append(fingerprint_of(write(text).work).digest)
        return found

    for wraps in ("@functools.wraps(f)", ""):
        one, two = versions(wraps)
        assert one != two


def test_a_step_counts_by_its_function(write: Write) -> None:
    text = """
    class Step:
        __treadle_callable__ = True

        def __init__(self, fn):
            self.fn = fn
            self.lock = object()

    @Step
    def helper(x): return x + 1

    @Step
    def work(x): return helper(x)
    """
    before, after = write(text), write(text.replace("x + 1", "x + 2"))
    assert fingerprint_of(before.work).digest == fingerprint_of(before.work.fn).digest
    assert fingerprint_of(before.work).digest != fingerprint_of(after.work).digest


@pytest.mark.parametrize("loaded", [True, False])
def test_a_module_imported_inside_the_function_counts_by_its_text(
    write: Write, monkeypatch: pytest.MonkeyPatch, loaded: bool
) -> None:
    main = "def work(x):\n    from fp_lazy import scale\n    import json\n    return scale(x)\n"
    texts = ["def scale(x): return x * 2", "def scale(x):  # comment\n    return x * 2", "def scale(x): return x * 3"]
    found: list[bytes] = []
    for text in texts:
        lazy = write(text, "fp_lazy")
        if not loaded:
            del sys.modules["fp_lazy"]
            assert lazy.__file__ is not None
            monkeypatch.syspath_prepend(str(Path(lazy.__file__).parent))
        taken = fingerprint_of(write(main).work)
        assert [label for label, _ in taken.parts if label.startswith("module")] == ["module fp_lazy"]
        found.append(taken.digest)
    assert found[0] == found[1] != found[2]


def test_depends_on_adds_what_the_code_does_not_name(write: Write) -> None:
    text = "FACTORS = [1]\n\ndef hidden(x): return x + 1\n\ndef work(x): return globals()['hidden'](x)\n"
    before, after = write(text), write(text.replace("x + 1", "x + 2"))
    assert fingerprint_of(before.work).digest == fingerprint_of(after.work).digest
    assert fingerprint_of(before.work, before.hidden).digest != fingerprint_of(after.work, after.hidden).digest
    assert fingerprint_of(before.work, before).digest != fingerprint_of(after.work, after).digest
    assert fingerprint_of(before.work, "v1").digest != fingerprint_of(before.work, "v2").digest


def test_closure_values_of_the_step_itself_are_not_in_the_fingerprint_but_functions_are(write: Write) -> None:
    module = write("""
    def one(x): return 1

    def two(x): return 2

    def make(held):
        def work(x): return held
        return work
    """)
    assert fingerprint_of(module.make(1)).digest == fingerprint_of(module.make(2)).digest
    assert fingerprint_of(module.make(module.one)).digest != fingerprint_of(module.make(module.two)).digest


SCRIPT = """
import hashlib
from treadle._core.fingerprint import fingerprint, step_identity
from treadle._runtime.code.source import ModuleSource

NAMES = frozenset({"a", "b", "c", "d"})
space = {"__name__": "made"}
exec("def made(x): return x in {'a', 'b', 'c', 'd', 'e'}, (1, {2: 3})", space)
made = space["made"]

def one(x): return 1
def two(x): return 2
def three(x): return 3
HANDLERS = {one, two, three, made}

class Shape:
    kinds = {"round", "flat"}
    def area(self): return self.kinds

def work(x, handlers=(one, two)):
    return x in {"a", "b", "c", "d", "e"}, made(x), NAMES, HANDLERS, Shape()

def digest(value):
    text = repr(sorted(value) if isinstance(value, (set, frozenset)) else value)
    return hashlib.sha256(text.encode()).digest()

reader = ModuleSource()
print(fingerprint(work, reader, digest).digest.hex())
print(step_identity(work, name="w", outputs=("a",), digest_value=digest, reader=reader).digest.hex())
"""


def test_it_is_the_same_in_processes_with_different_hash_seeds(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    engine = str(Path(sys.modules["treadle"].__path__[0]).parent)
    outputs = {
        subprocess.run(
            [sys.executable, str(script)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": engine},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(outputs) == 1
    assert len(outputs.pop().split()) == 2


def test_threads_may_take_fingerprints_at_once(write: Write) -> None:
    write(HELPERS, "fp_helpers")
    work, reader = write(BY_NAME).work, ModuleSource()
    found: set[bytes] = set()

    def take() -> None:
        taken = fingerprint(work, reader, digest)
        assert taken is not None
        found.add(taken.digest)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("return x * 2", "return x * 3", "code of fp_helpers.inner changed"),
        ("LIMIT = 3", "LIMIT = 4", "global fp_helpers.LIMIT changed"),
        ("size = 4", "size = 5", "attribute fp_helpers.Model.size changed"),
        ("return inner(x) + 1", "return abs(x) + 1", "code of fp_helpers.inner is gone"),
    ],
)
def test_explain_names_the_part_that_changed(write: Write, old: str, new: str, sentence: str) -> None:
    write(HELPERS, "fp_helpers")
    before = fingerprint_of(write(BY_MODULE).work)
    write(HELPERS.replace(old, new), "fp_helpers")
    sentences = explain(before, fingerprint_of(write(BY_MODULE).work))
    assert sentence in sentences
    assert not any("scale" in each for each in sentences if "inner" in sentence and "gone" not in sentence)


def test_explain_says_what_a_name_means_now(write: Write) -> None:
    text = "def f(x): return 1\n\ndef g(x): return 2\n\nhelper = f\n\ndef work(x): return helper(x), f, g\n"
    before, after = write(text), write(text.replace("helper = f", "helper = g"))
    assert explain(fingerprint_of(before.work), fingerprint_of(after.work)) == (
        "global fp_main.helper changed from function fp_main.f to function fp_main.g",
    )


def test_a_small_function_with_three_helpers_costs_little(write: Write) -> None:
    import time

    write(HELPERS, "fp_helpers")
    work, reader = write(BY_NAME).work, ModuleSource()
    best = 1.0
    for _ in range(20):
        start = time.perf_counter()
        fingerprint(work, reader, digest)
        best = min(best, time.perf_counter() - start)
    assert best < 0.002


def test_a_partial_counts_by_its_function_and_arguments(write: Write) -> None:
    module = write("def work(x, y): return x + y\n")
    one, again, two = (functools.partial(module.work, n) for n in (1, 1, 2))
    assert fingerprint_of(one).digest == fingerprint_of(again).digest
    assert fingerprint_of(module.work).digest != fingerprint_of(two).digest


def test_a_library_s_function_as_a_value_counts_by_name() -> None:
    """Else a value that holds one, as a pandas Series does, would have its whole library read."""
    import hypothesis.strategies

    class Reader:
        def is_project(self, name: str) -> bool:
            return False

        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"{name} of a library was asked for")

    found = code_digest(hypothesis.strategies.text, Reader(), lambda value: b"")
    assert found == code_digest(hypothesis.strategies.text, Reader(), lambda value: b"")
    assert found != code_digest(hypothesis.strategies.binary, Reader(), lambda value: b"")
