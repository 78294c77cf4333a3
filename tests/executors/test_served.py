"""Steps in processes below a real uvicorn, on both of its loops: they answer, and end with it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")
LIMIT_S = 40


@pytest.mark.linux
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_handlers_await_steps_in_processes(tmp_path: Path, loop: str, gone: Callable[[set[int]], set[int]]) -> None:
    pytest.importorskip(loop)
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)
    port = listener.getsockname()[1]

    def ask(path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=LIMIT_S) as answer:
            return json.load(answer)

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [
        sys.executable, "-m", "uvicorn", "served:app", "--loop", loop, "--fd", str(listener.fileno()),
        "--log-level", "warning",
    ]  # fmt: skip
    with subprocess.Popen(command, env=environment, cwd=tmp_path, pass_fds=(listener.fileno(),)) as server:
        listener.close()
        try:
            with ThreadPoolExecutor(8) as clients:
                answers = list(clients.map(ask, map(str, range(24))))
            assert [answer[0] for answer in answers] == list(range(1, 25))
            workers = {answer[1] for answer in answers}
            assert len(workers) <= 2
            assert {answer[2] for answer in answers} == {server.pid}
            assert ask("die") == "StepCrashed"
            assert ask("1")[0] == 2
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(LIMIT_S)
    assert gone(workers) == set()
