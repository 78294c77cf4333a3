"""What is left of an error when it is read from the log: type, text, attributes; nothing of the user's is called."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from treadle import EncodeError, Engine, Secret, pipeline, step
from treadle.errors import RemoteError, RunTimeout, StepTimeout, UpstreamFailed


class Refused(Exception):
    """Is made of other arguments than those that it passes on."""

    made = 0

    def __init__(self, code: int, reason: str) -> None:
        type(self).made += 1
        super().__init__(f"{code}: {reason}")
        self.code, self.reason, self.lock = code, reason, threading.Lock()


@step(timeout=0.01, cache=False)
async def endless() -> None:
    await asyncio.sleep(60)


@step(cache=False)
async def unencodable() -> Any:
    return {"lock": [threading.Lock()]}


@step(cache=False)
async def missing_file() -> bytes:
    return Path("/there/is/no/such/file").read_bytes()


@step(cache=False)
async def refused() -> None:
    raise Refused(403, "closed")


@step(cache=False)
async def tells(token: Secret[str]) -> None:
    error = ValueError("not allowed")
    error.token = token.value  # type: ignore[attr-defined]
    raise error


@pipeline
async def failing(which: str) -> None:
    await {"endless": endless, "unencodable": unencodable, "missing_file": missing_file, "refused": refused}[which]()


@pipeline(timeout=0.01)
async def too_long() -> None:
    await asyncio.sleep(60)


@pipeline
async def telling(token: Secret[str]) -> None:
    await tells(token)


async def recorded(home: str, target: Any, *args: Any) -> Any:
    """The error of a run, as another engine reads it."""
    async with Engine(home) as engine:
        result = await engine.run(target, *args)
        assert not result.success
    async with Engine(home) as engine:
        return (await engine.get_run(result.run_id)).error


@pytest.mark.asyncio
async def test_a_timeout_still_says_how_long_it_was(home: str) -> None:
    error = await recorded(home, failing, "endless")
    assert (type(error), error.timeout_s) == (StepTimeout, 0.01)
    assert error.what == "call endless took longer than its timeout of 0.01 s"
    assert error.fix == "raise the step's timeout, or make the step faster"
    assert str(error) == f"{error.what}. Fix: {error.fix}"
    error = await recorded(home, too_long)
    assert (type(error), error.timeout_s) == (RunTimeout, 0.01)


@pytest.mark.asyncio
async def test_an_encode_error_still_names_the_path_but_has_no_object(home: str) -> None:
    error = await recorded(home, failing, "unencodable")
    assert (type(error), error.path, error.value) == (EncodeError, "value['lock'][0]", None)


@pytest.mark.asyncio
async def test_a_missing_file_is_still_named(home: str) -> None:
    error = await recorded(home, failing, "missing_file")
    assert (type(error), error.filename) == (FileNotFoundError, "/there/is/no/such/file")
    assert str(error) == "[Errno 2] No such file or directory: '/there/is/no/such/file'"


@pytest.mark.asyncio
async def test_an_exception_with_a_signature_of_its_own_is_itself_without_being_called(home: str) -> None:
    Refused.made = 0
    error = await recorded(home, failing, "refused")
    assert (type(error), str(error), error.code, error.reason) == (Refused, "403: closed", 403, "closed")
    assert not hasattr(error, "lock")
    assert Refused.made == 1


@pytest.mark.asyncio
async def test_an_error_that_knows_a_secret_keeps_only_what_is_none(home: str) -> None:
    error = await recorded(home, telling, Secret("open-sesame"))
    assert (type(error), str(error)) == (ValueError, "not allowed")
    assert not hasattr(error, "token")
    assert all(b"open-sesame" not in file.read_bytes() for file in Path(home).rglob("*") if file.is_file())


@pytest.mark.asyncio
async def test_a_run_that_is_joined_after_its_failure_raises_the_error_with_its_attributes(home: str) -> None:
    once = failing.with_options(idempotency_key="k")
    for _ in range(2):
        async with Engine(home):
            with pytest.raises(StepTimeout) as caught:
                await once("endless")
            assert caught.value.timeout_s == 0.01


@pytest.mark.asyncio
async def test_what_cannot_be_rebuilt_is_a_remote_error(home: str) -> None:
    @step(cache=False)
    async def local() -> None:
        class Local(Exception): ...

        raise Local("here only")

    @pipeline
    async def run() -> None:
        await local()

    error = await recorded(home, run)
    assert type(error) is RemoteError
    assert error.type_name.endswith("local.<locals>.Local")
    assert "here only" in str(error)


@step(cache=False)
async def after(value: Any) -> None: ...


@pipeline(failure_mode="continue")
async def dependent() -> None:
    after.submit(after.submit(refused.submit()))


@pytest.mark.asyncio
async def test_a_skipped_call_still_has_the_first_error_as_its_cause(home: str) -> None:
    async with Engine(home) as engine:
        live = await engine.run(dependent)
        assert not live.success
        said = [str(live.step_results[name].error) for name in ("after", "after_2")]
    async with Engine(home) as engine:
        kept = await engine.get_run(live.run_id)
    for name, text in zip(("after", "after_2"), said, strict=True):
        error: Any = kept.step_results[name].error
        assert (type(error), str(error), error.upstream) == (UpstreamFailed, text, "refused")
        assert type(error.__cause__) is Refused
        assert "mend refused; its error is the cause of this one" in text
