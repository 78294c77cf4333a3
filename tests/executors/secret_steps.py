"""Steps that are given secrets, for workers to import."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from treadle import Secret, current, step


@step(runtime="process")
def sign(text: str, token: Secret[str]) -> str:
    print(f"signing with {token.value}")
    shown = Path("/proc/self/cmdline").read_bytes() + Path("/proc/self/environ").read_bytes()
    assert token.value.encode() not in shown
    assert token.value not in "".join(os.environ.values())
    return f"{text}/{len(token.value)}/{token}"


@step(runtime="process", cache=False)
def sign_with(options: dict[str, Any]) -> int:
    return len(options["tokens"][0].value)


@step(runtime="process", cache=False)
def refuse(token: Secret[str]) -> str:
    current().log_metadata(used=token.value)
    raise ValueError(f"no {token.value} here", token.value)


@step(runtime="process", cache=False)
def give_back(token: Secret[str]) -> Secret[str]:
    return token
