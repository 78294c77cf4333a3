"""The process between an engine and its workers: it starts them, says how they ended, and leaves none behind.

A program of its own, started with a socket and the engine's process id:

    python _nursery.py SOCKET PID

Theory of operation
* Workers are forked from here. This process has one thread, has imported what workers need, and runs no code of the
  user's, so a fork is safe and a new worker is there in milliseconds.
* It is the parent of all workers, and what they leave behind becomes its child, too (``PR_SET_CHILD_SUBREAPER``): a
  process that double-forked its way out of group and session is found and killed when its worker has ended.
* It waits for three things: a command, the end of a child, the end of the engine's process. At the last one, or when
  the socket closes, it kills everything below it and ends. If it is killed itself, the kernel kills the workers.
* Only a parent can signal a process that may have ended without hitting another one that got its number: so signals
  go through here.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from treadle_adapters._groups import Group, Tree

RECORD = struct.Struct("<B3xIqq")
"""What is said over the socket: what, which worker, and two numbers."""

FORK, SIGNAL = 1, 2
STARTED, ENDED, READY = 1, 2, 3
_PDEATHSIG, _SUBREAPER = 1, 36
_LAST_S = 3.0
_AT_ONCE = 200
"""So many ends are noted before there is another look at all processes, which takes milliseconds."""
_REMOVING_MS = 20
"""A group can be removed when the last of its processes is gone for good, of which nobody tells."""


class Nursery:
    """Starts and ends workers for one engine."""

    workers_adopt = True
    """Whether what a step leaves behind stays below its worker, so that it is known whose it is."""

    def __init__(self, control: socket.socket, engine: int, tree: Tree | None) -> None:
        self._control, self._engine, self._tree = control, engine, tree
        self._leaving: list[Group] = []
        self._workers: dict[int, int] = {}  # process id to number
        self._woken, self._wakes = os.pipe()
        self._engine_fd = -1
        for end in (self._woken, self._wakes):
            os.set_blocking(end, False)
        self._prctl = _prctl_of_this_system()
        self._prctl(_SUBREAPER, 1)

    def run(self) -> None:
        """Do what is asked until the engine is gone."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakes, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        engine = self._engine_fd = _pidfd(self._engine)
        self._tell(READY, 0, os.getpid())
        if engine >= 0:
            poll.register(engine, select.POLLIN)
        while os.getppid() == self._engine:
            ready = {fd for fd, _ in poll.poll(_REMOVING_MS if self._leaving else None)}
            self._leaving = [group for group in self._leaving if not group.is_removed()]
            if engine in ready:
                break
            if self._woken in ready:
                os.read(self._woken, 4096)
                self._reap()
            if self._control.fileno() in ready and not self._obey():
                break
        self._end_all()

    # -- commands -------------------------------------------------------------------------

    def _obey(self) -> bool:
        """Do one thing; False if there is nobody to tell us what."""
        try:
            data, fds, _, _ = socket.recv_fds(self._control, RECORD.size, 3)
        except ConnectionError:
            return False
        while data and len(data) < RECORD.size:
            more = self._control.recv(RECORD.size - len(data))
            if not more:
                return False
            data += more
        if not data:
            return False
        what, number, first, _ = RECORD.unpack(data)
        if what == FORK:
            self._fork(number, fds)
        elif what == SIGNAL:
            self._signal(number, first)
        return True

    def _fork(self, number: int, fds: list[int]) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            os.write(fds[-1], f"no process could be started for it: {error}\n".encode())
            self._tell(ENDED, number, os.EX_OSERR, 0)
        else:
            if pid == 0:
                self._become_worker(number, *fds)
            self._workers[pid] = number
            self._tell(STARTED, number, pid)
        for fd in fds:
            os.close(fd)

    def _signal(self, number: int, what: int) -> None:
        for pid, known in self._workers.items():
            if known == number:
                _kill_group(pid, what)

    def _tell(self, what: int, number: int, first: int, second: int = 0) -> None:
        try:
            self._control.sendall(RECORD.pack(what, number, first, second))
        except OSError:
            return  # the engine is gone, which the loop is about to notice

    # -- ends -----------------------------------------------------------------------------

    def _reap(self) -> None:
        """Take note of every child that has ended, and kill what it has left to us, before anybody is told."""
        while ended := self._buried():
            self._kill_adopted()
            for number, status in ended:
                if number:
                    self._tell(ENDED, number, os.waitstatus_to_exitcode(status), self._end_group(number))

    def _buried(self) -> list[tuple[int, int]]:
        """How children have ended, with their numbers, 0 if one is no worker.

        Before the process id of a worker is free again, its group is killed.
        """
        buried: list[tuple[int, int]] = []
        try:
            while len(buried) < _AT_ONCE:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is None:
                    break
                if ended.si_pid in self._workers:
                    _kill_group(ended.si_pid, signal.SIGKILL)
                _, status = os.waitpid(ended.si_pid, 0)
                buried.append((self._workers.pop(ended.si_pid, 0), status))
        except ChildProcessError:
            pass
        return buried

    def _end_group(self, number: int) -> int:
        """How many processes of a worker the kernel has killed because they were more than its memory allowed."""
        if self._tree is None:
            return 0
        group = self._tree.group(number)
        kills = group.ended()
        if not group.is_removed():
            self._leaving.append(group)
        return kills

    def _kill_adopted(self) -> None:
        """Kill what workers have left behind: it is our child now."""
        from treadle_adapters._children import children_of  # late: this file is a program, and has no path at first

        for pid in children_of(os.getpid()):
            if pid not in self._workers:
                kill(pid, signal.SIGKILL)

    def _end_all(self) -> None:
        signal.set_wakeup_fd(-1)
        self._control.close()
        until = time.monotonic() + _LAST_S
        for pid in self._workers:
            _kill_group(pid, signal.SIGKILL)
        self._workers.clear()
        buried = 0
        while time.monotonic() < until:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid:
                buried += 1
            if buried and (pid == 0 or buried >= _AT_ONCE):
                self._kill_adopted()  # what those have left to us
                buried = 0
            elif pid == 0:
                time.sleep(0.002)
        if self._tree is not None:
            self._tree.uproot(_LAST_S)

    # -- in the worker --------------------------------------------------------------------

    def _become_worker(self, number: int, connection: int, out: int, err: int) -> NoReturn:
        code = 70
        try:
            nursery = os.getppid()
            os.setsid()
            self._prctl(_PDEATHSIG, int(signal.SIGKILL))
            self._prctl(_SUBREAPER, int(self.workers_adopt))
            if os.getppid() != nursery:
                os._exit(code)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for fd in (self._woken, self._wakes, self._engine_fd):
                if fd >= 0:
                    os.close(fd)
            self._control.close()
            _take_streams(out, err)
            # `treadle_adapters._worker` was imported before the first fork.
            from treadle_adapters import _worker

            with socket.socket(fileno=connection) as line:
                _worker.serve(line, None if self._tree is None else self._tree.group(number))
            code = 0
        except SystemExit:
            code = 128 + signal.SIGTERM
        except (BrokenPipeError, ConnectionError):
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            _leave(code)


def _take_streams(out: int, err: int) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (out, 1), (err, 2)):
        os.dup2(source, target, inheritable=True)
        os.close(source)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  # they are the process's own
    sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    import faulthandler

    faulthandler.enable(file=2)


def _leave(code: int) -> NoReturn:
    """As an interpreter ends, but without waiting for threads."""
    import atexit

    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        code = code or 1
    finally:
        os._exit(code)


# -- the system ---------------------------------------------------------------------------


def _prctl_of_this_system() -> Callable[[int, int], object]:
    if sys.platform != "linux":
        return lambda *_: 0
    import ctypes

    prctl: Callable[[int, int], object] = ctypes.CDLL(None).prctl
    return prctl


def _pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return -1


def _kill_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        kill(pid, number)  # it has not made a group of its own yet


def kill(pid: int, number: int) -> None:
    """Signal a process, if it is there and may be."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def main() -> None:
    """Read where things are, import what workers need, and begin."""
    control, engine = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    control.set_inheritable(False)
    setup = json.loads(_exactly(control, int.from_bytes(_exactly(control, 4), "little")))
    sys.path[:] = setup["path"]
    sys.argv = [""]
    os.chdir("/")
    import gc
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the user makes errors is meant for code of the user's
        from treadle import worker
        from treadle_adapters import _groups, _worker

        worker.preload()
    _groups.is_swept()  # what has to be waited for is left to the next one
    tree = _groups.Tree.planted()
    gc.collect()
    gc.freeze()
    del _worker
    Nursery(control, engine, tree).run()


def introduction(path: list[str]) -> bytes:
    """What the program reads first: the import path, behind four bytes of length."""
    setup = json.dumps({"path": path}).encode()
    return len(setup).to_bytes(4, "little") + setup


def _exactly(control: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = control.recv(count - len(data))
        if not more:
            raise SystemExit(0)
        data += more
    return data


if __name__ == "__main__":
    main()
