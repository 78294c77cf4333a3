"""Which process something belongs to, written so that another one of the machine can tell whether it still lives."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path


def me() -> str:
    """This process: boot of the machine, namespace of process ids, process id, and when it began."""
    return f"{_here()}.{os.getpid()}.{_begun(os.getpid())}"


def is_dead(owner: str) -> bool:
    """Whether an owner is known to be no more; False for what cannot be known from here.

    >>> is_dead(me()), is_dead("another-machine.1.1")
    (False, False)
    """
    here, _, process = owner.partition(".")
    pid, _, begun = process.partition(".")
    return here == _here() and pid.isdecimal() and _begun(int(pid)) != begun


@cache
def _here() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")[:12]
        return f"{boot}_{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"unknown_{os.getpid()}"


def _begun(pid: int) -> str:
    """When a process began, in ticks since the boot; empty if there is none, or only what its parent has not buried."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == b"Z" else fields[19].decode()
