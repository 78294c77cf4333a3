"""Steps that raise exceptions with others inside of them; imported by tests and by workers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from treadle import Retry, current, step


class Coded(Exception):
    def __init__(self, code: int, reason: Exception) -> None:
        super().__init__(code, reason)
        self.again = reason


class Batch(ExceptionGroup[Exception]):
    """A group that is made of other things than a message and members."""

    code: int

    def __new__(cls, errors: Sequence[Exception], code: int) -> Batch:
        made = super().__new__(cls, f"exit code {code}", errors)
        made.code = code
        return made


@step(runtime="process", cache=False)
async def fails_in_a_task_group() -> None:
    async def one(number: int) -> None:
        raise ValueError(number)

    async with asyncio.TaskGroup() as group:
        group.create_task(one(1))
        group.create_task(one(2))


@step(runtime="process", cache=False)
def raises_a_batch() -> None:
    raise Batch([KeyError("a"), ExceptionGroup("inner", [OSError(2, "gone", "/a/file")])], 7)


@step(runtime="process", cache=False)
def raises_with_an_error_inside() -> None:
    inner = TimeoutError("slow")
    error = Coded(3, inner)
    error.unsendable = object()  # type: ignore[attr-defined]
    raise error from KeyError("cause")


@step(runtime="process", cache=False)
def opens_what_is_not_there() -> None:
    open("/nonexistent/file").close()


@step(runtime="process", cache=False)
def imports_what_is_not_there() -> None:
    import nonexistent_library  # noqa: F401  # pyright: ignore[reportMissingImports]  # that is the point


@step(runtime="process", cache=False)
def raises_a_group_of_interrupts() -> None:
    raise BaseExceptionGroup("both", [KeyboardInterrupt(), ValueError(1)])


@step(runtime="process", cache=False)
def notes_nonsense(is_list: bool) -> None:
    error = ValueError("odd")
    error.__notes__ = ["\ud800", 5] if is_list else 5  # type: ignore[assignment]
    raise error


@step(runtime="process", cache=False, retry=Retry(max_attempts=3, delay=0, on=(Batch,)))
def succeeds_after_a_batch() -> int:
    if current().attempt < 3:
        raise Batch([ValueError("again")], 1)
    return current().attempt
