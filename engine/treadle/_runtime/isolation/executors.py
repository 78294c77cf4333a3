"""Which executor a step's ``runtime`` means: given to the engine, or installed; opened at first use, closed with it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from contextvars import Context
from functools import cache
from typing import Any, cast

from treadle._core.admission import Limit
from treadle.contracts import Executor
from treadle.errors import ExecutorNotFound, OptionError, StepNotImportable

GROUP = "treadle.executors"
OWN = ("inline", "isolated")
PARTS = ("trusted", "slots", "open", "perform", "close")


class Placed:
    """An executor of one engine, the slots that it has, and whether it is open."""

    __slots__ = ("executor", "limit", "name", "opening", "opens_urls", "queues")

    def __init__(self, name: str, executor: Executor) -> None:
        self.name, self.executor = name, executor
        self.limit = Limit(executor.slots) if executor.slots is not None else None
        self.opening: asyncio.Task[None] | None = None
        self.queues, self.opens_urls = getattr(executor, "queues", False), getattr(executor, "opens_urls", False)


class Executors:
    """The executors of one engine.

    Args:
        given: by name, as the user passed them.
        isolated: the one that ``runtime="isolated"`` means.

    Raises:
        OptionError: something given is no executor, or has a name that is taken.
    """

    def __init__(self, given: object, isolated: str) -> None:
        self._given: dict[str, Executor] = {}
        if given is not None and not isinstance(given, Mapping):
            raise OptionError(
                f"executors={given!r} is no dict",
                fix="give names and executors: executors={'container': ContainerExecutor(image=...)}",
                option="executors",
            )
        for name, executor in cast("Mapping[str, Any]", given or {}).items():
            if not name or str(name) != name or name in OWN:
                raise OptionError(f"executors= has the name {name!r}", fix="give another name", option="executors")
            self._given[name] = _checked(name, executor)
        if not isolated or str(isolated) != isolated or isolated in OWN:
            raise OptionError(
                f"isolated={isolated!r} is not allowed",
                fix="give the name of an executor, as 'process'",
                option="isolated",
            )
        self._isolated = isolated
        self._placed: dict[str, Placed] = {}

    def missing(self, step: str, runtime: str) -> ExecutorNotFound | None:
        """The error of a step that asks for an executor which is not there."""
        name = self._isolated if runtime == "isolated" else runtime
        return None if name == "inline" or name in self._given else not_installed(step, name, tuple(self._given))

    def sets_aside(self, runtime: str) -> bool:
        """Whether an executor given here counts resources by itself, as those do that queue attempts elsewhere."""
        return bool(getattr(self._given.get(self._isolated if runtime == "isolated" else runtime), "queues", False))

    def of(self, step: str, runtime: str) -> Placed:
        """The executor that a step asks for, not ``"inline"``.

        Raises:
            ExecutorNotFound: there is none of that name.
        """
        name = self._isolated if runtime == "isolated" else runtime
        placed = self._placed.get(name)
        if placed is None:
            error = self.missing(step, runtime)
            if error is not None:
                raise error
            executor = self._given[name] if name in self._given else _checked(name, _installed()[name].load()())
            placed = self._placed[name] = Placed(name, executor)
        return placed

    @property
    def are_used(self) -> bool:
        """Whether any was opened."""
        return any(placed.opening is not None for placed in self._placed.values())

    async def ready(self, placed: Placed) -> Executor:
        """The executor, open; one that could not be opened is tried anew."""
        opening = placed.opening
        if opening is None or (opening.done() and (opening.cancelled() or opening.exception() is not None)):
            # An executor outlives the call that needs it first, and a task holds its context, with all that leads to.
            loop, context = asyncio.get_running_loop(), Context()
            opening = placed.opening = loop.create_task(placed.executor.open(), context=context)
        if not opening.done():
            await asyncio.shield(opening)
        return placed.executor

    async def close(self) -> None:
        """Close those that were opened; one that fails does not keep the others open."""
        opened = [placed for placed in self._placed.values() if placed.opening is not None]
        self._placed = {}
        closing = [asyncio.get_running_loop().create_task(_close(placed)) for placed in opened]
        try:
            await asyncio.sleep(0)  # a task that is cancelled before its first step never makes it, and closes nothing
        finally:
            errors = await asyncio.gather(*closing, return_exceptions=True)
        for error in errors:
            if isinstance(error, BaseException):
                raise error


def _checked(name: str, executor: Any) -> Executor:
    if isinstance(executor, type):
        why = "it is a class"
    elif lacking := [part for part in PARTS if not hasattr(executor, part)]:
        why = f"it has no {', '.join(lacking)}"
    elif (slots := executor.slots) is None or (type(slots) is int and slots > 0):
        return cast("Executor", executor)
    else:
        raise OptionError(
            f"executors= has {executor!r} for {name!r}, with slots = {slots!r}",
            why="no attempt would ever begin" if slots == 0 else "that is no number of attempts",
            fix="let it have a whole number from 1, or None for no bound",
            option="executors",
        )
    raise OptionError(
        f"executors= has {executor!r} for {name!r}, which is no executor",
        why=why,
        fix="give an instance, such as ProcessExecutor(workers=4); see treadle.contracts.Executor",
        option="executors",
    )


async def _close(placed: Placed) -> None:
    assert placed.opening is not None
    try:
        await placed.opening
    except Exception:
        return  # it was never open
    await placed.executor.close()


# -- by name ------------------------------------------------------------------------------


@cache
def _installed() -> dict[str, Any]:
    from importlib.metadata import entry_points  # asked once, by the first step that is not inline

    return {entry.name: entry for entry in entry_points(group=GROUP)}


def not_installed(step: str, name: str, given: tuple[str, ...] = ()) -> ExecutorNotFound | None:
    """The error of a step that asks for an executor which nobody has installed."""
    if name in ("inline", *given) or name in _installed():
        return None
    known = sorted({"inline", "isolated", *given, *_installed()})
    import difflib  # only a mistake pays for it

    near = difflib.get_close_matches(name, known, n=1)
    return ExecutorNotFound(
        f"step {step} asks for runtime={name!r}, and there is no executor of that name",
        why=f"there are {', '.join(known)}",
        fix=f"did you mean {near[0]!r}?" if near else f"pass one with Engine(executors={{{name!r}: ...}})",
        runtime=name,
    )


# -- the step, by import path -------------------------------------------------------------


def target_of(step: str, fn: Any) -> tuple[str, str, str]:
    """Module, qualified name and program under which another process finds a step's function.

    Raises:
        StepNotImportable: there is no such path.
    """
    module, qualname = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str):
        raise _not_importable(step, "its function has no name", "use a plain function")
    if "<lambda>" in qualname:
        raise _not_importable(step, "it is a lambda, which has no name", "define it with `def` at the top of a module")
    if "<locals>" in qualname:
        raise _not_importable(
            step, "it is defined inside another function, and no code is sent, only its import path",
            "define it at the top level of a module, and pass what it closes over as arguments",
        )  # fmt: skip
    program = _program(step) if module == "__main__" else ""
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if found is not fn and getattr(found, "fn", None) is not fn:
        raise _not_importable(
            step, f"{module}:{qualname} is something else, or not there",
            "let the name at the top level of the module be that of the step or of its function",
        )  # fmt: skip
    return module, qualname, program


def trouble_of(step: str, fn: Any) -> StepNotImportable | None:
    """Why another process could not find a step's function, if it could not."""
    try:
        target_of(step, fn)
    except StepNotImportable as error:
        return error
    return None


def _program(step: str) -> str:
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name and spec.name != "__main__":  # which is what a folder or a zip file is started as
        name: str = spec.name
        return f"-m {name}"
    file = getattr(main, "__file__", None)
    if not isinstance(file, str) or not (os.path.isfile(file) or os.path.isfile(os.path.dirname(file))):
        raise _not_importable(
            step, "it was defined in an interactive session or a notebook, which another process cannot import",
            "write it into a module (in a notebook: `%%writefile steps.py` above it) and import it from there,"
            " or use runtime='inline' while you try things out",
        )  # fmt: skip
    return os.path.abspath(file)


def _not_importable(step: str, why: str, fix: str) -> StepNotImportable:
    return StepNotImportable(f"step {step} cannot be performed in another process", why=why, fix=fix)
