"""Whose child a process is, as /proc tells it; for the nursery, which kills some, and for workers, which count some."""

from __future__ import annotations

import os


def children_of(parent: int, *, ended: bool = False) -> list[int]:
    """Children of a process that live, or those that have ended and were not waited for."""
    found: list[int] = []
    try:
        entries = os.listdir("/proc")
    except OSError:
        return found
    for entry in entries:
        if entry.isdecimal():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:
                    # The second field is the program's name in brackets, and may hold anything.
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent and (fields[0] == b"Z") is ended:
                found.append(int(entry))
    return found
