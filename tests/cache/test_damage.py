"""Stored outputs that were damaged: never decoded, performed again inside of a run, an error outside of one."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from treadle import pipeline, step
from treadle.errors import ArtifactDamaged
from treadle.storage import codecs

LARGE = 100_000
performed: list[str] = []


@pytest.fixture(autouse=True)
def nothing_performed() -> None:
    performed.clear()


@step(version="1")
async def small(x: int) -> dict[str, int]:
    performed.append("small")
    return {"x": x}


@step(version="1")
async def large(x: int) -> bytes:
    performed.append("large")
    return bytes([x]) * LARGE


@step(version="1")
async def size(value: bytes) -> int:
    return len(value)


@pipeline
async def make_small() -> Any:
    return await small(7)


@pipeline
async def make_large() -> Any:
    return await large(7)


def newest_row(home: Any, name: str) -> tuple[int, bytes]:
    with sqlite3.connect(Path(home.path) / "treadle.db") as connection:
        row: tuple[int, bytes] = connection.execute(
            "SELECT a.id, a.body FROM artifacts a JOIN names n ON n.id = a.name WHERE n.name=? ORDER BY a.id DESC",
            (name,),
        ).fetchone()
    connection.close()
    return row


def set_body(home: Any, number: int, body: bytes) -> None:
    connection = sqlite3.connect(Path(home.path) / "treadle.db")
    with connection:
        connection.execute("UPDATE artifacts SET body=? WHERE id=?", (body, number))
    connection.close()


def blobs(home: Any) -> list[Path]:
    return [
        path
        for path in Path(home.path).rglob("*")
        if path.is_file() and path.stat().st_size >= LARGE / 2 and "treadle.db" not in path.name
    ]


def one_blob(home: Any) -> Path:
    (path,) = blobs(home)
    return path


# -- in the log's database ----------------------------------------------------------------


@pytest.mark.damaged_home
def test_no_flipped_byte_of_a_small_artifact_leads_to_a_wrong_value(home: Any) -> None:
    """Every byte of the row, value and description, in turn."""

    async def main() -> None:
        async with home.engine() as engine:
            await engine.run(make_small)
            _, body = newest_row(home, "small")
            place = body.index(b"\x81\xa1x\x07")
            for offset in range(len(body)):
                number, body = newest_row(home, "small")
                damaged = bytearray(body)
                damaged[min(offset, len(body) - 1)] ^= 1 << (offset % 8)
                set_body(home, number, bytes(damaged))
                performed.clear()
                result = await engine.run(make_small)
                assert result.value == {"x": 7}, offset
                if place <= offset < place + 4:
                    assert performed == ["small"], offset

    home.drive(main())


@pytest.mark.damaged_home
@pytest.mark.parametrize("length", [0, 1, 50, -1])
def test_a_cut_off_row_is_performed_again(home: Any, length: int) -> None:
    home.value(make_small)
    number, body = newest_row(home, "small")
    set_body(home, number, body[:length])
    assert home.value(make_small) == {"x": 7}
    assert performed == ["small", "small"]
    assert home.statuses(make_small) == {"small": "cached"}


@pytest.mark.damaged_home
def test_a_damaged_small_artifact_is_an_error_outside_of_a_run(home: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    result = home.result(make_small)
    number, body = newest_row(home, "small")
    set_body(home, number, body.replace(b"\x81\xa1x\x07", b"\x81\xa1x\x08"))
    artifact = result.step_results["small"].artifacts["small"]
    decoded: list[Any] = []
    monkeypatch.setattr(codecs, "decode", lambda *args, **kwargs: decoded.append(args))
    with pytest.raises(ArtifactDamaged, match="small version 1"):
        artifact.read()
    with pytest.raises(ArtifactDamaged):
        home.drive(artifact.load())
    assert decoded == []


@pytest.mark.damaged_home
def test_the_damage_is_in_the_log(home: Any) -> None:
    home.value(make_small)
    number, body = newest_row(home, "small")
    set_body(home, number, body.replace(b"\x81\xa1x\x07", b"\x81\xa1x\x08"))

    async def main() -> list[str]:
        async with home.engine() as engine:
            result = await engine.run(make_small)
            return [type(event).__name__ async for event in engine.events(result.run_id)]

    kinds = home.drive(main())
    assert "DamageFound" in kinds
    assert kinds.index("DamageFound") < kinds.index("CallCompleted")


# -- in a file ----------------------------------------------------------------------------


def truncate(path: Path) -> None:
    os.truncate(path, LARGE // 2)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[random.Random(7).randrange(len(data))] ^= 1
    path.write_bytes(data)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


def swap(path: Path) -> None:
    path.write_bytes(bytes([9]) * path.stat().st_size)


def link(path: Path) -> None:
    elsewhere = path.parents[3] / "elsewhere"
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


def dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "nowhere")


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_bytes(b"x")


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def no_shard(path: Path) -> None:
    shutil.rmtree(path.parent)


DAMAGES: list[Callable[[Path], None]] = [
    truncate, append, flip, zero, empty, remove, swap, link, dangling_link, directory, fifo, no_shard
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_file_is_never_decoded_and_its_step_performed_again(
    home: Any, damage: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = home.result(make_large)
    artifact = first.step_results["large"].artifacts["large"]
    damage(one_blob(home))

    decode, decoded = codecs.decode, []

    def watching(codec: str, data: Any, **options: Any) -> Any:
        decoded.append(bytes(data))
        return decode(codec, data, **options)

    monkeypatch.setattr(codecs, "decode", watching)
    with pytest.raises(ArtifactDamaged, match="large"):
        artifact.read()
    assert decoded == []
    again = home.result(make_large)
    assert again.value == bytes([7]) * LARGE
    assert again.step_results["large"].status == "succeeded"
    assert all(data == bytes([7]) * LARGE for data in decoded)
    assert performed == ["large", "large"]
    assert home.statuses(make_large) == {"large": "cached"}


@pytest.mark.damaged_home
@pytest.mark.parametrize("damage", [flip, remove], ids=lambda damage: damage.__name__)
def test_a_damaged_artifact_as_an_argument_fails_the_call_by_name(home: Any, damage: Callable[[Path], None]) -> None:
    artifact = home.result(make_large).step_results["large"].artifacts["large"]

    @pipeline
    async def use() -> int:
        return await size(artifact)

    damage(one_blob(home))
    result = home.result(use)
    assert isinstance(result.error, ArtifactDamaged)
    assert result.step_results["size"].status == "failed"


def test_a_consumer_that_was_cached_does_not_need_the_damaged_input(home: Any) -> None:
    @pipeline
    async def both() -> int:
        return await size(large.submit(3))

    assert home.value(both) == LARGE
    flip(one_blob(home))
    result = home.result(both)
    assert result.value == LARGE
    assert {name: call.status for name, call in result.step_results.items()} == {"large": "succeeded", "size": "cached"}
