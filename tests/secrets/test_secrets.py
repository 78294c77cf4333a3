"""``Secret``: what is never shown, never stored, and yet makes another call of the step."""

from __future__ import annotations

import asyncio
import copy
import logging
import pickle
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from treadle import Engine, RunResult, Secret, current, pipeline, step
from treadle.errors import ArgumentNotStorable, EncodeError, StoreUnwritable

TEXT = "hunter2-s3cr3t-t0ken"
TOKEN = Secret(TEXT)


class Seen:
    """What bodies have got; no plain data, so its content is no part of a fingerprint."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    def add(self, value: Any) -> None:
        self.values.append(value)


seen = Seen()


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    seen.values.clear()


@step
async def login(user: str, token: Secret[str]) -> str:
    seen.add(token.value)
    return f"{user} is in"


@pipeline
async def logins(user: str) -> str:
    return await login(user, TOKEN)


def _run(home: Path, act: Callable[[Engine], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        async with Engine(home) as engine:
            return await act(engine)

    return asyncio.run(main())


def _written(home: Path) -> bytes:
    """All bytes of a home, but for the key itself."""
    return b"".join(
        path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file() and path.name != "secret.key"
    )


def test_a_secret_shows_itself_nowhere() -> None:
    shown = [repr(TOKEN), str(TOKEN), f"{TOKEN}", f"{TOKEN:>10}", f"{TOKEN!r}", repr([TOKEN, {"a": TOKEN}])]
    assert not [text for text in shown if TEXT in text]
    assert TOKEN.value == TEXT


def test_a_secret_is_equal_to_one_of_the_same_value_and_to_nothing_else() -> None:
    assert Secret(TEXT) == TOKEN
    assert hash(TOKEN) == hash(Secret(Secret(TEXT)))
    assert TOKEN != TEXT
    assert Secret("other") != TOKEN


def test_a_copy_of_a_secret_is_the_secret_and_a_pickle_of_one_is_refused() -> None:
    assert copy.copy(TOKEN) is TOKEN
    assert copy.deepcopy({"a": [TOKEN]})["a"][0] is TOKEN
    with pytest.raises(TypeError, match="a Secret is not pickled: pass it to steps as an argument"):
        pickle.dumps(TOKEN)


def test_a_step_gets_the_secret_and_is_served_from_the_cache_for_the_same_one_only(tmp_path: Path) -> None:
    @pipeline
    async def twice(user: str) -> list[str]:
        return [await login(user, Secret("other-token")), await login(user, Secret(TEXT))]

    async def act(engine: Engine) -> list[RunResult]:
        return [await engine.run(logins, "ann"), await engine.run(twice, "ann")]

    first, second = _run(tmp_path / "home", act)
    assert seen.values == [TEXT, "other-token"]
    assert first.step_results["login"].status == "succeeded"
    assert [second.step_results[name].status for name in ("login", "login_2")] == ["succeeded", "cached"]


def test_a_hit_in_another_process_needs_the_same_home(tmp_path: Path) -> None:
    async def act(engine: Engine) -> RunResult:
        return await engine.run(logins, "ann")

    results = [_run(tmp_path / name, act) for name in ("one", "one", "two")]
    assert [result.step_results["login"].cached for result in results] == [False, True, False]


def test_the_same_secret_has_other_digests_in_another_home(tmp_path: Path) -> None:
    async def act(engine: Engine) -> str:
        result = await engine.run(logins, "ann")
        return str(result.step_results["login"].inputs["token"].digest)

    assert _run(tmp_path / "one", act) != _run(tmp_path / "two", act)


def test_a_secret_in_a_container_counts_with_it_and_is_not_stored_either(tmp_path: Path) -> None:
    @step
    async def connect(options: dict[str, Any]) -> int:
        seen.add(options["auth"][1].value)
        return len(options)

    @pipeline
    async def connects(token: str) -> int:
        return await connect({"host": "db", "auth": ["ann", Secret(token)]})

    async def act(engine: Engine) -> list[str]:
        results = [await engine.run(connects, token) for token in ("t0ken-one", "t0ken-one", "t0ken-two")]
        return [result.step_results["connect"].status for result in results]

    assert _run(tmp_path / "home", act) == ["succeeded", "cached", "succeeded"]
    assert seen.values == ["t0ken-one", "t0ken-two"]


def test_a_step_that_closes_over_a_secret_is_another_step_for_another_secret(tmp_path: Path) -> None:
    def made(secret: Secret[str]) -> Any:
        @step
        async def ask() -> str:
            seen.add(secret.value)
            return "asked"

        @pipeline
        async def asks() -> str:
            return await ask()

        return asks

    async def act(engine: Engine) -> list[bool]:
        results = [await engine.run(made(Secret(text))) for text in ("t0ken-one", "t0ken-one", "t0ken-two")]
        return [result.step_results["ask"].cached for result in results]

    assert _run(tmp_path / "home", act) == [False, True, False]


def test_a_step_with_a_secret_has_the_identity_of_each_home_that_it_runs_in(tmp_path: Path) -> None:
    @step
    async def ask(token: Secret[str] = TOKEN) -> str:
        seen.add(token.value)
        return "asked"

    @pipeline
    async def asks() -> str:
        return await ask()

    async def act(engine: Engine) -> bool:
        return (await engine.run(asks)).step_results["ask"].cached

    assert [_run(tmp_path / name, act) for name in ("one", "two", "one", "two")] == [False, False, True, True]


def test_nothing_in_a_home_holds_a_secret_whatever_a_step_does_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @step(cache=False)
    async def careless(token: Secret[str]) -> int:
        print(f"using {token.value}")
        logging.getLogger("app").warning("token=%s", token.value)
        current().log_metadata(header={"Authorization": f"Bearer {token.value}"}, tokens=[token.value])
        raise ValueError(f"{token.value} was refused", token.value)

    @pipeline
    async def run(token: Secret[str]) -> int:
        return await careless(token)

    async def main() -> list[Any]:
        async with Engine(tmp_path / "home", capture_print=True) as engine:
            result = await engine.run(run, TOKEN)
            assert not result.success
            said = await engine.logs(result.run_id)
            return [str(result), [record.message for record in said], result.step_results["careless"].metadata]

    shown, said, metadata = asyncio.run(main())
    assert TEXT not in shown
    assert sorted(said) == ["token=***", "using ***"]
    assert metadata == {"header": {"Authorization": "Bearer ***"}, "tokens": ["***"]}
    assert TEXT.encode() not in _written(tmp_path / "home")
    assert TEXT in capsys.readouterr().out  # the step's own output passes through, as it always does


def test_the_error_that_callers_get_is_the_one_that_was_raised(tmp_path: Path) -> None:
    @step(cache=False)
    async def refuse(token: Secret[str]) -> int:
        raise ValueError(token.value)

    @pipeline
    async def run() -> int:
        return await refuse(TOKEN)

    async def act(engine: Engine) -> RunResult:
        return await engine.run(run)

    result = _run(tmp_path / "home", act)
    assert result.error.args == (TEXT,)
    assert TEXT.encode() not in _written(tmp_path / "home")


def test_returning_a_secret_is_refused_with_what_to_do_instead(tmp_path: Path) -> None:
    @step
    async def leak() -> dict[str, Any]:
        return {"token": [TOKEN]}

    @pipeline
    async def run() -> Any:
        return await leak()

    async def act(engine: Engine) -> RunResult:
        return await engine.run(run)

    error = _run(tmp_path / "home", act).error
    assert isinstance(error, EncodeError)
    assert "value['token'][0] cannot be stored: it is a treadle.secret.Secret" in str(error)
    assert "let the step return what it made with it, not the secret itself" in str(error)
    assert "persist=False" in str(error)


def test_a_secret_that_is_not_persisted_goes_from_step_to_step(tmp_path: Path) -> None:
    @step(persist=False)
    async def fetch() -> Secret[str]:
        return Secret(TEXT)

    @pipeline
    async def run() -> str:
        return await login("ann", fetch.submit())  # type: ignore[arg-type]

    async def act(engine: Engine) -> RunResult:
        return await engine.run(run)

    assert _run(tmp_path / "home", act).value == "ann is in"
    assert seen.values == [TEXT]
    assert TEXT.encode() not in _written(tmp_path / "home")


def test_a_run_with_a_secret_among_its_arguments_cannot_be_resumed_and_says_so(tmp_path: Path) -> None:
    @pipeline
    async def run(token: Secret[str]) -> str:
        return await login("ann", token)

    async def act(engine: Engine) -> RunResult:
        result = await engine.run(run, TOKEN)
        with pytest.raises(ArgumentNotStorable, match="argument token cannot be stored"):
            await engine.start(run.with_options(idempotency_key="k"), TOKEN)
        return result

    assert _run(tmp_path / "home", act).recoverable is False
    assert TEXT.encode() not in _written(tmp_path / "home")


def test_the_key_of_a_home_is_private_and_made_when_it_is_needed(tmp_path: Path) -> None:
    home = tmp_path / "home"

    @step
    async def plain(x: int) -> int:
        return x

    @pipeline
    async def without(x: int) -> int:
        return await plain(x)

    async def bare(engine: Engine) -> None:
        await engine.run(without, 1)

    async def secret(engine: Engine) -> None:
        await engine.run(logins, "ann")

    _run(home, bare)
    assert not (home / "secret.key").exists()
    _run(home, secret)
    key = home / "secret.key"
    assert (key.stat().st_mode & 0o777, key.stat().st_size) == (0o600, 32)
    assert not list((home / "tmp").iterdir())


def test_a_key_that_is_damaged_is_refused_by_name(tmp_path: Path) -> None:
    home = tmp_path / "home"

    async def act(engine: Engine) -> RunResult:
        return await engine.run(logins, "ann")

    _run(home, act)
    (home / "secret.key").write_bytes(b"short")
    error = _run(home, act).error
    assert isinstance(error, StoreUnwritable)
    assert "secret.key holds 5 bytes, and a key has 32" in str(error)


def test_an_engine_in_memory_has_a_key_of_its_own() -> None:
    async def main() -> list[bool]:
        async with Engine("memory://") as engine:
            return [(await engine.run(logins, "ann")).step_results["login"].cached for _ in range(2)]

    assert asyncio.run(main()) == [False, True]


def test_short_secrets_are_not_looked_for_in_what_is_said(tmp_path: Path) -> None:
    short = Secret("a")

    @step(cache=False)
    async def says(token: Secret[str]) -> str:
        logging.getLogger("app").warning("a line with many letters")
        return "banana"

    @pipeline
    async def run() -> str:
        return await says(short)

    async def main() -> list[str]:
        async with Engine(tmp_path / "home") as engine:
            result = await engine.run(run)
            return [record.message for record in await engine.logs(result.run_id)]

    assert asyncio.run(main()) == ["a line with many letters"]
