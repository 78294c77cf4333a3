"""A container engine, through the Docker Engine API: what is asked of it, and what its refusals mean.

Knows requests and errors; what a container is for, and what it may, is said by others. Podman's compatible socket is
the same to it, with the differences named where they matter.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib.util
import os
import time
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from treadle.errors import ExecutorUnavailable, ImageNotFound

if TYPE_CHECKING:
    from aiodocker import Docker

REQUEST_S: Final = 60.0
GONE_S: Final = 10.0
"""How long the engine may take to have removed a container, from its first answer on."""
_NO_ANSWER: Final = 900  # what aiodocker gives as status then
_NOT_REACHED: Final = (errno.EACCES, errno.ENOENT, errno.ECONNREFUSED)
_OVER_TCP: Final = ("tcp", "http", "https")
_PODMAN: Final = ("/run/podman/podman.sock", "{runtime}/podman/podman.sock", "{runtime}/docker.sock")


def is_address(address: object) -> bool:
    """Whether it is the URL of an engine that can run on this machine.

    >>> is_address("unix:///run/docker.sock"), is_address("tcp://127.0.0.1:2375"), is_address("unix://")
    (True, True, False)
    """
    kind, is_url, place = str(address).partition("://")
    return bool(is_url and (place.startswith("/") if kind == "unix" else place and kind in _OVER_TCP))


def require() -> None:
    """Say what to install if the library is not there.

    Raises:
        ExecutorUnavailable: it is not.
    """
    try:
        found = importlib.util.find_spec("aiodocker") is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        raise ExecutorUnavailable(
            "containers need the library aiodocker, which is not installed", fix="pip install 'treadle[container]'"
        )


class Daemon:
    """One container engine; every request raises ``ExecutorUnavailable`` if it is refused or not answered.

    Args:
        address: its URL, as ``unix:///run/docker.sock``; ``None`` for the one that ``docker`` itself would ask.

    Raises:
        ExecutorUnavailable: there is none.
    """

    def __init__(self, address: str | None) -> None:
        self._docker, self.address = _client(address)
        self.is_rootless = False
        self.unsure: set[str] = set()
        """Names and ids of containers that may be there still: it did not answer when they were made or removed."""
        self.is_frozen = False
        """Whether the last request to make or remove one was not answered in all the time that there was for it."""

    def __repr__(self) -> str:
        return f"<Daemon {self.address}>"

    async def look(self) -> None:
        """Find out whether it belongs to this user; root need not ask, which spares half a second with podman."""
        if os.geteuid():
            async with self._named("look at the container engine"):
                info = await self._docker.system.info()
                self.is_rootless = any("rootless" in str(option) for option in info.get("SecurityOptions") or ())

    async def create(self, request: Mapping[str, Any], name: str) -> str:
        """Have a container made; gives its id.

        Raises:
            ImageNotFound: its image is not there.
        """
        async with self._named("make a container", str(request["Image"])):
            try:
                made = await self._docker.containers.create(request, name=name)
            except Exception as error:
                if not _is_answer(error) and _errno(error) not in _NOT_REACHED:
                    self._not_answered(name, error)
                raise
            self.is_frozen = False
            return made.id

    async def start(self, container: str) -> None:
        """Start its first process."""
        async with self._named("start a container"):
            await self._docker.containers.container(container).start()

    async def exit_code(self, container: str) -> int | None:
        """Wait until it has ended; ``None`` if nothing is known of it any more."""
        async with self._named("wait for a container"):
            try:
                return int((await self._docker.containers.container(container).wait())["StatusCode"])
            except Exception as error:
                if getattr(error, "status", None) == 404:
                    return None
                raise

    async def was_oom(self, container: str) -> bool:
        """Whether the kernel has killed something in it for want of memory, if the engine still knows, and tells."""
        try:
            state = (await self._docker.containers.container(container).show())["State"]
        except Exception:
            return False  # it is gone, or its engine is
        return bool(state.get("OOMKilled"))

    async def remove(self, container: str) -> None:
        """Kill it if it lives, and see that nothing of it is left."""
        found = self._docker.containers.container(container)
        until: float | None = None
        while True:
            try:
                await found.delete(force=True, v=True)
            except Exception as error:
                status = getattr(error, "status", None)
                if status == 404:
                    self.is_frozen = False
                    return
                # It removes itself at its end, so both may be at it; and podman needs a moment after an end.
                if status not in (409, 500) or (until is not None and time.monotonic() > until):
                    self._not_answered(container, error)
                    raise self._error("remove a container", "", error) from error
                until = until or time.monotonic() + GONE_S
                await asyncio.sleep(0.05)

    def _not_answered(self, container: str, error: Exception) -> None:
        self.unsure.add(container)
        self.is_frozen = isinstance(error, TimeoutError)

    async def list(self, label: str) -> list[dict[str, Any]]:
        """All containers with a label, also those that have ended."""
        async with self._named("list containers"):
            found = await self._docker.containers.list(all=1, filters=f'{{"label": ["{label}"]}}')
            return [container._container for container in found]

    async def close(self) -> None:
        """Give the connections back."""
        await self._docker.close()
        for _ in range(3):
            await asyncio.sleep(0)  # transports are closed in a later turn of the loop, which may be about to end

    @contextlib.asynccontextmanager
    async def _named(self, doing: str, image: str = "") -> AsyncGenerator[None]:
        try:
            yield
        except Exception as error:
            raise self._error(doing, image, error) from error

    def _error(self, doing: str, image: str, error: Exception) -> ExecutorUnavailable:
        if isinstance(error, ExecutorUnavailable):
            return error
        status, text = getattr(error, "status", None), str(getattr(error, "message", error)) or type(error).__name__
        if image and (status == 404 or "no such image" in text.lower()):
            return ImageNotFound(
                f"the container engine at {self.address} has no image {image!r}",
                why=text,
                fix=f"docker pull {image}, build it, or name another one; images are not pulled by themselves",
                image=image,
            )
        if not _is_answer(error):
            return _no_answer(self.address, error, text)
        return ExecutorUnavailable(
            f"the container engine at {self.address} cannot {doing}", why=text, fix=_fix_of(text)
        )


def _fix_of(refusal: str) -> str:
    """What to do about it; every engine says in words of its own what its runtime has said."""
    if "executable file not found" in refusal or "exec:" in refusal or "exec format" in refusal:
        return "name the Python of the image with python=, and see that user= may run it"
    return "see its own log for more"


def _client(address: str | None) -> tuple[Docker, str]:
    require()
    import aiodocker
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=REQUEST_S)
    try:
        client = aiodocker.Docker(url=address, timeout=timeout)
    except (AssertionError, ValueError) as error:
        known = _other_socket()
        if address is not None or known is None:
            raise ExecutorUnavailable(
                f"there is no container engine at {address!r}" if address else "no container engine was found",
                why=str(error) or "DOCKER_HOST is not set, and none of the usual sockets is there",
                fix="start Docker or Podman, and name its socket with docker_host='unix:///...' or DOCKER_HOST",
            ) from error
        address = known
        client = aiodocker.Docker(url=address, timeout=timeout)
    return client, address or str(client._connection_info)


def _other_socket() -> str | None:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "/nowhere")
    for place in _PODMAN:
        if (path := Path(place.format(runtime=runtime))).is_socket():
            return f"unix://{path}"
    return None


def _is_answer(error: Exception) -> bool:
    return getattr(error, "status", None) not in (None, _NO_ANSWER)


def _errno(error: Exception) -> int | None:
    """What the system said of the connection, if it is that."""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.errno):
        cause = getattr(cause, "os_error", None) or cause.__cause__ or cause.__context__
    return cause.errno if isinstance(cause, OSError) else None


def _no_answer(address: str, error: Exception, text: str) -> ExecutorUnavailable:
    number = _errno(error)
    if number == errno.EACCES:
        why, fix = "this user may not talk to it", "join the group that may (docker), or run a rootless engine"
    elif number == errno.ENOENT:
        why, fix = "its socket is not there", "start it, or name another one with docker_host= or DOCKER_HOST"
    else:
        why, fix = text, "see that it runs; steps can be tried again when it does"
    return ExecutorUnavailable(f"the container engine at {address} does not answer", why=why, fix=fix)
