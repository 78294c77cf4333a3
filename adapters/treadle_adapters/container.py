"""Performs attempts in containers, through the Docker Engine API: Docker, or Podman's compatible socket.

Knows when there is a container, and for which attempt; what it may is in ``_confinement`` and ``_mounts``, how it
begins and ends in ``_box``, what runs inside in ``_contained``, what is asked of the container engine in ``_docker``.

Theory of operation
* A container has one worker, and is used again for attempts that may use and see the same. A worker that was stopped,
  has crashed, or has imported code that was edited since, gets a successor in the same container, which takes
  milliseconds; one that ran out of memory or broke the protocol takes its container with it.
* Inside, treadle and the project's code are mounted read-only from here, so both sides have the same; Python and
  installed libraries are the image's.
* Nothing is listened on: the first process connects to a socket in a folder that is mounted, and that connection is its
  life. If it closes, by us or by the end of this process, the container ends and removes itself.
* Workers are not trusted: what they send is decoded without pickle, and large outputs are copied out of an outbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import sys
import uuid
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace

from treadle.contracts import Attempt, Performed, Raised, Sink
from treadle.errors import ExecutorUnavailable, OptionError
from treadle.limits import Resources
from treadle.worker import is_importing
from treadle_adapters import _exchange, _mounts, _owners
from treadle_adapters._box import Box
from treadle_adapters._checks import are_names, are_paths, checks, cores, is_count, is_flag, is_text, is_time, refused
from treadle_adapters._confinement import LABEL, Confinement, kind_of
from treadle_adapters._docker import Daemon, is_address, require
from treadle_adapters._peer import Surroundings, folder_here

IMAGE_VARIABLE: Final = "TREADLE_CONTAINER_IMAGE"
MOST_ID: Final = 2**31 - 1  # container engines refuse more


class ContainerExecutor:
    """Performs steps in containers.

    Args:
        image: what they run in; it has Python of this minor version, and the libraries of the steps. By default what
            the environment variable ``TREADLE_CONTAINER_IMAGE`` names. Images are not pulled.
        docker_host: URL of the container engine, ``"unix:///run/docker.sock"``; by default the one that the ``docker``
            command would ask, or else Podman's socket. It has to run on this machine.
        workers: how many containers at once; by default as many as this process has cores.
        fresh: a new container for every call, instead of warm ones that are used again; the calls of one execution
            group in one run share theirs.
        env: names of environment variables that steps get, beside ``LANG``, ``LC_*``, ``TZ`` and what the image sets.
        grace: seconds between the request to end (SIGTERM, which raises ``SystemExit`` in the step) and the end.
        calls_per_worker: after so many calls the process in a container is replaced; by default never.
        user: whom steps run as, ``"UID"`` or ``"UID:GID"``. By default this user; nobody, if this is root; root of a
            rootless engine, which is this user outside.
        network: ``"none"``, or the name of a network of the engine.
        mounts: more of this machine, ``"SOURCE[:TARGET][:ro|rw]"`` each, read-only unless it says ``rw``.
        code: the folders of the project's code, instead of those of the import path; they come first in it, too.
        site: whether libraries that are installed here are mounted, too, for images that have the same system.
        memory: bytes or ``"2Gi"``, of steps that name none in their ``resources``; by default not limited. Not 0.
        cpus: cores, likewise.
        pids: how many processes and threads a container may have.
        tmp: bytes or ``"256Mi"`` that ``/tmp`` may hold; they count as memory.
        python: the program of Python in the image.

    Raises:
        OptionError: an option is not allowed, or there is no image.
        ExecutorUnavailable: the library for it is not installed.

    >>> ContainerExecutor("python:3.13-slim", workers=2, mounts=("/data",))
    <ContainerExecutor of 2 containers of python:3.13-slim, 0 running>
    """

    trusted = False

    def __init__(
        self,
        image: str | None = None,
        *,
        docker_host: str | None = None,
        workers: int | None = None,
        fresh: bool = False,
        env: Sequence[str] = (),
        grace: float = 2.0,
        calls_per_worker: int | None = None,
        user: str | None = None,
        network: str = "none",
        mounts: Sequence[str | os.PathLike[str]] = (),
        code: Sequence[str | os.PathLike[str]] | None = None,
        site: bool = False,
        memory: int | str | None = None,
        cpus: float | str | None = None,
        pids: int = 512,
        tmp: int | str = "256Mi",
        python: str = "python3",
    ) -> None:
        image = image or os.environ.get(IMAGE_VARIABLE, "")
        if is_importing.get():  # a worker that imports a program with an executor at its top performs nothing with it
            image = image or "unknown"
        else:
            require()
        check, most = checks("ContainerExecutor"), calls_per_worker
        check(is_text(image), "image", image, f"an image, or name one with {IMAGE_VARIABLE}")
        is_host = docker_host is None or is_address(docker_host)
        check(is_host, "docker_host", docker_host, "a URL of this machine, as unix:///run/docker.sock")
        check(workers is None or is_count(workers), "workers", workers, "a whole number from 1")
        check(most is None or is_count(most), "calls_per_worker", most, "a whole number from 1, or None")
        check(is_flag(fresh), "fresh", fresh, "True or False")
        check(is_flag(site), "site", site, "True or False")
        check(are_names(env), "env", env, "a tuple of names; values come from the environment")
        check(is_time(grace), "grace", grace, "seconds from 0")
        check(user is None or _ids(user) is not None, "user", user, "numbers: 'UID' or 'UID:GID'")
        check(is_text(network), "network", network, "'none' or the name of a network")
        check(are_paths(mounts), "mounts", mounts, "a tuple of 'SOURCE[:TARGET][:ro|rw]'")
        check(code is None or are_paths(code), "code", code, "a tuple of folders")
        check(is_count(pids), "pids", pids, "a whole number from 1")
        check(is_text(python), "python", python, "a program in the image")
        limits = (
            0 if memory is None else _limit("memory", "memory", memory).memory,
            0.0 if cpus is None else _limit("cpus", "cpu", cpus).cpu,
        )
        self._confinement = Confinement(
            image, python, network, None if user is None else _ids(user), tuple(env), _mounts.parse(mounts),
            *limits, pids, _limit("tmp", "memory", tmp).memory,
        )  # fmt: skip
        self._host, self._size = docker_host, workers or cores()
        self._is_fresh, self._most_calls, self._with_site = fresh, calls_per_worker, site
        self._grace_s = float(grace)
        self._code = None if code is None else tuple([os.path.abspath(folder) for folder in code])
        self._boxes: dict[Box, None] = {}
        self._idle: dict[Box, None] = {}
        self._endings: set[asyncio.Task[None]] = set()
        self._busy = 0
        self._daemon: Daemon | None = None
        self._exchanges: _exchange.Exchanges | None = None
        self._count = 0
        self._seen: tuple[Any, _mounts.Code] | None = None
        self._place = "/tmp"

    @property
    def slots(self) -> int:
        """How many attempts it performs at once."""
        return self._size

    def __repr__(self) -> str:
        return (
            f"<ContainerExecutor of {self._size} containers of {self._confinement.image}, {len(self._boxes)} running>"
        )

    async def open(self) -> None:
        """Find the container engine, and remove what dead processes have left there.

        Raises:
            ExecutorUnavailable: there is no container engine, or not for this user.
        """
        if self._daemon is not None:
            raise ExecutorUnavailable(
                "a ContainerExecutor is used by two engines at once", fix="give each engine one of its own"
            )
        if sys.platform != "linux":
            raise ExecutorUnavailable(
                "containers can be used on Linux only", why="they share sockets and folders with this process",
                fix="use runtime='process'",
            )  # fmt: skip
        daemon = self._daemon = Daemon(self._host)
        try:
            await daemon.look()
            _exchange.sweep()
            await _sweep(daemon)
            self._exchanges = _exchange.Exchanges(_owners.me())
        except BaseException:
            self._daemon = None
            await daemon.close()
            raise

    async def perform(self, attempt: Attempt, sink: Sink) -> Performed | Raised:
        """See ``treadle.contracts.Executor``."""
        code = self._code_now()
        self._busy += 1
        try:
            box = await self._take(attempt, code)
            try:
                outcome = await box.perform(attempt, sink, self._around(attempt, box, code))
            except BaseException:
                await self._end(box)
                raise
            await self._put_back(box)
        finally:
            self._busy -= 1
        return _with_hint(outcome, code, box.closed)

    async def close(self) -> None:
        """End all containers, and leave nothing behind."""
        daemon, self._daemon = self._daemon, None
        if daemon is None:
            return
        for box in list(self._boxes):
            self._retire(box, None if box in self._idle else self._grace_s)
        try:
            while self._endings:
                await asyncio.wait(list(self._endings))
            if daemon.unsure and not daemon.is_frozen:  # else it would be waited for once more, and most likely in vain
                await _tidy(daemon)
        finally:
            exchanges, self._exchanges = self._exchanges, None
            if exchanges is not None:
                exchanges.close()
            await daemon.close()

    # -- the pool -------------------------------------------------------------------------

    async def _take(self, attempt: Attempt, code: _mounts.Code) -> Box:
        """An idle container that may what the attempt may, if possible the one of its group; else a new one."""
        kind = kind_of(attempt, code)
        while (found := self._found(attempt, kind)) is not None:
            worker = found.worker
            del self._idle[found]
            if worker is None or not worker.is_alive:
                self._retire(found)
            elif worker.known.get((attempt.module, attempt.qualname), attempt.code) != attempt.code:
                await self._end(found)  # it has imported code that was edited since
            else:
                return found
        while self._idle and len(self._idle) + self._busy > self._size:
            self._retire(next(iter(self._idle)))
        return await self._start(attempt, code)

    def _found(self, attempt: Attempt, kind: tuple[Any, ...]) -> Box | None:
        groups = {box: box.worker.group if box.worker else "" for box in self._idle if box.kind == kind}
        own = [box for box in groups if attempt.group and groups[box] == attempt.group]
        if self._is_fresh:
            return next(iter(own), None)
        free = [box for box in groups if not groups[box]]  # those of other groups come last
        return next(iter(own or free or groups), None)

    async def _start(self, attempt: Attempt, code: _mounts.Code) -> Box:
        daemon, exchanges = self._daemon, self._exchanges
        if daemon is None or exchanges is None:
            raise ExecutorUnavailable("the engine is being closed")
        self._count += 1
        rules, is_rootless = self._confinement, daemon.is_rootless
        box = Box(daemon, exchanges.folder / str(self._count), rules.owner(is_rootless), kind_of(attempt, code))
        self._boxes[box] = None
        try:
            request = rules.request(attempt, code, box.exchange, exchanges.folder, is_rootless=is_rootless)
            await box.start(request, f"treadle-{os.getpid()}-{self._count}-{uuid.uuid4().hex[:8]}")
        except BaseException:
            self._retire(box)
            raise
        if daemon.unsure:
            self._later(_tidy(daemon))
        return box

    async def _put_back(self, box: Box) -> None:
        worker = box.worker
        if worker is None or not worker.is_alive or self._daemon is None or (self._is_fresh and not worker.group):
            self._retire(box)
        elif worker.is_spent or (self._most_calls is not None and worker.calls >= self._most_calls):
            await self._end(box)
        else:
            self._idle[box] = None

    async def _end(self, box: Box) -> None:
        """End what runs in a container; a second cancellation leaves that to itself, and does not stop it."""
        await self._retire(box, self._grace_s).wait()

    def _retire(self, box: Box, grace_s: float | None = None) -> asyncio.Event:
        """Remove a container; if its worker is asked to end before, it may get another one and stay.

        The event says that nothing of its step runs any more; the rest takes longer.
        """
        self._idle.pop(box, None)
        is_quiet = asyncio.Event()
        self._later(self._retired(box, grace_s, is_quiet))
        return is_quiet

    def _later(self, ending: Coroutine[Any, Any, None]) -> None:
        """Have something done that closing waits for."""
        task = asyncio.get_running_loop().create_task(ending)
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    async def _retired(self, box: Box, grace_s: float | None, is_quiet: asyncio.Event) -> None:
        try:
            if grace_s is not None:
                await box.stop(grace_s)
                if self._daemon is not None and not self._is_fresh and box.go_on():
                    self._idle[box] = None
                    return
            is_quiet.set()
            await box.remove()
            self._boxes.pop(box, None)
        finally:
            is_quiet.set()

    # -- where a step finds itself --------------------------------------------------------

    def _code_now(self) -> _mounts.Code:
        key = (*sys.path, folder_here())
        if self._seen is None or self._seen[0] != key:
            code, here = _mounts.code_of(self._code, self._with_site), Path(key[-1])
            self._seen = key, code
            self._place = key[-1] if any(here.is_relative_to(shown) for shown in code.folders) else "/tmp"
        return self._seen[1]

    def _around(self, attempt: Attempt, box: Box, code: _mounts.Code) -> Surroundings:
        return [*code.path, *box.path, *code.site], self._place, attempt.main, logging.getLogger().level


async def _sweep(daemon: Daemon) -> None:
    """Remove what processes that are no more have left, and what was made or removed and not answered for."""
    unsure = frozenset(daemon.unsure)
    listed = await daemon.list(LABEL)
    daemon.unsure -= unsure
    for found in listed:
        names = {str(name).lstrip("/") for name in found["Names"]}
        if unsure.isdisjoint({found["Id"], *names}) and not _owners.is_dead(str(found["Labels"].get(LABEL))):
            continue
        try:
            await daemon.remove(str(found["Id"]))
        except ExecutorUnavailable as error:
            logging.getLogger("treadle").warning("an old container was not removed: %s", error)


async def _tidy(daemon: Daemon) -> None:
    with contextlib.suppress(ExecutorUnavailable):  # what is left then is swept when the next engine opens
        await _sweep(daemon)


def _with_hint(outcome: Performed | Raised, code: _mounts.Code, closed: Sequence[str]) -> Performed | Raised:
    """Say what was not mounted, and what cannot be read, to a step that could not be imported."""
    if not isinstance(outcome, Raised) or not outcome.type_name.endswith(":StepNotImportable"):
        return outcome
    notes = list(outcome.notes)
    if code.refused:
        notes.append(
            f"not mounted into the container, because they hold more than code: {', '.join(code.refused)};"
            " name the folders of your code with ContainerExecutor(code=(...))"
        )
    if closed:
        notes.append(
            f"empty in the container, or not to be read by whom it runs as: {', '.join(closed)}; open them and the"
            " image's own folders above them to others, or name somebody who may with ContainerExecutor(user=...)"
        )
    return replace(outcome, notes=tuple(notes))


def _ids(user: Any) -> tuple[int, int] | None:
    parts = str(user).split(":") if isinstance(user, str) else []
    if len(parts) not in (1, 2) or not all(re.fullmatch(r"[0-9]{1,10}", part) for part in parts):
        return None
    uid, gid = int(parts[0]), int(parts[-1])
    return (uid, gid) if max(uid, gid) <= MOST_ID else None


def _limit(option: str, kind: str, value: Any) -> Resources:
    """A limit, which is not 0: a container engine would take that for none."""
    try:
        limit = Resources(**{kind: value})
    except OptionError as error:
        raise refused("ContainerExecutor", option, value, error.fix) from None
    if not getattr(limit, kind):
        raise refused("ContainerExecutor", option, value, "give more than 0, or leave it out")
    return limit
