"""Exceptions of workers with others inside of them: they come back as themselves, bounded, whatever a worker says."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
import raising_steps as steps

from treadle import Engine, pipeline
from treadle._runtime.isolation.remote_errors import rebuilt
from treadle._runtime.isolation.telling import MOST_WIDE, described
from treadle.contracts import MOST_DEEP, MOST_PARTS, Part, Performed, Raised
from treadle.errors import RemoteError
from treadle.storage import codecs
from treadle_adapters import _wire as wire
from treadle_adapters.process import ProcessExecutor

LIMIT_S = 40


def perform(home: Path, *targets: Any) -> list[Any]:
    """The values of steps that run in one worker, or what they raise."""

    @pipeline
    async def flow() -> list[Any]:
        return [(await asyncio.gather(target(), return_exceptions=True))[0] for target in targets]

    async def main() -> list[Any]:
        executors = {"process": ProcessExecutor(workers=1)}
        async with asyncio.timeout(LIMIT_S), Engine(home, executors=executors) as engine:
            result = await engine.run(flow)
            return list(result.value)

    return asyncio.run(main())


def sent(error: BaseException) -> BaseException:
    """An exception after its way over the wire."""
    answer = wire.frame(wire.Answered(1, described(error)))
    (message,) = wire.Frames().feed(answer)
    assert isinstance(message, wire.Answered)
    assert isinstance(message.outcome, Raised)
    return rebuilt(message.outcome)


# -- from a worker ------------------------------------------------------------------------


def test_groups_come_back_with_their_members(tmp_path: Path) -> None:
    tasks, batch, retried = perform(
        tmp_path, steps.fails_in_a_task_group, steps.raises_a_batch, steps.succeeds_after_a_batch
    )
    assert type(tasks) is ExceptionGroup
    assert [(type(error), error.args) for error in tasks.exceptions] == [(ValueError, (1,)), (ValueError, (2,))]
    assert all("in one" in "".join(error.__notes__) for error in tasks.exceptions)
    assert type(batch) is steps.Batch
    assert batch.code == 7
    caught: list[Any] = []
    try:
        raise batch
    except* FileNotFoundError as found:
        caught.append(found.exceptions[0].exceptions[0].filename)  # type: ignore[union-attr]
    except* KeyError as rest:
        caught.append(rest.exceptions[0].args)
    assert caught == ["/a/file", ("a",)]
    assert retried == 3


def test_errors_in_arguments_and_attributes_and_the_cause_come_back(tmp_path: Path) -> None:
    (error,) = perform(tmp_path, steps.raises_with_an_error_inside)
    assert type(error) is steps.Coded
    assert error.args[0] == 3
    assert type(error.args[1]) is TimeoutError
    assert error.again is error.args[1]
    assert not hasattr(error, "unsendable")
    assert (type(error.__cause__), error.__cause__.args) == (KeyError, ("cause",))


def test_errors_say_the_same_here_as_they_did_there(tmp_path: Path) -> None:
    found = perform(tmp_path, steps.opens_what_is_not_there, steps.imports_what_is_not_there)
    assert (found[0].filename, found[0].errno) == ("/nonexistent/file", 2)
    assert str(found[0]) == "[Errno 2] No such file or directory: '/nonexistent/file'"
    assert found[1].name == "nonexistent_library"


@pytest.mark.parametrize("runtime", ["inline", "process"])
def test_odd_notes_and_groups_with_an_interrupt_fail_the_step_only(tmp_path: Path, runtime: str) -> None:
    @pipeline
    async def flow(target: Any, *args: Any) -> Any:
        return await target.with_options(runtime=runtime)(*args)

    async def main() -> list[Any]:
        executors = {"process": ProcessExecutor(workers=1)}
        async with asyncio.timeout(LIMIT_S), Engine(tmp_path, executors=executors) as engine:
            calls = [(steps.raises_a_group_of_interrupts,), (steps.notes_nonsense, True), (steps.notes_nonsense, False)]
            return [(await engine.run(flow, *call)).error for call in calls]

    group, *odd = asyncio.run(main())
    assert type(group) is BaseExceptionGroup
    assert [type(error) for error in group.exceptions] == [KeyboardInterrupt, ValueError]
    assert [(type(error), error.args) for error in odd] == [(ValueError, ("odd",))] * 2


# -- bounds -------------------------------------------------------------------------------


def test_a_wide_group_loses_members_and_says_so() -> None:
    error = sent(ExceptionGroup("wide", [ValueError(number) for number in range(MOST_WIDE + 10)]))
    assert type(error) is ExceptionGroup
    assert [item.args for item in error.exceptions[:MOST_WIDE]] == [(number,) for number in range(MOST_WIDE)]
    assert len(error.exceptions) == MOST_WIDE + 1
    assert "10 more exceptions" in str(error.exceptions[-1])


def test_more_exceptions_than_may_be_sent_are_summed_up() -> None:
    groups = [ExceptionGroup("inner", [ValueError(number) for number in range(100)]) for _ in range(20)]
    raised = described(ExceptionGroup("outer", groups))
    assert len(raised.parts) == MOST_PARTS
    error = rebuilt(raised)
    assert type(error) is ExceptionGroup
    assert type(error.exceptions[0]) is ExceptionGroup
    assert "too many to be sent" in str(error.exceptions[-1])


def test_large_exceptions_are_sent_in_few_bytes() -> None:
    members = [ValueError("x" * 60_000) for _ in range(400)]
    assert len(wire.frame(wire.Answered(1, described(ExceptionGroup("large", members))))) < 8_000_000


def test_a_deep_group_is_cut_off_at_its_bottom() -> None:
    error: Exception = ValueError("bottom")
    for number in range(200):
        error = ExceptionGroup(str(number), [error])
    found, depth = sent(error), 0
    while isinstance(found, ExceptionGroup):
        found, depth = found.exceptions[0], depth + 1
    assert depth == MOST_DEEP
    assert type(found) is RemoteError


def test_an_exception_that_holds_itself_is_cut_off() -> None:
    error = RuntimeError()
    error.args = ("self", error)
    found = sent(error)
    assert type(found) is RuntimeError
    assert found.args[0] == "self"
    assert type(found.args[1]) is RemoteError


def test_one_exception_in_two_places_is_one_again() -> None:
    shared = ValueError("shared")
    error = sent(ExceptionGroup("twice", [shared, ExceptionGroup("inner", [shared])]))
    assert isinstance(error, ExceptionGroup)
    assert error.exceptions[0] is error.exceptions[1].exceptions[0]  # type: ignore[union-attr]


# -- what a stranger may say --------------------------------------------------------------


def packed(value: Any) -> bytes:
    return bytes(codecs.encode(value, allow_pickle=False).data)


def group(*numbers: Any) -> bytes:
    return packed(["group", [Part(number) for number in numbers]])


LEAF = Raised("builtins:ValueError", "1", arguments=packed([1]))
LIES = {
    "a part that is not there": Raised("builtins:ExceptionGroup", "group", arguments=group(0)),
    "a part that is no number": Raised("builtins:ExceptionGroup", "group", arguments=group("x"), parts=(LEAF,)),
    "a group of nothing": Raised("builtins:ExceptionGroup", "group", arguments=group()),
    "a group of no exceptions": Raised("builtins:ExceptionGroup", "group", arguments=packed(["group", [1]])),
    "a cause that is not there": Raised("builtins:ValueError", "1", arguments=packed([1]), cause=3),
    "a class that is no exception": Raised("os:system", "rm", arguments=packed(["rm"])),
    "an exception that ends generators": Raised("builtins:GeneratorExit", "", arguments=packed([])),
    "attributes that are none": Raised("builtins:ValueError", "1", arguments=packed([1]), state=packed([1])),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_cannot_be_made_again_is_a_remote_error(lie: str) -> None:
    error = rebuilt(LIES[lie])
    assert type(error) is RemoteError
    assert error.type_name == LIES[lie].type_name


def test_parts_refer_to_earlier_ones_only() -> None:
    itself = Raised("builtins:ExceptionGroup", "circle", arguments=group(0))
    later = Raised("builtins:ExceptionGroup", "later", arguments=group(2))
    whole = Raised("builtins:ExceptionGroup", "all", arguments=group(0, 1, 2), parts=(itself, later, LEAF))
    error = rebuilt(whole)
    assert isinstance(error, ExceptionGroup)
    assert [type(item) for item in error.exceptions] == [RemoteError, RemoteError, ValueError]


def test_parts_that_lie_too_deep_are_not_made() -> None:
    parts = [LEAF]
    parts += [Raised("builtins:ExceptionGroup", "", arguments=group(number)) for number in range(MOST_PARTS - 1)]
    error, depth = rebuilt(msgspec.structs.replace(parts[-1], parts=tuple(parts))), 0
    while isinstance(error, BaseExceptionGroup):
        error, depth = error.exceptions[0], depth + 1
    assert depth <= MOST_DEEP
    assert type(error) is RemoteError or error.args == (1,)


@pytest.mark.parametrize(
    "raised",
    [Raised("builtins:ValueError", "", parts=(LEAF,) * (MOST_PARTS + 1)), Raised("a:b", "", notes=("",) * 10_000)],
)
def test_more_parts_than_allowed_are_no_message(raised: Raised) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(raised), type=Performed | Raised)


def test_exceptions_of_this_process_are_never_imported_by_name() -> None:
    member = Raised("antigravity:Whatever", "fly", arguments=packed([]))
    error = rebuilt(Raised("builtins:ExceptionGroup", "group", arguments=group(0), parts=(member,)))
    assert isinstance(error, ExceptionGroup)
    assert type(error.exceptions[0]) is RemoteError
