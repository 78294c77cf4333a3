"""An executor of somebody's own that is none is refused, with what is wrong with it and with its name."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hostile_steps import fine

from treadle import Engine, pipeline
from treadle.errors import ExecutorUnavailable, OptionError

here: Any = fine.with_options(runtime="mine")


class Whole:
    """All that an executor has; it performs nothing."""

    trusted: Any = True
    slots: Any = 1

    async def open(self) -> None:
        """Nothing."""

    async def perform(self, attempt: Any, sink: Any) -> Any:
        """Nothing, which is wrong."""

    async def close(self) -> None:
        """Nothing."""


class WithoutSlots(Whole):
    """One attribute is missing."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("slots", "close"):
            raise AttributeError(name)
        return super().__getattribute__(name)


class Answers(Whole):
    """Gives what is no outcome."""

    async def perform(self, attempt: Any, sink: Any) -> Any:
        return {"outputs": [1]}


class NotAwaitable(Whole):
    """Gives it at once."""

    def perform(self, attempt: Any, sink: Any) -> Any:
        return 1


@pytest.mark.parametrize("slots", [0, -1, 1.5, True, "4"])
def test_slots_that_are_no_number_from_1_are_refused_by_the_engine(tmp_path: Path, slots: Any) -> None:
    executor = Whole()
    executor.slots = slots
    with pytest.raises(OptionError) as caught:
        Engine(tmp_path / "home", executors={"mine": executor})
    assert "'mine'" in caught.value.what
    assert f"slots = {slots!r}" in str(caught.value)
    assert caught.value.option == "executors"


@pytest.mark.parametrize("slots", [None, 1, 1000])
def test_slots_may_be_any_number_from_1_or_none_for_no_bound(tmp_path: Path, slots: Any) -> None:
    executor = Whole()
    executor.slots = slots
    Engine(tmp_path / "home", executors={"mine": executor})


def test_what_an_executor_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="it has no slots, close"):
        Engine(tmp_path / "home", executors={"mine": WithoutSlots()})
    with pytest.raises(OptionError, match="it is a class"):
        Engine(tmp_path / "home", executors={"mine": Whole})  # type: ignore[dict-item]


@pytest.mark.parametrize("timeout", [None, 30.0])
@pytest.mark.parametrize(("executor", "gave"), [(Whole(), "None"), (Answers(), "dict"), (NotAwaitable(), "int")])
def test_what_is_no_outcome_is_an_error_that_names_the_executor(
    tmp_path: Path, executor: Any, gave: str, timeout: float | None
) -> None:
    asked = here.with_options(timeout=timeout)

    @pipeline
    async def flow() -> Any:
        return await asked(1)

    async def main() -> BaseException | None:
        async with asyncio.timeout(30), Engine(tmp_path / "home", executors={"mine": executor}) as engine:
            return (await engine.run(flow)).error

    error = asyncio.run(main())
    assert type(error) is ExecutorUnavailable
    assert f"{type(executor).__name__}.perform gave {gave}" in str(error)
    assert "on executor 'mine'" in error.where
