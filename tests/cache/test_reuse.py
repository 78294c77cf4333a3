"""Within one process code is read once; what changes between two runs is seen all the same."""

from __future__ import annotations

import functools
import importlib
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from treadle import CachePolicy, step
from treadle._runtime.code.identity import Identities

SOURCE = """
    import json
    from dataclasses import dataclass
    from enum import Enum

    FACTOR = 2
    TABLE = [1, 2]
    SETTINGS = {"a": {"b": 1}}
    FLAGS = (1, "x")
    GIVEN = None

    class Colour(Enum):
        RED = 1

    class Base:
        pass

    class Scale(Base):
        by = 3

        def apply(self, x):
            return x * self.by

    @dataclass
    class Box:
        x: int

        def area(self):
            return self.x

    SHAPE = Box(1)

    def helper(x, by=1):
        return x + by

    def outer(x):
        return helper(x) * FACTOR

    def registered(x):
        return x

    HOOKS = [registered]

    def work(x):
        return json.dumps([outer(x), TABLE, SETTINGS, FLAGS, Scale().apply(x), SHAPE.area(), HOOKS[0](x), GIVEN])
"""


@pytest.fixture
def module(write: Any) -> Any:
    return write(SOURCE)


class Reading:
    """Takes the code of a step as each new run does, and counts how often it is really read."""

    def __init__(self, step: Any, policy: CachePolicy | None = None) -> None:
        self.step, self.policy, self.identities, self.taken = step, policy or CachePolicy(), Identities(), 0
        take = self.identities._take

        def counting(*args: Any) -> Any:
            self.taken += 1
            return take(*args)

        self.identities._take = counting  # type: ignore[method-assign]

    def __call__(self) -> tuple[bytes, bytes]:
        known = self.identities.of(self.step, (self.step.name,), self.policy)
        return known.identity, known.code


def test_unchanged_code_is_read_once(module: Any) -> None:
    read = Reading(step(module.work))
    first = read()
    assert [read() for _ in range(5)] == [first] * 5
    assert read.taken == 1


def patch_helper(m: Any) -> None:
    m.helper = lambda x, by=1: x - by


def replace_code(m: Any) -> None:
    m.helper.__code__ = (lambda x, by=1: x - by).__code__


def replace_defaults(m: Any) -> None:
    m.helper.__defaults__ = (2,)


def set_constant(m: Any) -> None:
    m.FACTOR = 3


def set_equal_constant_of_other_type(m: Any) -> None:
    m.FACTOR = 2.0


def append_to_list(m: Any) -> None:
    m.TABLE.append(3)


def change_nested_dict(m: Any) -> None:
    m.SETTINGS["a"]["b"] = 2


def replace_tuple(m: Any) -> None:
    m.FLAGS = (1, "y")


def patch_class_attribute(m: Any) -> None:
    m.Scale.by = 4


def patch_method(m: Any) -> None:
    m.Scale.apply = lambda self, x: x


def change_instance(m: Any) -> None:
    m.SHAPE.x = 2


def patch_method_of_instance(m: Any) -> None:
    m.Box.area = lambda self: 0


def change_bases(m: Any) -> None:
    m.Scale.__bases__ = (type("Other", (m.Base,), {"__module__": m.__name__}),)


def replace_in_registry(m: Any) -> None:
    m.HOOKS[0] = m.helper


def add_to_registry(m: Any) -> None:
    m.HOOKS.append(m.helper)


def delete_name(m: Any) -> None:
    del m.FACTOR


def hide_builtin(m: Any) -> None:
    m.json = types.SimpleNamespace(dumps=str)


CHANGES: list[Callable[[Any], None]] = [
    patch_helper, replace_code, replace_defaults, set_constant, set_equal_constant_of_other_type, append_to_list,
    change_nested_dict, replace_tuple, patch_class_attribute, patch_method, change_instance, patch_method_of_instance,
    change_bases, replace_in_registry, add_to_registry, delete_name, hide_builtin,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_between_two_runs_of_a_process_is_seen(module: Any, change: Callable[[Any], None]) -> None:
    read = Reading(step(module.work))
    before = read()
    change(module)
    after = read()
    assert after != before
    assert read() == after
    assert read.taken == 2


def test_a_change_that_is_taken_back_gives_the_old_fingerprint(module: Any) -> None:
    read = Reading(step(module.work))
    before = read()
    module.FACTOR = 7
    assert read() != before
    module.FACTOR = 2
    assert read() == before


def test_a_name_that_hides_a_builtin_is_seen(write: Any) -> None:
    module = write("def work(x):\n    return abs(x)\n")
    read = Reading(step(module.work))
    before = read()
    module.abs = lambda x: -x
    assert read() != before


def test_a_name_that_comes_to_be_defined_is_seen(write: Any) -> None:
    module = write("def work(x):\n    return later(x)\n")
    read = Reading(step(module.work))
    before = read()
    module.later = 1
    assert read() != before


def test_an_attribute_of_a_project_module_is_seen(write: Any) -> None:
    other = write("LIMIT = 1\n", "cached_other")
    module = write("import cached_other\n\ndef work(x):\n    return x + cached_other.LIMIT\n")
    read = Reading(step(module.work))
    before = read()
    other.LIMIT = 2
    assert read() != before


def test_a_changed_closure_cell_is_seen(write: Any) -> None:
    module = write("""
        def make():
            kind = "xgb"
            options = [1]
            def train(x):
                return kind, options, x
            def change(new):
                nonlocal kind
                kind = new
            return train, change, options
    """)
    train, change, options = module.make()
    read = Reading(step(train))
    seen = [read()]
    change("rf")
    seen.append(read())
    options.append(2)
    seen.append(read())
    assert len(set(seen)) == 3
    change("xgb")
    options.pop()
    assert read() == seen[0]


def test_keyword_only_defaults_and_a_wrapped_function_are_seen(write: Any) -> None:
    module = write("def helper(x, *, by=1):\n    return x + by\n\ndef work(x):\n    return helper(x)\n")
    read = Reading(step(module.work))
    seen = [read()]
    module.helper.__kwdefaults__["by"] = 2
    seen.append(read())
    module.helper.__wrapped__ = lambda x: x
    seen.append(read())
    assert len(set(seen)) == 3


def test_code_kept_by_a_library_object_is_seen(write: Any) -> None:
    module = write("""
        import functools

        @functools.singledispatch
        def show(x):
            return "any"

        def work(x):
            return show(x)
    """)
    read = Reading(step(module.work))
    before = read()
    module.show.register(int, types.FunctionType((lambda x: "int").__code__, vars(module)))
    assert read() != before


def test_a_reloaded_module_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cached_reloaded.py"
    path.write_text("def helper(x):\n    return x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    try:
        import cached_reloaded  # type: ignore[import-not-found]

        namespace: dict[str, Any] = {"__name__": "__main__", "cached_reloaded": cached_reloaded}
        exec("def work(x):\n    return cached_reloaded.helper(x)", namespace)
        read = Reading(step(namespace["work"]))
        before = read()
        path.write_text("def helper(x):\n    return x + 100\n")
        importlib.reload(cached_reloaded)
        assert read() != before
    finally:
        sys.modules.pop("cached_reloaded", None)


def test_what_depends_on_names_is_watched_too(write: Any) -> None:
    module = write("TABLE = {'a': 1}\n\ndef plugin(x):\n    return x\n\ndef work(x):\n    return x\n")
    read = Reading(step(module.work), CachePolicy(depends_on=(module.TABLE, module.plugin, module)))
    seen = [read()]
    module.TABLE["a"] = 2
    seen.append(read())
    module.plugin.__code__ = (lambda x: -x).__code__
    seen.append(read())
    module.EXTRA = 1
    seen.append(read())
    assert len(set(seen)) == 4


def test_an_import_in_a_body_is_looked_up_each_time(write: Any) -> None:
    module = write("def work(x):\n    import cached_plugin\n    return cached_plugin.run(x)\n")
    plugin = write("def run(x):\n    return x\n", "cached_plugin")
    read = Reading(step(module.work))
    before = read()
    assert read() == before
    Path(str(plugin.__file__)).write_text("def run(x):\n    return x + 1\n")
    plugin.run = lambda x: x + 1
    assert read() != before


@dataclass
class Held:
    n: int


def test_two_copies_of_a_step_do_not_share_what_differs(write: Any) -> None:
    module = write("def work(x):\n    return x\n")
    base = step(module.work)
    identities = Identities()
    known = [
        identities.of(copy, outputs, policy).identity + identities.of(copy, outputs, policy).code
        for copy, outputs, policy in [
            (base, ("work",), None),
            (base.with_options(name="other"), ("other",), None),
            (base, ("a", "b"), None),
            (base, ("work",), CachePolicy(depends_on=(Held(1),))),
            (base, ("work",), CachePolicy(depends_on=(Held(2),))),
        ]
    ]
    assert len(set(known)) == 5


def test_one_engine_sees_a_patched_helper_between_two_runs(
    home: Any, monkeypatch: pytest.MonkeyPatch, write: Any
) -> None:
    module = write("""
        from treadle import step, pipeline

        CONSTANT = 1

        def helper(x):
            return x * CONSTANT

        @step
        async def compute(x):
            return helper(x)

        @pipeline
        async def computing(x):
            return await compute(x)
    """)

    async def main() -> list[tuple[Any, str]]:
        seen = []
        async with home.engine() as engine:
            for change in (None, None, ("CONSTANT", 5), ("helper", lambda x: x + 1), None):
                if change is not None:
                    monkeypatch.setattr(module, *change)
                result = await engine.run(module.computing, 3)
                seen.append((result.value, result.step_results["compute"].status))
        return seen

    assert home.drive(main()) == [
        (3, "succeeded"), (3, "cached"), (15, "succeeded"), (4, "succeeded"), (4, "cached")
    ]  # fmt: skip


def test_a_partial_in_a_global_is_watched(write: Any) -> None:
    module = write("def base(x, k=1):\n    return x + k\n\ndef work(x):\n    return bound(x)\n")
    options = {"k": 1}
    module.bound = functools.partial(module.base, **options)
    read = Reading(step(module.work))
    before = read()
    module.bound.keywords["k"] = 2
    assert read() != before
