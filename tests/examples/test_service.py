"""The example service, driven through real sockets: answers, clients that hang up, SIGTERM under load, a restart."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from treadle import Engine, RunResult

httpx = pytest.importorskip("httpx")
pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

ORDER = {"item": "tea", "count": 2}
GRACE_S = 1
ENDS_WITHIN_S = 20
"""Uvicorn's grace, the engine's close_timeout of 3 s, and room for a busy machine."""


class Service:
    """One process of the service, and how to talk to it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self.port = process, port
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20)

    def health(self) -> dict[str, Any]:
        """What it says of itself."""
        answer: dict[str, Any] = self.client.get("/health").json()
        return answer

    def send(self, path: str) -> socket.socket:
        """Send an order and do not read the answer."""
        body = json.dumps(ORDER).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        connection = socket.create_connection(("127.0.0.1", self.port))
        connection.sendall(head + body)
        return connection

    def terminate(self) -> float:
        """SIGTERM; gives the seconds that it took to end."""
        start = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(ENDS_WITHIN_S)
        return time.monotonic() - start


@pytest.fixture
def serve(root: Path, environment: dict[str, str]) -> Callable[..., Any]:
    """Starts the service; the socket listens before it does, so that nobody has to poll for its start."""

    @contextmanager
    def serving(bank_takes_s: float) -> Iterator[Service]:
        listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        command = [
            sys.executable, "-m", "uvicorn", "--app-dir", str(root / "docs/examples"), "service:app",
            "--fd", str(listener.fileno()), "--timeout-graceful-shutdown", str(GRACE_S), "--log-level", "critical",
        ]  # fmt: skip
        child = {**environment, "BANK_TAKES_S": str(bank_takes_s)}
        process = subprocess.Popen(command, env=child, pass_fds=[listener.fileno()])
        service = Service(process, listener.getsockname()[1])
        listener.close()
        try:
            yield service
        finally:
            service.client.close()
            process.kill()
            process.wait()

    return serving


def until(holds: Callable[[], bool], seconds: float = 20) -> None:
    """Wait in real time for something that another process does."""
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, "it did not come true in time"
        time.sleep(0.02)


def runs_of(home: Path) -> list[RunResult[Any]]:
    """What the log of a dead service says; opening it marks as interrupted what that left."""

    async def look() -> list[RunResult[Any]]:
        async with Engine(home) as engine:
            return await engine.runs(limit=1000)

    return asyncio.run(look())


@pytest.mark.slow
def test_orders_are_answered_with_their_value_and_jobs_with_an_id(serve: Callable[..., Any]) -> None:
    with serve(bank_takes_s=0) as service:
        client = service.client
        assert client.post("/orders", json=ORDER).json() == {"item": "tea", "paid": 700}
        key = {"idempotency-key": "one"}
        accepted = client.post("/jobs", json=ORDER, headers=key)
        assert accepted.status_code == 202
        where = accepted.headers["location"]
        until(lambda: client.get(where).json()["status"] == "succeeded")
        assert client.get(where).json()["value"] == {"item": "tea", "paid": 700}
        assert client.get(where).json()["steps"] == dict.fromkeys(("reserve", "charge", "confirm"), "succeeded")
        assert client.post("/jobs", json=ORDER, headers=key).json() == accepted.json()
        assert client.post("/jobs", json={"item": "tea", "count": 3}, headers=key).status_code == 409
        assert client.get("/runs/unknown").status_code == 404
        assert service.health()["status"] == "ok"


@pytest.mark.slow
def test_clients_that_hang_up_leave_no_run_behind(serve: Callable[..., Any], environment: dict[str, str]) -> None:
    with serve(bank_takes_s=60) as service:
        clients = [service.send("/orders") for _ in range(50)]
        until(lambda: service.health()["runs_running"] == 50)
        for number, client in enumerate(clients):
            if number % 2:  # every other one resets the connection
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        until(lambda: service.health()["runs_running"] == 0)
        assert service.health()["status"] == "ok"
        assert service.terminate() < ENDS_WITHIN_S
    runs = runs_of(Path(environment["TREADLE_HOME"]))
    assert [run.status for run in runs] == ["cancelled"] * 50
    assert {call.status for run in runs for call in run.step_results.values()} <= {"succeeded", "cancelled"}


@pytest.mark.slow
@pytest.mark.crash
def test_sigterm_under_load_ends_the_process_and_a_restart_recovers_what_it_interrupted(
    serve: Callable[..., Any], environment: dict[str, str]
) -> None:
    home = Path(environment["TREADLE_HOME"])
    with serve(bank_takes_s=60) as service:
        jobs = [service.client.post("/jobs", json={**ORDER, "count": n}).json()["id"] for n in range(20)]
        clients = [service.send("/orders") for _ in range(20)]
        until(lambda: service.health()["runs_running"] == 40)
        service.terminate()
        for client in clients:
            client.close()
    statuses = {run.run_id: run.status for run in runs_of(home)}
    assert len(statuses) == 40
    assert set(statuses.values()) <= {"cancelled", "interrupted"}
    assert {statuses[job] for job in jobs} == {"interrupted"}  # nobody has cancelled those

    with serve(bank_takes_s=0) as service:
        until(lambda: all(service.client.get(f"/runs/{job}").json()["status"] == "succeeded" for job in jobs))
        until(lambda: service.health()["runs_running"] == 0)
        service.terminate()
    after = {run.run_id: run for run in runs_of(home)}
    assert set(after) == set(statuses)
    assert {run.status for run in after.values()} <= {"succeeded", "cancelled"}
    for number, job in enumerate(jobs):
        assert after[job].value == {"item": "tea", "paid": 350 * number}
        assert after[job].step_results["reserve"].reused


@pytest.mark.slow
@pytest.mark.crash
def test_a_killed_service_is_recovered_by_the_next_one(serve: Callable[..., Any], environment: dict[str, str]) -> None:
    with serve(bank_takes_s=60) as service:
        job = service.client.post("/jobs", json=ORDER).json()["id"]
        until(lambda: service.client.get(f"/runs/{job}").json()["steps"].get("reserve") == "succeeded")
        os.kill(service.process.pid, signal.SIGKILL)
        service.process.wait(ENDS_WITHIN_S)
    with serve(bank_takes_s=0) as service:
        until(lambda: service.client.get(f"/runs/{job}").json()["status"] == "succeeded")
        assert service.client.get(f"/runs/{job}").json()["value"] == {"item": "tea", "paid": 700}
