"""Large outputs of workers that are not trusted: their bytes are stored as they are, what is said of them is not."""

from __future__ import annotations

import asyncio
import importlib.util
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import hostile_steps as steps
import msgspec
import numpy as np
import pytest

from treadle import Engine, Model, RunResult, pipeline, step, worker
from treadle.contracts import Attempt, Output, Performed, Raised, Sink
from treadle.errors import ArtifactDamaged, DecodeError, StepCrashed, StepTypeError
from treadle.storage import codecs
from treadle.storage.local_blobs import LocalBlobs

LIMIT_S = 40.0
LARGE = 100_000
RECORDS = np.dtype([("a", "i1"), ("b", "f8")])

Change = Callable[[LocalBlobs, Output], Output]


class Tampering:
    """An untrusted executor that performs here, by the worker's own code, and then changes what it says."""

    trusted = False
    slots = None

    def __init__(self, change: Change = lambda store, output: output) -> None:
        self.change = change
        self.sent: list[Output] = []

    async def open(self) -> None:
        self.worker = worker.Worker()

    async def perform(self, attempt: Attempt, sink: Sink) -> Performed | Raised:
        outcome = await asyncio.to_thread(self.worker.perform, attempt, sink)
        assert isinstance(outcome, Performed), outcome
        store = LocalBlobs(Path(attempt.store), Path(attempt.store_tmp))
        outputs = tuple([self.change(store, output) for output in outcome.outputs])
        self.sent += outputs
        return msgspec.structs.replace(outcome, outputs=outputs)

    async def close(self) -> None:
        del self.worker


def frame() -> Any:
    return pytest.importorskip("pandas").DataFrame({"a": range(LARGE), "b": ["x", "y"] * (LARGE // 2)})


MADE: dict[str, Callable[[], Any]] = {
    "bytes": lambda: bytes(range(256)) * 1000,
    "text": lambda: "äöü" * LARGE,
    "array": lambda: np.arange(LARGE).reshape(2, -1),
    "texts": lambda: np.array(["a", "bcd"] * LARGE),
    "dates": lambda: np.arange(LARGE).astype("M8[s]"),
    "records": lambda: np.ones(LARGE, RECORDS),
    "frame": frame,
    "list": lambda: [list(range(LARGE)), (1,)],
}
AS_THEY_ARE = {"bytes", "text", "array", "texts", "dates", "frame"}


@step(cache=False)
def made(kind: str) -> Any:
    return MADE[kind]()


@step(cache=False)
async def nothing() -> None:
    pass


@step(cache=False)
def promising() -> Model[bytes]:
    return cast("Model[bytes]", MADE["bytes"]())


@step(cache=False, outputs=("large", "small"))
def two(kind: str) -> tuple[Any, int]:
    return MADE[kind](), 7


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of this file by a name that workers can import."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setitem(sys.modules, "test_strangers", sys.modules[__name__])
    for target in (made, two, promising):
        monkeypatch.setattr(target.fn, "__module__", "test_strangers")


def run(home: Path, executor: Tampering, flow: Any, **options: Any) -> RunResult[Any]:
    async def main() -> RunResult[Any]:
        async with asyncio.timeout(LIMIT_S), Engine(home, executors={"elsewhere": executor}, **options) as engine:
            return await engine.run(flow)

    return asyncio.run(main())


def described(artifact: Any) -> tuple[Any, ...]:
    return artifact.digest, artifact.size, artifact.codec, artifact.type, artifact.metadata


@pytest.mark.parametrize("kind", MADE)
def test_what_a_stranger_makes_is_stored_as_if_it_had_been_made_here(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lies(store: LocalBlobs, output: Output) -> Output:
        payload = msgspec.structs.replace(output.payload, digest=codecs.digest(1))
        return Output(payload, "builtins.int", msgspec.msgpack.encode({"class": "int"}), "another name")

    opened: list[str] = []
    decode = codecs.decode
    monkeypatch.setattr(codecs, "decode", lambda codec, *args, **kw: opened.append(codec) or decode(codec, *args, **kw))

    @pipeline
    async def flow() -> Any:
        there, here = made.with_options(runtime="elsewhere").submit(kind), made.submit(kind)
        await nothing.with_options(after=[there, here])()  # who waits for a future itself wants its value
        opened_before = list(opened)
        same = codecs.digest(await there) == codecs.digest(await here)
        return described(there.artifact), described(here.artifact), same, opened_before

    there, here, same, opened_before = run(tmp_path, Tampering(lies), flow).value
    assert there == here
    assert same
    if kind in AS_THEY_ARE:
        assert here[2] not in opened_before


def test_one_output_that_stays_unopened_and_one_that_does_not(tmp_path: Path) -> None:
    @pipeline
    async def flow() -> Any:
        future = two.with_options(runtime="elsewhere").submit("array")
        large, small = await future
        return large.sum(), small

    result = run(tmp_path, Tampering(), flow)
    assert result.value == (LARGE * (LARGE - 1) // 2, 7)
    assert result.outputs["two.small"] == 7


@pytest.mark.parametrize("durability", ["strict", "memory"])
def test_it_is_passed_on_and_is_a_hit(tmp_path: Path, durability: str) -> None:
    cached = made.with_options(runtime="elsewhere", cache=True)

    @pipeline
    async def flow() -> Any:
        first = cached.submit("array")
        return (await first)[1, 0], (await cached.submit("array"))[1, 1]

    assert run(tmp_path, Tampering(), flow, durability=durability).value == (LARGE // 2, LARGE // 2 + 1)


def put(data: bytes, codec: str) -> Change:
    """Have other bytes in the store, and say so in an honest way."""

    def change(store: LocalBlobs, output: Output) -> Output:
        checksum = codecs.checksum(data)
        location = store.put(data, checksum)
        payload = msgspec.structs.replace(
            output.payload, codec=codec, size=len(data), checksum=checksum, location=location, data=None
        )
        return msgspec.structs.replace(output, payload=payload)

    return change


def npy(header: bytes, elements: int) -> bytes:
    return b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header + bytes(elements)


def header(text: str) -> bytes:
    return text.encode() + b" " * (-(len(text) + 13) % 64) + b"\n"


ARRAY = "{'descr': '<i8', 'fortran_order': False, 'shape': (20000,), }"
BROKEN = {
    "text that is none": (b"\xff" * LARGE, "str"),
    "text that ends too early": ("ä".encode() * LARGE + b"\xc3", "str"),
    "an array without a head": (bytes(LARGE), "numpy"),
    "an array with a head that is none": (npy(b"(" * 5000, LARGE), "numpy"),
    "an array with too long a head": (b"\x93NUMPY\x02\x00" + b"\xff\xff\xff\x7f" + bytes(LARGE), "numpy"),
    "an array with fewer elements": (npy(header(ARRAY), 159_992), "numpy"),
    "an array with another head than ours": (npy(header(ARRAY.replace("20000,", "20000, ")), 160_000), "numpy"),
    "an array of objects": (npy(header(ARRAY.replace("<i8", "|O")), 160_000), "numpy"),
    "an array with a negative shape": (npy(header(ARRAY.replace("20000,", "-1, -20000")), 160_000), "numpy"),
    "a pickle": (pickle.dumps([bytes(LARGE)]), "pickle"),
    "a frame that is none": (bytes(LARGE), "parquet+pandas"),
    "a codec that is not known": (bytes(LARGE), "magic"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_bytes_that_are_not_what_they_are_called_are_refused(tmp_path: Path, what: str) -> None:
    @pipeline
    async def flow() -> Any:
        future = made.with_options(runtime="elsewhere", cache=True, retry=1).submit("bytes")
        await asyncio.wait([future])
        return future.exception()

    result = run(tmp_path / "home", Tampering(put(*BROKEN[what])), flow)
    error = result.value
    assert type(error) is DecodeError
    assert result.step_results["made"].status == "failed"


def test_bytes_that_have_changed_since_are_refused(tmp_path: Path) -> None:
    def change(store: LocalBlobs, output: Output) -> Output:
        path = store.folders[0] / output.payload.location
        data = bytearray(path.read_bytes())
        data[1000] ^= 1
        path.write_bytes(data)
        return output

    @pipeline
    async def flow() -> Any:
        await made.with_options(runtime="elsewhere")("array")

    assert isinstance(run(tmp_path / "home", Tampering(change), flow).error, ArtifactDamaged)


def test_a_location_outside_of_the_store_is_refused(tmp_path: Path) -> None:
    def change(store: LocalBlobs, output: Output) -> Output:
        payload = msgspec.structs.replace(output.payload, location="../../secret")
        return msgspec.structs.replace(output, payload=payload)

    @pipeline
    async def flow() -> Any:
        await made.with_options(runtime="elsewhere")("array")

    assert isinstance(run(tmp_path / "home", Tampering(change), flow).error, StepCrashed)


def test_what_a_step_promises_is_asked_of_strangers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lying = promising.with_options(runtime="elsewhere")

    @pipeline
    async def flow() -> Any:
        await lying()

    monkeypatch.setattr(worker, "_check_outputs", lambda *_: None)  # as a stranger's would
    assert isinstance(run(tmp_path / "home", Tampering(), flow).error, StepTypeError)


def peak_rss_bytes() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.linux
def test_a_large_array_of_a_stranger_goes_to_the_next_step_without_coming_here(tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "docs" / "examples" / "command_executor.py"
    spec = importlib.util.spec_from_file_location("command_executor", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    @pipeline
    async def flow() -> tuple[int, int]:
        there: dict[str, Any] = {"runtime": "command"}
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now
        before = peak_rss_bytes()
        count = await steps.total.with_options(**there)(steps.ones.with_options(**there).submit(12_000_000))
        return count, peak_rss_bytes() - before

    executors = {"command": module.CommandExecutor(trusted=False)}

    async def main() -> RunResult[Any]:
        async with asyncio.timeout(LIMIT_S), Engine(tmp_path / "home", executors=executors) as engine:
            return await engine.run(flow)

    count, grown = asyncio.run(main()).value
    assert count == 12_000_000
    assert grown < 24_000_000
