"""An independent reader of a home's log that says what is wrong with it; it imports nothing of treadle.

Everything it knows of the format comes from docs/design.md and the docstrings of ``treadle.events``: rows of ``log``
are segments ``(seq, run, count, first_artifact, body)``, a body is a msgpack array of events, and an event is an
array that begins with its tag. So a fault of the engine's own reader cannot hide a fault of its writer.

    python tests/checker.py HOME ...
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from blake3 import blake3

APPLICATION_ID = 0x74726431
DATABASE = "treadle.db"

ACCEPTED, RESUMED, SUCCEEDED, FAILED, CANCELLED, INTERRUPTED = range(1, 7)
SCHEDULED, STARTED, COMPLETED, CACHED, REUSED, RETRYING, CALL_FAILED, SKIPPED, CALL_CANCELLED, CALL_INTERRUPTED = range(
    20, 30
)
FELL_BACK, UNMADE, DAMAGE = 30, 31, 44
BREAKER_OPENED, BREAKER_HALF_OPENED, BREAKER_CLOSED = 45, 46, 47
CLAMPED = 50
RUN_ENDS = {SUCCEEDED: "succeeded", FAILED: "failed", CANCELLED: "cancelled", INTERRUPTED: "interrupted"}
CALL_ENDS = {COMPLETED, CACHED, CALL_FAILED, SKIPPED, CALL_CANCELLED, CALL_INTERRUPTED}

# Places in an event: [tag, at, call, step, attempt, seq, run_id, *fields of the class]
CALL, STEP, ATTEMPT, FIELDS = 2, 3, 4, 7


@dataclass
class Artifact:
    """A row of ``artifacts``; the body is an array too."""

    number: int
    name: str
    run: str
    call: str


@dataclass
class Call:
    """What the events so far say of one call."""

    step: str
    attempts: int = 0
    state: str = "new"  # new, open, running, waiting, ended
    epoch: int = 0  # in which it was last heard of
    taken: bool = False  # it has an outcome that a resume takes over
    damaged: bool = False
    fell_back: bool = False
    probing: bool = False  # a circuit breaker lets its next attempt through
    artifacts: tuple[int, ...] = ()


@dataclass
class Run:
    """What the events so far say of one run."""

    run_id: str
    epoch: int = 1
    status: str = ""
    changed: str = ""
    pipeline: str = ""
    parent: str = ""
    calls: dict[str, Call] = field(default_factory=dict)
    clamped: set[tuple[int, str]] = field(default_factory=set)  # epoch and step


class Checker:
    """Checks one home; ``problems`` is what it found."""

    def __init__(self, connection: sqlite3.Connection, blobs: Path) -> None:
        self._query = connection.execute
        self._blobs = blobs
        self.problems: list[str] = []
        self._artifacts: dict[int, Artifact] = {}
        self._runs: dict[str, Run] = {}
        self._pruned = 0

    def check(self) -> None:
        """Look at everything."""
        for (line,) in self._query("PRAGMA integrity_check"):
            if line != "ok":
                self._say(f"integrity_check: {line}")
        if self._query("SELECT count(*) FROM pruning").fetchone()[0]:
            self._say("the log is left open for deletion")
        row = self._query("SELECT value FROM counters WHERE name='pruned_events'").fetchone()
        self._pruned = row[0] if row else 0
        self._check_artifacts()
        self._check_log()
        self._check_runs()
        self._check_cache()

    def _say(self, problem: str) -> None:
        self.problems.append(problem)

    # -- artifacts ------------------------------------------------------------------------

    def _check_artifacts(self) -> None:
        names = dict(self._query("SELECT id, name FROM names"))
        versions: set[tuple[int, int]] = set()
        for number, name, version, packed in self._query("SELECT id, name, version, body FROM artifacts ORDER BY id"):
            if (name, version) in versions:
                self._say(f"artifact {number}: version {version} of {names.get(name)} exists twice")
            versions.add((name, version))
            if name not in names:
                self._say(f"artifact {number} has no name")
            if version < 1:
                self._say(f"artifact {number} has version {version}")
            body = msgspec.msgpack.decode(packed)
            self._artifacts[number] = Artifact(number, names.get(name, "?"), body[5], body[6])
            self._check_bytes(number, size=body[2], checksum=body[1], data=body[10], location=body[11])

    def _check_bytes(self, number: int, *, size: int, checksum: bytes, data: bytes | None, location: str) -> None:
        if data is None and not location:
            self._say(f"artifact {number} has neither bytes nor a location")
            return
        if data is None:
            if location.startswith("route:"):
                return  # at a place of the user's
            if not self._blobs.is_dir():
                return  # kept in a store of its own
            try:
                data = (self._blobs / location).read_bytes()
            except OSError as error:
                self._say(f"artifact {number}: blob {location} cannot be read: {error.strerror}")
                return
        if len(data) != size:
            self._say(f"artifact {number} has {len(data)} bytes, {size} were stored")
        elif blake3(data).digest() != checksum:
            self._say(f"artifact {number}: bytes do not match their checksum")

    def _check_cache(self) -> None:
        for key, first, count in self._query("SELECT key, artifact, count FROM cache"):
            if len(key) != 32:
                self._say(f"cache key of {len(key)} bytes")
            missing = [number for number in range(first, first + count) if number not in self._artifacts]
            if missing or count < 1:
                self._say(f"cache entry {key.hex()[:12]} names artifacts {missing} that do not exist")

    # -- the log --------------------------------------------------------------------------

    def _check_log(self) -> None:
        expected, gaps = 1, 0
        for seq, run_id, count, first, body in self._query(
            "SELECT seq, run, count, first_artifact, body FROM log ORDER BY seq"
        ):
            try:
                events = msgspec.msgpack.decode(body)
            except msgspec.DecodeError as error:
                self._say(f"seq {seq}: the segment cannot be read: {error}")
                continue
            if len(events) != count or not events:
                self._say(f"seq {seq}: the segment has {len(events)} events and says {count}")
            if seq < expected:
                self._say(f"seq {seq}: overlaps the segment before, which ends at {expected - 1}")
            gaps += max(0, seq - expected)
            expected = seq + count
            run = self._runs.setdefault(run_id, Run(run_id))
            for offset, event in enumerate(events):
                for problem in _Fold(run, self._artifacts, event, first).apply():
                    self._say(f"seq {seq + offset}, run {run_id}: {problem}")
        row = self._query("SELECT value FROM counters WHERE name='seq'").fetchone()
        if row and row[0] >= expected:
            gaps += row[0] - expected + 1
        if gaps != self._pruned:
            self._say(f"{gaps} event numbers are missing and {self._pruned} were pruned")

    def _check_runs(self) -> None:
        rows = self._query("SELECT id, pipeline, status, epoch, parent, ended_at, owner FROM runs").fetchall()
        known = {row[0] for row in rows}
        for run_id in self._runs.keys() - known:
            self._say(f"run {run_id} has events and no row in runs")
        for run_id, pipeline, status, epoch, parent, ended_at, owner in rows:
            run = self._runs.get(run_id)
            if run is None:
                self._say(f"run {run_id} is in runs and has no events")
                continue
            for what, in_table, in_log in (
                ("status", status, run.status), ("epoch", epoch, run.epoch),
                ("pipeline", pipeline, run.pipeline), ("parent", parent, run.parent),
            ):  # fmt: skip
                if in_table != in_log:
                    self._say(f"run {run_id}: {what} {in_table!r} in runs, {in_log!r} in the log")
            if (ended_at is None) != (status == "running"):
                self._say(f"run {run_id}: {status} and ended at {ended_at}")
            if not owner:
                self._say(f"run {run_id} has no owner")
            if parent and parent not in known and not self._pruned:
                self._say(f"run {run_id}: its parent {parent} does not exist")


class _Fold:
    """One event applied to what is known of its run."""

    def __init__(self, run: Run, artifacts: dict[int, Artifact], event: list[Any], first: int) -> None:
        self._run, self._artifacts, self._event, self._first = run, artifacts, event, first

    def apply(self) -> Iterator[str]:
        tag, call = self._event[0], self._event[CALL]
        if self._event[5] or self._event[6]:
            yield "an event carries a number or a run of its own"
        if self._run.status == "" and tag != ACCEPTED:
            yield f"the first event has tag {tag}, not RunAccepted"
            self._run.status = "running"
        if tag in (ACCEPTED, RESUMED) or tag in RUN_ENDS:
            yield from self._apply_to_run(tag)
            return
        if self._run.status != "running":
            yield f"event with tag {tag} of call {call!r} after the run was {self._run.status}"
        if call:
            yield from self._apply_to_call(tag)
        elif SCHEDULED <= tag <= FELL_BACK:
            yield f"event with tag {tag} names no call"
        elif tag == UNMADE:
            yield from self._apply_unmade()
        elif tag == CLAMPED:
            yield from self._apply_clamp()

    def _apply_unmade(self) -> Iterator[str]:
        name, step, first, count = self._event[FIELDS : FIELDS + 4]
        if not step or first < 0 or count < 1:
            yield f"{count} calls of map {name} from {first} on, of step {step!r}, are cancelled before they were made"
        for index in range(first, first + count):
            made = self._run.calls.get(f"{name}[{index}]")
            if made is not None and made.epoch == self._run.epoch:
                yield f"call {name}[{index}] was made, and is cancelled as one that was not"

    def _apply_clamp(self) -> Iterator[str]:
        run, step, clamped = self._run, self._event[STEP], self._event[FIELDS]
        if not step or (run.epoch, step) in run.clamped:
            yield f"the resources of step {step!r} are clamped a second time, or of no step"
        run.clamped.add((run.epoch, step))
        for name, asked, there in clamped or [("nothing", 0, 0)]:
            if name not in ("cpu", "memory", "gpu") or not 0 <= there < asked:
                yield f"step {step} asks for {asked} of {name}, which is clamped to {there}"

    def _apply_to_run(self, tag: int) -> Iterator[str]:
        run, event = self._run, self._event
        if tag == ACCEPTED:
            if run.status:
                yield "accepted twice"
            run.status, run.pipeline, run.parent = "running", event[FIELDS], event[FIELDS + 1]
            codec, arguments = event[FIELDS + 4], event[FIELDS + 3]
            name = f"arguments:{run.pipeline}"
            if (
                codec
                and not arguments
                and not any(a.run == run.run_id and a.name == name for a in self._artifacts.values())
            ):
                yield "its arguments are nowhere"
        elif tag == RESUMED:
            if run.status not in ("running", "interrupted", "failed", "cancelled"):
                yield f"resumed although {run.status}"
            if event[FIELDS] != run.epoch + 1:
                yield f"resumed with epoch {event[FIELDS]} after {run.epoch}"
            run.epoch, run.status, run.changed = event[FIELDS], "running", event[FIELDS + 2]
        else:
            allowed = ("running", "interrupted") if tag in (FAILED, CANCELLED) else ("running",)
            if run.status not in allowed:
                yield f"{RUN_ENDS[tag]} after it was {run.status}"
            if tag == SUCCEEDED:
                yield from self._exist([self._first + place for place in event[FIELDS]])
                unfinished = [
                    n for n, c in run.calls.items() if c.epoch == run.epoch and c.state not in ("new", "ended")
                ]
                if unfinished:
                    yield f"succeeded while calls {unfinished[:5]} have no outcome"
            run.status = RUN_ENDS[tag]

    def _apply_to_call(self, tag: int) -> Iterator[str]:
        run, event = self._run, self._event
        name, attempt = event[CALL], event[ATTEMPT]
        call = run.calls.get(name)
        if call is None:
            call = run.calls[name] = Call(event[STEP])
        if call.step != event[STEP]:
            yield f"call {name} is of step {call.step} and of step {event[STEP]}"
        if tag == DAMAGE:
            call.damaged = True
            return
        if BREAKER_OPENED <= tag <= BREAKER_CLOSED:
            yield from self._apply_to_breaker(call, name, tag)
        if not SCHEDULED <= tag <= FELL_BACK:
            return
        is_new = call.epoch != run.epoch
        ended = call.state == "ended" and not is_new
        call.epoch = run.epoch
        if tag == REUSED:
            if not call.taken or ended:
                yield f"call {name} is reused without an outcome from before"
            call.state = "ended"
            return
        if call.taken and not call.damaged and (is_new or ended) and run.changed != "rerun":
            yield f"call {name} has an outcome, and tag {tag} follows"
        elif ended and not call.damaged:
            yield f"call {name} has ended, and tag {tag} follows"
        yield from self._advance(call, name, tag, attempt, is_new)

    def _advance(self, call: Call, name: str, tag: int, attempt: int, is_new: bool) -> Iterator[str]:
        if call.fell_back and not is_new and tag not in CALL_ENDS:
            yield f"call {name} fell back, and tag {tag} follows"
        if call.probing and not is_new and tag not in (STARTED, CALL_INTERRUPTED):
            yield f"the breaker lets call {name} through, and tag {tag} follows"
        call.fell_back, call.probing = tag == FELL_BACK, False
        if tag == SCHEDULED:
            call.state = "open"
        elif tag == FELL_BACK:
            if attempt != call.attempts or (call.state == "waiting" and is_new):
                yield f"call {name} fell back after attempt {attempt}, and attempt {call.attempts} was the last"
            if not any(self._event[FIELDS + 1 : FIELDS + 2]):
                yield f"call {name} fell back and does not say what it is"
            call.state = "running"
        elif tag == STARTED:
            if attempt != call.attempts + 1:
                yield f"call {name}: attempt {attempt} begins after {call.attempts}"
            call.attempts, call.state = attempt, "running"
        elif tag == RETRYING:
            if call.state != "running" or attempt != call.attempts:
                yield f"call {name}: attempt {attempt} is retried, and attempt {call.attempts} is {call.state}"
            call.state = "waiting"
        elif tag in CALL_ENDS:
            if tag == COMPLETED and (call.state != "running" or is_new or attempt != call.attempts):
                yield f"call {name}: attempt {attempt} completed without having started"
            yield from self._end(call, name, tag)

    def _apply_to_breaker(self, call: Call, name: str, tag: int) -> Iterator[str]:
        if tag == BREAKER_HALF_OPENED:
            if call.state not in ("open", "waiting"):
                yield f"the breaker lets call {name} through, which is {call.state}"
            call.probing = True
        elif call.attempts == 0 or (tag == BREAKER_OPENED and self._event[FIELDS] < 1):
            yield f"call {name} changes its breaker without an attempt that ended"

    def _end(self, call: Call, name: str, tag: int) -> Iterator[str]:
        event = self._event
        call.state, call.taken, call.damaged = "ended", False, False
        if tag == COMPLETED:
            call.artifacts = tuple(self._first + place for place in event[FIELDS])
            call.taken = bool(call.artifacts)
            for number in call.artifacts:
                found = self._artifacts.get(number)
                if found is not None and (found.run, found.call) != (self._run.run_id, name):
                    yield f"call {name} names artifact {number} of call {found.call} of run {found.run}"
        elif tag == CACHED:
            call.artifacts, call.taken = tuple(event[FIELDS + 2]), True
        elif tag == SKIPPED:
            # one that an input's condition left out has no identity, and is not taken but found out again
            upstream, identity = [*event[FIELDS + 1 :], "", b""][:2]  # logs from before have less
            call.taken = event[FIELDS] == "condition" and bool(identity)
            if event[FIELDS] not in ("condition", "upstream"):
                yield f"call {name} was skipped because of {event[FIELDS]!r}"
            if event[FIELDS] == "upstream" and not upstream:
                yield f"call {name} was skipped because of an input that has no name"
        if tag in (COMPLETED, CACHED):
            yield from self._exist(call.artifacts)

    def _exist(self, numbers: Any) -> Iterator[str]:
        for number in numbers:
            if number not in self._artifacts:
                yield f"artifact {number} is named and does not exist"


# -- opening ------------------------------------------------------------------------------


def is_log(home: Path) -> bool:
    """Whether the home's database is a treadle log of the format that this checker knows."""
    try:
        connection = _open(home / DATABASE)
    except sqlite3.Error:
        return True  # a log that cannot be opened is for ``check`` to complain about
    try:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        return bool(application == APPLICATION_ID and connection.execute("PRAGMA user_version").fetchone()[0] == 1)
    except sqlite3.Error as error:
        return "not a database" not in str(error)
    finally:
        connection.close()


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    connection.execute("PRAGMA busy_timeout=10000")
    return connection


def check(home: str | Path) -> list[str]:
    """Everything that is wrong with the log of a home; empty if it is sound."""
    home = Path(home)
    try:
        connection = _open(home / DATABASE)
    except sqlite3.Error as error:
        return [f"the database cannot be opened: {error}"]
    try:
        connection.execute("BEGIN")
        checker = Checker(connection, home / "blobs")
        checker.check()
        return checker.problems
    except (sqlite3.Error, msgspec.DecodeError) as error:
        return [f"the database cannot be read: {error}"]
    finally:
        connection.close()


def main(homes: list[str]) -> int:
    """Print what is wrong with each home."""
    found = [f"{home}: {problem}" for home in homes for problem in check(home)]
    print("\n".join(found) if found else f"{len(homes)} sound")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
