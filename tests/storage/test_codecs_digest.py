"""One content digest per value: equal for equal values of equal types, in every process, and different otherwise."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import blake3
import pytest

from treadle.errors import EncodeError
from treadle.storage.codecs import checksum, decode, digest, encode, format_digest, parse_digest
from treadle.storage.codecs.raw import LARGE_BYTES

ENGINE = Path(__file__).parents[2] / "engine"


@dataclass
class Holder:
    value: Any


class Opaque:
    """Only pickle can store it."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts


def first() -> int:
    return 1


def second() -> int:
    return 2


def fingerprint(code: Any) -> bytes:
    return checksum(code.__qualname__.encode() + b"-v1")


def other_fingerprint(code: Any) -> bytes:
    return checksum(code.__qualname__.encode() + b"-v2")


def test_values_that_python_calls_equal_have_different_digests_if_their_types_differ() -> None:
    values: list[Any] = [
        1, 1.0, True, "1", b"1", [1], (1,), {1}, frozenset({1}), {1: 1}, {"1": 1}, {True: 1}, 1 + 0j, Decimal(1),
        Decimal("1.0"), None, 0, 0.0, -0.0, False, "", b"", bytearray(), [], (), {}, set(), frozenset(), [[]], [()],
        OrderedDict(), defaultdict(list), defaultdict(dict), Holder(1), Holder([1]), int, "builtins:int", range(1),
        [1, 2], [2, 1], [[1], 2], [1, [2]], ["ab", "c"], ["a", "bc"], {"a": 1, "b": 2}, {"b": 2, "a": 1},
    ]  # fmt: skip
    assert [(a, b) for a, b in itertools.combinations(values, 2) if digest(a) == digest(b)] == []


def test_the_digest_of_an_enveloped_value_is_the_hash_of_its_bytes() -> None:
    encoded = encode((1, {2}))
    assert encoded.digest is encoded.checksum
    assert encoded.digest == blake3.blake3(encoded.data).digest()


def test_sets_and_dicts_differ_in_what_order_means() -> None:
    names = [f"name{n}" for n in range(50)]
    turned = names[::-1]
    assert digest(set(names)) == digest(set(turned))
    assert digest(dict.fromkeys(names)) != digest(dict.fromkeys(turned))


@pytest.mark.parametrize("size", [LARGE_BYTES - 10, LARGE_BYTES, LARGE_BYTES + 1, 3 * LARGE_BYTES])
def test_bytes_text_and_their_wrappers_stay_apart_at_every_size(size: int) -> None:
    data, text = b"x" * size, "x" * size
    values: list[Any] = [data, text, bytearray(data), [data], [text], data + b"x"]
    assert len({digest(value) for value in values}) == len(values)
    assert all(digest(value) == encode(value).digest for value in values)


def test_equal_parts_count_alike_whether_they_are_one_object_or_two() -> None:
    row = [1, 2]
    assert digest([row, row]) == digest([[1, 2], [1, 2]])
    one = "".join(["long text ", "made here"])
    two = "".join(["long text ", "made here"])
    assert digest(Opaque(one, one)) == digest(Opaque(one, two))


def test_pickled_values_count_by_content_too() -> None:
    names = {f"name{n}" for n in range(50)}
    value = Opaque(names, {"a": [1, (2,)]})
    assert encode(value).codec == "pickle"
    again = decode("pickle", encode(value).data)
    assert digest(again) == digest(value) == encode(value).digest
    assert digest(value) != digest(Opaque(names, {"a": [1, (3,)]}))
    assert digest([value]) != digest([[value]])
    assert digest([value]) == encode([value]).digest


def test_values_that_reach_themselves_have_a_digest() -> None:
    ring: list[Any] = [1]
    ring.append(ring)
    node = Opaque(set())
    node.parts[0].add(node)
    for value in (ring, node, Holder(ring), [node]):
        assert digest(value) == digest(value) == encode(value).digest


SCRIPT = """
import sys, collections, datetime, decimal, pathlib, uuid, zoneinfo
sys.path.insert(0, {engine!r})
from treadle.storage.codecs import digest, encode
names = [f"name{{n}}" for n in range(40)]
class Opaque:
    def __init__(self, part): self.part = part
values = [
    set(names), frozenset(names), {{frozenset(names[:9]): set(names)}}, dict.fromkeys(names, (1, 2.5)),
    collections.Counter(names), [datetime.datetime(2024, 1, 2, tzinfo=zoneinfo.ZoneInfo("Europe/Paris"))],
    decimal.Decimal("1.50"), pathlib.PurePosixPath("/a"), uuid.UUID(int=7), int, len, "x" * 100_000,
    Opaque(set(names)), [Opaque({{1: frozenset(names)}})], ValueError(names),
]
print([digest(value).hex() for value in values] + [encode(value).digest.hex() for value in values])
"""


def test_digests_are_the_same_in_every_process_whatever_its_hash_seed() -> None:
    def run(seed: str) -> str:
        script = SCRIPT.format(engine=str(ENGINE))
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", script]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    assert run("1") == run("2") != ""


def test_known_digests_never_change() -> None:
    """They are in the logs of users: a change here makes all their cache entries worthless."""
    value = {"a": [1, -1.5, None, True, "é", b"\0"], (1, 2): {3}, "d": Decimal("1.0")}
    assert encode(value).data.hex() == KNOWN_BYTES
    assert digest("x" * 70_000).hex() == KNOWN_TEXT


KNOWN_BYTES = "c7280496a1619601cbbff8000000000000c0c3a2c3a9c40100c70301920102d5029103a164c70326312e30"
KNOWN_TEXT = "abcb5bbbb6180da71fa1ae79d4771b85f1c3d34a404ebc8c97b30900afef309d"


def test_code_counts_by_its_fingerprint_wherever_it_is() -> None:
    values: list[Any] = [first, Holder, [first], {"f": (first, {Holder})}, Opaque(first), defaultdict(first)]
    for value in values:
        by_name, v1 = digest(value), digest(value, code_digest=fingerprint)
        assert len({by_name, v1, digest(value, code_digest=other_fingerprint)}) == 3
        assert encode(value, code_digest=fingerprint).digest == v1
        assert encode(value, code_digest=fingerprint).data == encode(value).data
    assert digest(first, code_digest=fingerprint) != digest(second, code_digest=fingerprint)


def test_builtin_code_counts_by_its_name() -> None:
    def refuse(code: object) -> bytes:
        raise AssertionError(code)

    for value in (len, int, [dict], {"f": sum}):
        assert digest(value, code_digest=refuse) == digest(value)


def test_plain_data_does_not_ask_for_fingerprints_and_counts_the_same() -> None:
    for value in (1, [1], (1, {2}), Holder(1), "x" * 100_000):
        assert digest(value, code_digest=fingerprint) == digest(value)


def test_a_lambda_can_be_hashed_with_a_fingerprint_but_not_stored() -> None:
    value = [lambda: 0]
    assert len(digest(value, code_digest=fingerprint)) == 32
    assert len(digest(Opaque(value), code_digest=fingerprint)) == 32
    with pytest.raises(EncodeError, match="lambda"):
        encode(value, code_digest=fingerprint)
    with pytest.raises(EncodeError, match=r"value\[0\] cannot be hashed"):
        digest(value)


def test_code_without_a_fingerprint_never_counts_by_its_name_instead() -> None:
    def refuse(code: object) -> bytes:
        raise OSError("no source")

    for value in (first, [first], Opaque(first), Holder):
        with pytest.raises(EncodeError, match="has no fingerprint"):
            digest(value, code_digest=refuse)


@dataclass(eq=False)
class Step:
    """What a decorator leaves at the name of a function."""

    __treadle_code__ = True
    fn: Any

    def __post_init__(self) -> None:
        self.__module__, self.__qualname__ = self.fn.__module__, self.fn.__qualname__


@Step
def step() -> int:
    return 1


def test_an_object_that_stands_for_a_function_counts_as_code() -> None:
    assert decode("msgpack", encode([step]).data)[0] is step
    assert digest(step, code_digest=lambda _: b"1") == digest(step, code_digest=lambda _: b"1")
    assert digest(step, code_digest=lambda _: b"1") != digest(step, code_digest=lambda _: b"2")


def test_digests_are_written_with_their_algorithm() -> None:
    value = digest(1)
    assert parse_digest(format_digest(value)) == value
    for text in ("", "blake3:", "sha256:" + "0" * 64, "blake3:" + "0" * 63, "blake3:" + "g" * 64, "blake3:" + "A" * 64):
        with pytest.raises(ValueError):
            parse_digest(text)
