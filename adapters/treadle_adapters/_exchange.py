"""What passes between the engine and one container beside messages: a socket, and large values as files.

Knows folders and files; nothing of containers. The engine writes only where containers cannot, and reads what they have
written without following any link.

    exchange/           private to the engine's user
        line/           seen by the container, read-only
            s           the socket, gone when the container has connected
            in/         large inputs: linked if the container's user is this one, else copied; whole, and never
                        written to any more, since steps may have mapped them into their memory
        out/            the outbox: large outputs, written by the container
        nothing/        empty; lies over what the container is not to see
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from treadle import worker
from treadle.contracts import Attempt, Output, Payload
from treadle.errors import ExecutorUnavailable, WorkerProtocolError
from treadle_adapters import _owners as owners
from treadle_adapters._forks import kept_here

PREFIX: Final = "treadle-boxes-"
_OPEN_FILE: Final = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)
_OPEN_FOLDER: Final = _OPEN_FILE | getattr(os, "O_DIRECTORY", 0)
_PART_BYTES: Final = 1024 * 1024
# Whatever ends this process closes the pipe; what containers still write at that moment is removed at the second go.
_JANITOR: Final = 'read _; [ -e "$1" ] || exit 0; rm -rf -- "$1"; sleep 0.5; rm -rf -- "$1"'


class Exchanges:
    """The private folder of one executor, which is gone when its process is.

    Args:
        owner: who this process is; part of the folder's name, for the next one that looks for what is left.
    """

    def __init__(self, owner: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{owner}-"))
        self._janitor = subprocess.Popen(
            ["/bin/sh", "-c", _JANITOR, "treadle", str(self.folder)],
            env={"PATH": os.defpath}, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            cwd="/", start_new_session=True, bufsize=0,
        )  # fmt: skip
        assert self._janitor.stdin is not None
        self._alive = kept_here(self._janitor.stdin)

    def close(self) -> None:
        """Remove the folder."""
        remove(self.folder)
        self._alive.close()
        self._janitor.wait()


class Exchange:
    """The folders of one container; only one thread at a time may lend or adopt.

    Args:
        folder: where they are to be.
        uid: whom the container runs as, as this machine numbers users.
    """

    def __init__(self, folder: Path, uid: int) -> None:
        self.folder, self._is_own_user = folder, uid == os.geteuid()
        self.line, self.out, self.nothing = folder / "line", folder / "out", folder / "nothing"
        self._inbox = self.line / "in"
        self._lent: set[str] = set()
        self.is_stopped = False
        """Whether the thread that lends or adopts is to end early; set by another one."""
        folder.mkdir(0o700)
        for path, mode in (
            (self.line, 0o755), (self._inbox, 0o755), (self._inbox / "tmp", 0o755),
            (self.out, 0o777), (self.out / "tmp", 0o777), (self.nothing, 0o755),
        ):  # fmt: skip
            path.mkdir()
            path.chmod(mode)

    def listen(self) -> socket.socket:
        """The socket that the container's first process connects to."""
        listener = kept_here(socket.socket(socket.AF_UNIX))
        folder = os.open(self.line, _OPEN_FOLDER)
        try:
            # Temporary folders may have longer names than the address of a socket can.
            listener.bind(f"/proc/self/fd/{folder}/s")
            (self.line / "s").chmod(0o666)
            listener.listen(1)
            listener.setblocking(False)
        except BaseException:
            listener.close()
            raise
        finally:
            os.close(folder)
        return listener

    def connected(self) -> None:
        """Nobody else is to connect."""
        (self.line / "s").unlink(missing_ok=True)

    # -- inputs ---------------------------------------------------------------------------

    def lend(self, attempt: Attempt) -> None:
        """Have the large inputs of an attempt in the inbox, and nothing else.

        Raises:
            ExecutorUnavailable: it was stopped.
        """
        wanted = {item.location for item in attempt.payloads() if item.data is None}
        for location in self._lent - wanted:
            (self._inbox / location).unlink(missing_ok=True)
            self._lent.discard(location)
        for location in wanted - self._lent:
            self._check_going_on()
            target = self._inbox / location
            target.parent.mkdir(mode=0o755, exist_ok=True)
            target.parent.chmod(0o755)
            with contextlib.suppress(FileNotFoundError):  # the worker will say that it is missing
                self._place(Path(attempt.store) / location, target)
                self._lent.add(location)

    def _place(self, source: Path, target: Path) -> None:
        coming = self._inbox / "tmp" / target.name
        try:
            if not self._is_own_user or not _is_linked(source, coming):
                self._copy(source, coming)
            os.replace(coming, target)
        finally:
            coming.unlink(missing_ok=True)  # also where both are one file: then nothing was replaced

    def _copy(self, source: Path, coming: Path) -> None:
        part = memoryview(bytearray(_PART_BYTES))
        with open(os.open(source, _OPEN_FILE), "rb", buffering=0) as given, coming.open("xb", buffering=0) as taken:
            while count := given.readinto(part):
                self._check_going_on()
                done = 0
                while done < count:
                    done += taken.write(part[done:count]) or 0
            os.fchmod(taken.fileno(), 0o444)

    def _check_going_on(self) -> None:
        if self.is_stopped:
            raise ExecutorUnavailable("the container of the step is being ended")

    # -- outputs --------------------------------------------------------------------------

    def adopt(self, attempt: Attempt, outputs: tuple[Output, ...]) -> None:
        """Copy the large outputs of an attempt into its store, checked.

        Raises:
            WorkerProtocolError: what an output names is not a file of its own in the outbox, or not what it says.
            ExecutorUnavailable: it was stopped.
        """
        for output in outputs:
            if output.payload.data is None:
                self._check_going_on()
                self._adopt(attempt, output.payload)

    def _adopt(self, attempt: Attempt, payload: Payload) -> None:
        digits = payload.checksum.hex()
        if len(digits) != 64 or payload.location != f"{digits[:2]}/{digits[2:]}":
            raise _outside(payload, "an output is named by the digest of its bytes, and by nothing else")
        path = self.out / payload.location
        try:
            shard = os.open(path.parent, _OPEN_FOLDER)
        except OSError as error:
            raise _outside(payload, str(error.strerror)) from error
        try:
            status = os.stat(path.name, dir_fd=shard, follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                raise _outside(payload, "what is there is no regular file of its own")
            if not worker.adopt(attempt, payload, self.out):
                raise _outside(payload, "its bytes do not have the size and checksum that it names")
            os.unlink(path.name, dir_fd=shard)
        except FileNotFoundError as error:
            raise _outside(payload, "there is no such file") from error
        finally:
            os.close(shard)


def _is_linked(source: Path, target: Path) -> bool:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        return False  # another file system
    return True


def _outside(payload: Payload, why: str) -> WorkerProtocolError:
    return WorkerProtocolError(
        f"a worker names an output that does not lie in its outbox: {payload.location[:100]!r}", why=why
    )


# -- removing -----------------------------------------------------------------------------


def remove(folder: Path) -> None:
    """Remove a folder, whatever strangers have made of it; links are not followed."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except RecursionError:
        pass
    if folder.exists():
        # Deeper than Python's stack, or closed to its owner.
        subprocess.run(["/bin/chmod", "-R", "u+rwx", "--", str(folder)], check=False, capture_output=True)
        subprocess.run(["/bin/rm", "-rf", "--", str(folder)], check=False, capture_output=True)


def sweep() -> None:
    """Remove the folders of this user's processes that are no more, if they had no time to do so themselves."""
    with os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            if not entry.name.startswith(PREFIX):
                continue
            owner = entry.name.removeprefix(PREFIX).rpartition("-")[0]
            try:
                is_ours = entry.stat(follow_symlinks=False).st_uid == os.geteuid()
            except FileNotFoundError:
                continue
            if is_ours and owners.is_dead(owner):
                remove(Path(entry.path))
