"""What steps say is kept with their run; what treadle says goes to its logger, and nothing is printed."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

import pytest

from treadle import Engine, pipeline, step


@step(cache=False)
async def says(text: str) -> None:
    logging.getLogger("somebody").warning("said %s", text)
    await asyncio.sleep(0)
    logging.getLogger("somebody").error("and %s again", text)


@step(cache=False)
def says_in_a_thread(text: str) -> None:
    logging.getLogger("somebody").warning("thread said %s", text)


@step(cache=False)
def prints(text: str) -> None:
    print("out", text)
    print("err", text, file=sys.stderr)


@pipeline
async def talkative(text: str) -> None:
    logging.getLogger("somebody").warning("outside of steps")
    await asyncio.gather(says(text), says_in_a_thread(text))


@pipeline
async def printing(text: str) -> None:
    await prints(text)


@pytest.mark.asyncio
async def test_logging_in_steps_is_kept_by_call(home: str) -> None:
    async with Engine(home) as engine:
        result = await engine.run(talkative, "a")
        records: list[Any] = await engine.logs(result.run_id)
        assert {(r.call, r.level, r.message, r.stream) for r in records} == {
            ("says", "warning", "said a", "log"),
            ("says", "error", "and a again", "log"),
            ("says_in_a_thread", "warning", "thread said a", "log"),
        }
        assert {(r.attempt, r.step) for r in records} == {(1, "says"), (1, "says_in_a_thread")}
        assert all(r.at > 0 for r in records)
        assert [r.message for r in await engine.logs(result.run_id, step="says_in_a_thread")] == ["thread said a"]  # type: ignore[attr-defined]  # a log record


@pytest.mark.asyncio
async def test_logs_can_be_asked_for_one_call_of_a_map(home: str) -> None:
    @pipeline
    async def several() -> None:
        await says_in_a_thread.map(["a", "b", "c"])

    async with Engine(home) as engine:
        result = await engine.run(several)
        (record,) = await engine.logs(result.run_id, step="says_in_a_thread[1]")
        assert record.message == "thread said b"  # type: ignore[attr-defined]  # a log record
        assert len(await engine.logs(result.run_id, "says_in_a_thread")) == 3


@pytest.mark.asyncio
async def test_runs_at_once_do_not_mix_their_logs(home: str) -> None:
    async with Engine(home) as engine:
        results = await asyncio.gather(*(engine.run(talkative, str(x)) for x in range(5)))
        for x, result in enumerate(results):
            records: list[Any] = await engine.logs(result.run_id)
            assert len(records) == 3
            assert all(str(x) in record.message for record in records)


@pytest.mark.asyncio
async def test_two_engines_do_not_mix_their_logs(tmp_path: Any) -> None:
    async with Engine(tmp_path / "a") as a, Engine(tmp_path / "b") as b:
        one, two = await asyncio.gather(a.run(talkative, "one"), b.run(talkative, "two"))
        assert len(await a.logs(one.run_id)) == 3
        assert len(await b.logs(two.run_id)) == 3


@pytest.mark.asyncio
async def test_logging_goes_where_it_went_before_too(home: str, caplog: pytest.LogCaptureFixture) -> None:
    async with Engine(home) as engine:
        await engine.run(talkative, "a")
    assert "said a" in caplog.text
    assert "outside of steps" in caplog.text


@pytest.mark.asyncio
async def test_the_handler_is_gone_when_the_engine_is_closed(home: str) -> None:
    before = list(logging.getLogger().handlers)
    async with Engine(home):
        assert len(logging.getLogger().handlers) == len(before) + 1
    assert logging.getLogger().handlers == before


@pytest.mark.asyncio
async def test_a_record_that_cannot_be_formatted_is_kept_as_it_is(home: str) -> None:
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    @step(cache=False)
    async def odd() -> None:
        record = logging.LogRecord("x", logging.WARNING, "file", 1, "%s %s", (1,), None)
        for handler in logging.getLogger().handlers:
            if type(handler).__module__.startswith("treadle"):
                handler.handle(record)

    @pipeline
    async def one() -> None:
        await odd()

    async with Engine(home) as engine:
        result = await engine.run(one)
        assert [record.message for record in await engine.logs(result.run_id)] == ["%s %s"]  # type: ignore[attr-defined]  # a log record


@pytest.mark.asyncio
async def test_printing_is_kept_only_if_asked_for_and_always_passed_on(
    home: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with Engine(home) as engine:
        result = await engine.run(printing, "a")
        assert await engine.logs(result.run_id) == []
    original = sys.stdout
    async with Engine(home, capture_print=True) as engine:
        print("not in a step")
        result = await engine.run(printing, "b")
        records: list[Any] = await engine.logs(result.run_id)
        assert {(r.stream, r.message, r.call) for r in records} == {
            ("stdout", "out b", "prints"),
            ("stderr", "err b", "prints"),
        }
    assert sys.stdout is original
    shown = capsys.readouterr()
    assert shown.out == "out a\nnot in a step\nout b\n"
    assert shown.err == "err a\nerr b\n"


@pytest.mark.asyncio
async def test_a_line_printed_in_pieces_is_one_record(home: str) -> None:
    @step(cache=False)
    def pieces() -> None:
        print("one", end=" ")
        print("two", "three", sep="-", end="")
        print()
        print("last", end="")

    @pipeline
    async def one() -> None:
        await pieces()

    async with Engine(home, capture_print=True) as engine:
        result = await engine.run(one)
        records: list[Any] = await engine.logs(result.run_id)
        assert [record.message for record in records] == ["one two-three", "last"]


@pytest.mark.asyncio
async def test_structlog_output_of_a_step_is_kept(home: str) -> None:
    structlog = pytest.importorskip("structlog")

    @step(cache=False)
    async def structured() -> None:
        structlog.get_logger().info("structured words", number=7)

    @pipeline
    async def one() -> None:
        structlog.get_logger().info("outside of steps")
        await structured()

    configuration = structlog.get_config()
    async with Engine(home) as engine:
        result = await engine.run(one)
        (record,) = await engine.logs(result.run_id)
        assert "structured words" in record.message  # type: ignore[attr-defined]  # a log record
        assert "7" in record.message  # type: ignore[attr-defined]  # a log record
        assert (record.call, record.level, record.stream) == ("structured", "info", "log")  # type: ignore[attr-defined]  # a log record
    assert structlog.get_config() == configuration


@pytest.mark.asyncio
async def test_structlog_over_logging_is_kept_once(home: str) -> None:
    structlog = pytest.importorskip("structlog")
    configuration = structlog.get_config()
    structlog.configure(logger_factory=structlog.stdlib.LoggerFactory(), wrapper_class=structlog.stdlib.BoundLogger)
    try:

        @step(cache=False)
        async def structured() -> None:
            structlog.get_logger("over").warning("only once")

        @pipeline
        async def one() -> None:
            await structured()

        async with Engine(home) as engine:
            result = await engine.run(one)
            records: list[Any] = await engine.logs(result.run_id)
            assert len([record for record in records if "only once" in record.message]) == 1
    finally:
        structlog.reset_defaults()
        structlog.configure(**configuration)


# -- treadle's own logger -----------------------------------------------------------------


@step(cache=False)
async def fails() -> None:
    raise ValueError("no")


@pipeline
async def failing() -> None:
    await fails()


@pytest.mark.asyncio
async def test_start_end_and_failure_of_runs_go_to_the_treadle_logger(
    home: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="treadle")
    async with Engine(home) as engine:
        good = await engine.run(talkative, "a")
        bad = await engine.run(failing)
        assert bad.status == "failed"
    records = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "treadle"]
    for wanted in (
        ("INFO", f"run {good.run_id} of talkative started"),
        ("INFO", f"run {good.run_id} of talkative succeeded"),
        ("WARNING", f"run {bad.run_id} of failing failed: ValueError: no"),
    ):
        assert wanted in records


@pytest.mark.asyncio
async def test_nothing_is_printed_by_itself(home: str, capfd: pytest.CaptureFixture[str]) -> None:
    async with Engine(home) as engine:
        result = await engine.run(failing)
        assert result.status == "failed"
    assert capfd.readouterr() == ("", "")
