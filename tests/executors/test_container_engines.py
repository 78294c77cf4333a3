"""How long a container engine that is slow, or frozen, is waited for; one that answers as told stands for it here."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from treadle.contracts import Attempt
from treadle.errors import ExecutorUnavailable
from treadle_adapters import _docker
from treadle_adapters._docker import Daemon
from treadle_adapters.container import ContainerExecutor

pytestmark = pytest.mark.linux
VERSION = (200, b'{"ApiVersion": "1.41"}')


class Told:
    """Answers requests at a socket with the statuses that it was told for them, and then not at all."""

    def __init__(self, place: Path, **answers: list[tuple[int, bytes]]) -> None:
        self._place, self._answers = place, answers
        self.address = f"unix://{place}"
        self.asked: list[str] = []

    async def __aenter__(self) -> Told:
        self._server = await asyncio.start_unix_server(self._serve, str(self._place))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, asked: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        while head := await _head(asked):
            method, path = head.split()[:2]
            kind = "version" if path.endswith("/version") else method
            self.asked.append(kind)
            told = [VERSION] if kind == "version" else self._answers.get(kind, [])
            if not told:
                await asked.read()  # until nobody waits any more
                break
            status, body = told.pop(0)
            lines = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            answers.write(lines.encode() + body)
        answers.close()


async def _head(asked: asyncio.StreamReader) -> str:
    try:
        return (await asked.readuntil(b"\r\n\r\n")).decode()
    except asyncio.IncompleteReadError:
        return ""


@pytest.fixture
def place() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # short: paths of sockets end at 107 bytes
    yield folder / "s"
    shutil.rmtree(folder)


@pytest.mark.asyncio
async def test_a_slow_engine_has_its_time_to_remove_from_its_first_answer_on(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_docker, "GONE_S", 0.0)
    busy = b'{"message": "removal is in progress"}'
    async with Told(place, DELETE=[(409, busy), (404, busy)]) as told:
        daemon = Daemon(told.address)
        try:
            await daemon.remove("one")
        finally:
            await daemon.close()
        assert told.asked.count("DELETE") == 2
        assert not daemon.unsure


@pytest.mark.asyncio
async def test_a_frozen_engine_is_not_waited_for_once_more_at_the_close(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_docker, "REQUEST_S", 2.0)
    attempt = Attempt("run", "call", "step", 1, "token", "module", "name", store=tempfile.gettempdir())
    sink: Any = SimpleNamespace()
    async with Told(place, GET=[(200, b"[]")]) as told:
        executor = ContainerExecutor("image", docker_host=told.address)
        await executor.open()
        try:
            with pytest.raises(ExecutorUnavailable, match="does not answer"):
                await executor.perform(attempt, sink)
        finally:
            await executor.close()
        assert told.asked.count("POST") == 1
        assert told.asked.count("GET") == 1  # what was listed when it was opened
