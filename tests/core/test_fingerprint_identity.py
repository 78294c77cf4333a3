"""The identity of a step: what tells two steps apart although their code is the same."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import pickle
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, TypeVar

import pytest

from treadle._core.fingerprint import StepIdentity, code_digest, explain, fingerprint, step_identity
from treadle._runtime.code.source import ModuleSource

READER = ModuleSource()


def digest(value: object) -> bytes:
    return hashlib.sha256(repr(type(value)).encode() + pickle.dumps(value, protocol=4)).digest()


def identity_of(fn: Any, name: str = "work", outputs: Sequence[str] = ()) -> StepIdentity:
    return step_identity(fn, name=name, outputs=outputs, digest_value=digest, reader=READER)


def make(held: Any) -> Any:
    def work(x: Any) -> Any:
        return held, x

    return work


def one(x: int) -> int:
    return x + 1


def two(x: int) -> int:
    return x + 2


class Marked:
    """Looks like a step to the engine."""

    __treadle_callable__ = True

    def __init__(self, fn: Callable[..., object]) -> None:
        self.fn = fn
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (1, 2),
        (1, 1.0),
        (1, "1"),
        (1, True),
        (one, two),
        (Marked(one), Marked(two)),
        (threading, hashlib),
        ([one, 1], [two, 1]),
        (make(1), make(2)),
        (make(one), make(two)),
        (ValueError, TypeError),
        ({"a": one}, {"a": two}),
    ],
)
def test_factories_that_hold_different_things_make_different_steps(left: Any, right: Any) -> None:
    first, second = identity_of(make(left)), identity_of(make(right))
    assert first.digest == identity_of(make(left)).digest
    assert first.digest != second.digest
    assert first.unhashable == second.unhashable == ()
    assert explain(first, second)


def test_the_code_of_the_factories_steps_is_the_same() -> None:
    left, right = (fingerprint(make(value), READER, digest) for value in ("xgb", "rf"))
    assert left == right


def test_name_outputs_and_qualified_name_count() -> None:
    found = [
        identity_of(one),
        identity_of(two),
        identity_of(one, name="other"),
        identity_of(one, outputs=("a",)),
        identity_of(one, outputs=("a", "b")),
        identity_of(one, outputs=("b", "a")),
    ]
    assert len({item.digest for item in found}) == len(found)


def test_a_default_counts_by_its_value() -> None:
    def made(value: Any, keyword: Any) -> StepIdentity:
        def work(x: Any = value, *, y: Any = keyword) -> Any:
            return x, y

        return identity_of(work)

    assert made(1, 2).digest == made(1, 2).digest
    assert len({made(*values).digest for values in ((1, 2), (2, 2), (1, 3), (2, 1))}) == 4


def test_what_cannot_be_hashed_is_named_and_left_out() -> None:
    def made(client: Any, size: int) -> StepIdentity:
        def work(x: Any, lock: Any = client) -> Any:
            return client, size, x, lock

        return identity_of(work)

    first, second = made(threading.Lock(), 1), made(threading.Lock(), 1)
    assert sorted(first.unhashable) == ["client", "lock"]
    assert first.digest == second.digest != made(threading.Lock(), 2).digest


@pytest.mark.parametrize("held", [[threading.Lock()], make(threading.Lock()), {"a": (threading.Lock(), 1)}])
def test_what_hides_inside_a_container_or_a_function_is_found(held: Any) -> None:
    assert identity_of(make(held)).unhashable == ("held",)


def test_a_function_in_a_closure_that_names_a_global_lock_is_hashable() -> None:
    assert identity_of(make(identity_of)).unhashable == ()


def test_a_closure_variable_that_is_not_set_yet_is_no_hindrance() -> None:
    def outer() -> StepIdentity:
        def work() -> int:
            return later

        found = identity_of(work)
        later = 1
        return found

    assert outer().unhashable == ()


def test_a_step_that_closes_over_itself_has_an_identity() -> None:
    def outer(n: int) -> Any:
        def work(x: int) -> int:
            return n if not x else other(x - 1)

        def other(x: int) -> int:
            return work(x) + n

        return work

    def recursive(x: int) -> int:
        return recursive(x - 1) if x else 0

    assert identity_of(outer(1)).digest == identity_of(outer(1)).digest != identity_of(outer(2)).digest
    assert identity_of(recursive).unhashable == ()


def test_an_edit_of_the_body_keeps_the_identity(tmp_path: Path) -> None:
    text = "def work(x, size=2):\n    return x + size\n"
    before = identity_of(load(tmp_path / "a.py", text).work)
    assert before.digest == identity_of(load(tmp_path / "b.py", text.replace("+", "-")).work).digest
    assert before.digest != identity_of(load(tmp_path / "c.py", text.replace("2", "3")).work).digest


def test_a_script_counts_by_its_file() -> None:
    def script(path: str, name: str = "__main__") -> Any:
        namespace: dict[str, Any] = {"__name__": name, "__file__": path}
        exec("def work(x): return x", namespace)
        return namespace["work"]

    first, second = script("/a/main.py"), script("/b/main.py")
    assert identity_of(first).digest == identity_of(script("/a/main.py")).digest
    assert identity_of(first).digest == identity_of(script("/a/main.py", "__mp_main__")).digest
    assert identity_of(first).digest != identity_of(second).digest


def test_a_wrapper_of_a_library_may_hold_what_cannot_be_hashed(tmp_path: Path) -> None:
    library = "import functools, threading\n\ndef deco(f):\n    lock = threading.Lock()\n"
    library += "    @functools.wraps(f)\n    def inner(x):\n        return f(x), lock\n    return inner\n"
    folder = tmp_path / "site-packages"
    folder.mkdir()
    deco = load(folder / "fp_deco.py", library, "fp_deco").deco
    try:
        found = [identity_of(deco(fn)) for fn in (one, one, two)]
    finally:
        del sys.modules["fp_deco"]
    assert [item.unhashable for item in found] == [()] * 3
    assert found[0].digest == found[1].digest != found[2].digest


def test_a_body_below_a_decorator_is_code_and_not_identity(tmp_path: Path) -> None:
    text = "import functools\n\ndef deco(f):\n    @functools.wraps(f)\n    def inner(x):\n        return f(x)\n"
    text += "    return inner\n\n@deco\ndef work(x, y=3):\n    return x + 1\n"
    edited = text.replace("x + 1", "x + 2")
    before, after = (load(tmp_path / f"{index}.py", source).work for index, source in enumerate((text, edited)))
    assert identity_of(before).digest == identity_of(after).digest
    assert fingerprint(before, READER, digest) != fingerprint(after, READER, digest)
    other = load(tmp_path / "other.py", text.replace("y=3", "y=4")).work
    assert identity_of(before).digest != identity_of(other).digest


def test_a_function_as_a_value_counts_with_what_it_closes_over() -> None:
    values = [one, two, make(1), make(2), make(one), Marked(one), Marked(make(1)), ValueError, TypeError, len, max]
    values += [functools.partial(one, 1), functools.partial(one, 2), [].append, "a".upper, "b".upper]
    found = [code_digest(value, READER, digest) for value in values]
    assert None not in found
    assert len(set(found)) == len(found)
    assert code_digest(make(1), READER, digest) == found[2]
    assert code_digest(make(threading.Lock()), READER, digest) is None


def test_what_a_factory_holds_may_be_a_type(tmp_path: Path) -> None:
    found = [identity_of(make(kind)) for kind in (int, list[int], list[str], int | None, TypeVar("T"), TypeVar("S"))]
    assert [item.unhashable for item in found] == [()] * 6
    assert len({item.digest for item in found}) == 6


def load(path: Path, text: str, name: str = "fp_identity") -> ModuleType:
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if name != "fp_identity":
        sys.modules[name] = module
    spec.loader.exec_module(module)
    assert isinstance(module.__dict__.get("work") or module.deco, FunctionType)
    return module
