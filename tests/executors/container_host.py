"""Real container engines for the tests: installed if they are missing, started privately, stopped by process id.

Knows Debian, Docker and podman; what is tested on them it does not know. No registry is asked for an image: one is made
of the interpreter that runs the tests and of the shared libraries that it needs, so it is of the same version always.
"""

from __future__ import annotations

import compileall
import contextlib
import fcntl
import importlib.util
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

IMAGE = "treadle-test:latest"  # podman imports under no other tag
PACKAGES = {"docker": ("docker.io",), "podman": ("podman", "runc", "conmon")}
PROGRAMS = {"docker": ("/usr/sbin/dockerd",), "podman": ("/usr/bin/podman", "/usr/sbin/runc", "/usr/bin/conmon")}
PODMAN = """\
[containers]
netns = "none"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
# Libraries that wheels expect of every system, beside those that the interpreter itself is linked to.
FOR_WHEELS = {"libstdc++.so.6", "libgcc_s.so.1", "libm.so.6", "libdl.so.2", "libpthread.so.0", "libz.so.1"}
# But not what was compiled: that is half of the time which a small Python program takes.
LEFT_OUT = {"test", "tests", "idlelib", "turtledemo", "ensurepip", "site-packages", "lib2to3"}
LIMIT_S = 60.0


class NoEngine(Exception):
    """Why there can be no engine here."""


@contextlib.contextmanager
def running(kind: str) -> Iterator[Private]:
    """A private engine with the image in it."""
    install(kind)
    folder = Path(tempfile.mkdtemp(prefix="tdl-", dir="/tmp"))  # short: paths of sockets end at 107 bytes
    engine = Private(kind, folder)
    try:
        try:
            engine.start()
            _load_image(engine.address, folder)
            _compile_treadle()
            yield engine
        finally:
            engine.stop()
    finally:
        _unmount(folder)
        shutil.rmtree(folder, ignore_errors=True)


def install(kind: str) -> None:
    """Install what is missing.

    Raises:
        NoEngine: that is not possible here.
    """
    if all(os.path.exists(program) for program in PROGRAMS[kind]):
        return
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise NoEngine(f"{kind} is not installed, and installing it takes root on Debian")
    with open("/tmp/treadle-test-install.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the tests of the other engine, in another process
        if all(os.path.exists(program) for program in PROGRAMS[kind]):
            return
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (
            ["apt-get", "update", "-qq"],
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES[kind]],
        ):
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise NoEngine(f"{' '.join(command)} failed: {done.stderr[-500:]}")


class Private:
    """An engine of the tests' own, which can be killed and started again."""

    def __init__(self, kind: str, folder: Path) -> None:
        self._folder, self.address = folder, f"unix://{folder}/s"
        self._environment = dict(os.environ)
        if kind == "docker":
            self._command = [
                "/usr/sbin/dockerd", "--data-root", str(folder / "data"), "--exec-root", str(folder / "x"), "--host",
                self.address, "--pidfile", str(folder / "pid"), "--bridge=none", "--iptables=false",
            ]  # fmt: skip
        else:
            (folder / "containers.conf").write_text(PODMAN)
            self._environment["CONTAINERS_CONF"] = str(folder / "containers.conf")
            self._command = [
                "/usr/bin/podman", "--root", str(folder / "data"), "--runroot", str(folder / "x"),
                "system", "service", "--time=0", self.address,
            ]  # fmt: skip

    def start(self) -> None:
        """Start it, and wait until it answers."""
        # What a daemon was killed with, it takes for a running one for as long as nobody has buried it.
        (self._folder / "x/containerd/containerd.pid").unlink(missing_ok=True)
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, cwd=self._folder,  # conmon notes out-of-memory kills where it was started
            )  # fmt: skip
        _await_answer(self._process, self.address, self._folder / "log")

    def kill(self) -> None:
        """End it without a word."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ask it to end, and end what it has left: after a sudden death there are processes of its own still."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
        for pid in processes_about(f"{self._folder}/"):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def processes_about(text: str) -> set[int]:
    """Processes of the whole machine, in containers too, that have a text in their command line."""
    found: set[int] = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if text.encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.add(int(path.parent.name))
    return found


def _await_answer(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError):
            if request(address, "GET", "/_ping")[0] == 200:
                return
        time.sleep(0.05)
    raise NoEngine(f"the engine does not answer; it said: {log.read_text(errors='replace')[-800:]}")


def request(address: str, method: str, path: str, body: bytes | Path | None = None) -> tuple[int, bytes]:
    """One request to an engine's socket, by hand: tests look at it another way than the code that they test."""
    import http.client
    import socket

    class Connection(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(LIMIT_S)
            self.sock.connect(address.removeprefix("unix://"))

    connection = Connection("engine")
    try:
        with contextlib.ExitStack() as stack:
            kind = "application/x-tar" if isinstance(body, Path) else "application/json"
            data = stack.enter_context(body.open("rb")) if isinstance(body, Path) else body
            connection.request(method, path, data, {"Content-Type": kind} if body else {})
            answer = connection.getresponse()
            return answer.status, answer.read()
    finally:
        connection.close()


def _unmount(folder: Path) -> None:
    """Both engines leave mounts below their folder."""
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for place in sorted((mount for mount in mounts if mount.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "-l", place], check=False, capture_output=True)


# -- the image ----------------------------------------------------------------------------


def _compile_treadle() -> None:
    """Containers cannot write what they compile, so each would do so for itself."""
    for package in ("treadle", "treadle_adapters"):
        spec = importlib.util.find_spec(package)
        assert spec is not None
        for place in spec.submodule_search_locations or ():
            compileall.compile_dir(place, quiet=2)


def _load_image(address: str, folder: Path) -> None:
    name, _, tag = IMAGE.partition(":")
    path = folder / "image.tar"
    write_image(path)
    changes = f"changes=ENV%20PATH%3D{os.path.dirname(interpreter())}"
    status, answer = request(address, "POST", f"/images/create?fromSrc=-&repo={name}&tag={tag}&{changes}", path)
    path.unlink()
    if status != 200 or b"error" in answer:
        raise NoEngine(f"the image was refused: {status} {answer.decode()[-300:]}")


def interpreter() -> str:
    """The program of this interpreter, not of its virtual environment."""
    return os.path.realpath(sys.executable)


def write_image(path: Path) -> None:
    """A root file system with this interpreter in it, at the same place, and nothing else."""
    library = Path(sysconfig.get_path("stdlib", vars={"base": sys.base_prefix, "installed_base": sys.base_prefix}))
    binary = Path(interpreter())
    with tarfile.open(path, "w") as tar:
        names: set[str] = set()
        for folder in ("tmp", "proc", "dev", "sys", "etc", "run"):
            _add_folder(tar, folder)
        _add_text(tar, "etc/passwd", "root:x:0:0::/:/bin/false\nnobody:x:65534:65534::/tmp:/bin/false\n")
        _add_text(tar, "etc/group", "root:x:0:\nnogroup:x:65534:\n")
        for file in _shared_libraries([binary, *library.glob("lib-dynload/*.so")]):
            _add_file(tar, file, names)
        _add_file(tar, binary, names)
        link = tarfile.TarInfo(str(binary.with_name("python3")).lstrip("/"))
        link.type, link.linkname = tarfile.SYMTYPE, binary.name
        if link.name not in names:
            tar.addfile(link)
        tar.add(library, str(library).lstrip("/"), filter=_needed)


def _needed(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    parts = set(member.name.split("/"))
    return None if parts & LEFT_OUT or re.search(r"/config-|\.opt-[12]\.pyc$|\.a$", member.name) else member


def _shared_libraries(programs: list[Path]) -> list[Path]:
    found: dict[str, Path] = {}
    listed = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=False).stdout
    for line in listed.splitlines():
        if match := re.search(r"(?:=> )?(/\S+) \(0x", line):
            found[match[1]] = Path(match[1])
    cached = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    for line in cached.splitlines():
        name, _, place = line.strip().partition(" => ")
        if name.split(" ")[0] in FOR_WHEELS and "x86-64" in name:
            found.setdefault(place, Path(place))
    return list(found.values())


def _add_file(tar: tarfile.TarFile, path: Path, names: set[str]) -> None:
    member = tar.gettarinfo(os.path.realpath(path), str(path).lstrip("/"))
    member.type = tarfile.REGTYPE
    if member.name not in names:
        names.add(member.name)
        with open(path, "rb") as file:
            tar.addfile(member, file)


def _add_folder(tar: tarfile.TarFile, name: str) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
    tar.addfile(member)


def _add_text(tar: tarfile.TarFile, name: str, text: str) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(text.encode()), 0o644
    tar.addfile(member, io.BytesIO(text.encode()))
