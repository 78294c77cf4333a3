"""Arrays come back equal, whatever their layout, and count by their content; numpy is not imported for their sake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from treadle.errors import DecodeError
from treadle.storage.codecs import decode, digest, encode

np = pytest.importorskip("numpy")

ENGINE = Path(__file__).parents[2] / "engine"
LARGE = 10_000
STRUCTURE = [("id", "<i4"), ("pos", ">f8", (2, 3)), ("tag", "S4"), ("inner", [("a", "?"), ("b", "<M8[ms]")])]

ARRAYS: dict[str, Any] = {
    "zero dimensions": lambda: np.array(5),
    "empty": lambda: np.zeros((0, 3), np.float32),
    "empty in the middle": lambda: np.zeros((2, 0, 3)),
    "no-byte text": lambda: np.ndarray((3,), "U0"),
    "bool": lambda: np.array([True, False]),
    "float16": lambda: np.arange(6, dtype=np.float16).reshape(2, 3),
    "complex": lambda: np.array([1 + 2j, complex("nan")]),
    "Fortran order": lambda: np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "strided": lambda: np.arange(100)[::-7],
    "transposed view": lambda: np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1),
    "broadcast": lambda: np.broadcast_to(np.arange(3), (4, 3)),
    "big-endian": lambda: np.arange(5, dtype=">i4"),
    "text": lambda: np.array(["a", "böc", ""]),
    "bytes": lambda: np.array([b"a", b"bcd"]),
    "datetime64": lambda: np.array(["2024-01-01", "NaT"], "M8[us]"),
    "timedelta64": lambda: np.array([1, 2], "m8[3h]"),
    "structure": lambda: np.zeros(3, STRUCTURE),
    "aligned structure": lambda: np.ones(2, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    "structure with titles": lambda: np.ones(2, np.dtype([(("title", "a"), "i1"), ("b", "f8")])),
    "void": lambda: np.array([b"ab", b"cd"], "V2"),
    "read-only": lambda: np.frombuffer(b"12345678", np.uint8),
    "signed zero and infinities": lambda: np.array([-0.0, np.inf, -np.inf, np.nan]),
    "large": lambda: np.arange(LARGE, dtype=float),
    "large in Fortran order": lambda: np.asfortranarray(np.arange(LARGE, dtype=float).reshape(100, -1)),
    "large structure": lambda: np.zeros(LARGE, STRUCTURE),
    "large big-endian": lambda: np.arange(LARGE, dtype=">i8"),
    "large datetime64": lambda: np.arange(LARGE).astype("M8[s]"),
    "large text": lambda: np.array(["text"] * LARGE),
}
SCALARS: list[Any] = [
    np.float64(1.5), np.float32(-0.0), np.float16("nan"), np.int8(-1), np.uint64(2**64 - 1), np.bool_(True), np.intc(3),
    np.longlong(3), np.ulonglong(3), np.complex64(1 + 2j), np.datetime64("2024-01-01T00:00", "m"),
    np.datetime64("NaT", "D"), np.timedelta64(3, "h"), np.str_("a\0"), np.str_(""), np.bytes_(b"a\0\0"),
]  # fmt: skip


def same(a: Any, b: Any) -> bool:
    assert type(a) is type(b)
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    if a.dtype.names:  # field by field: the padding of a structure is not content
        return all(same(a[name], b[name]) for name in a.dtype.names)
    return bool(a.tobytes() == b.tobytes())


def back(value: Any) -> Any:
    encoded = encode(value)
    assert encoded.codec in ("msgpack", "numpy")
    return decode(encoded.codec, encoded.data, trusted=False)


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_comes_back_equal_alone_and_nested(name: str) -> None:
    array = ARRAYS[name]()
    assert encode(array).codec == ("numpy" if "large" in name else "msgpack")
    for again in (back(array), back([{"a": (array,)}])[0]["a"][0]):
        assert same(again, array)
        assert again.flags.writeable
        assert again.flags.owndata
    assert digest(back(array)) == digest(array) == encode(array).digest
    assert encode(array).mutable


@pytest.mark.parametrize("value", SCALARS, ids=repr)
def test_an_array_scalar_comes_back_as_the_same_type(value: Any) -> None:
    assert same(back(value), value)
    assert type(back(value)) is type(value)
    assert len(back(value)) == len(value) if isinstance(value, str | bytes) else True
    assert same(next(iter(back({value: None}))), value)
    assert not encode(value).mutable


def test_large_arrays_are_files_that_numpy_itself_can_read(tmp_path: Path) -> None:
    for name, make in ARRAYS.items():
        if "large" in name:
            (tmp_path / "a.npy").write_bytes(encode(make()).data)
            assert same(np.load(tmp_path / "a.npy", allow_pickle=False), make())


@pytest.mark.parametrize("size", [12, LARGE])
def test_an_array_counts_by_content_not_by_layout(size: int) -> None:
    array = np.arange(size, dtype=float).reshape(4, -1)
    wide = np.zeros((8, array.shape[1] * 2))
    wide[::2, ::2] = array
    for other in (np.asfortranarray(array), wide[::2, ::2], array.copy(), np.flip(np.flip(array))):
        assert digest(other) == digest(array)
        assert encode(other).data == encode(array).data


@pytest.mark.parametrize("size", [12, LARGE])
def test_arrays_of_other_type_shape_or_order_count_differently(size: int) -> None:
    array = np.arange(size, dtype=np.int64)
    others: list[Any] = [
        array, array.reshape(4, -1), array.reshape(-1, 4), array.astype(np.uint64), array.astype(">i8"),
        array[::-1].copy(), array.astype(float), array.view("M8[s]"), array.view("V8"), array.tobytes(), array.tolist(),
        [array],
    ]  # fmt: skip
    assert len({digest(other) for other in others}) == len(others)


def test_scalars_of_numpy_and_of_python_count_differently() -> None:
    ones = [np.int64(1), np.int32(1), np.longlong(1), np.float64(1), np.array(1), np.array([1]), np.True_]
    values = [1, 1.0, True, *ones]
    assert len({digest(value) for value in values}) == len(values)


def test_padding_in_a_structure_does_not_count() -> None:
    dtype = np.dtype([("a", "i1"), ("b", [("c", "i1"), ("d", "f8")])], align=True)
    for count in (3, LARGE):
        clean, dirty = np.zeros(count, dtype), np.frombuffer(b"\xaa" * dtype.itemsize * count, dtype).copy()
        for array in (clean, dirty):
            array["a"], array["b"]["c"], array["b"]["d"] = 1, 2, 3
        assert digest(clean) == digest(dirty)


def test_what_has_no_form_without_pickle_is_pickled() -> None:
    values: list[Any] = [
        np.array([1, "a", None], object), np.ma.masked_array([1, 2], [True, False]), np.zeros(2, [("o", object)]),
        np.array([1.5], np.longdouble), np.longdouble(1.5), np.zeros((), STRUCTURE)[()],
        np.array([1], np.dtype("i4", metadata={"a": 1})),
    ]  # fmt: skip
    for value in values:
        encoded = encode([value])
        assert encoded.codec == "pickle"
        again = decode("pickle", encoded.data)[0]
        assert type(again) is type(value)
        assert repr(again) == repr(value)
        # Loading a masked array changes what it keeps beside its items.
        assert digest([again]) == encoded.digest or type(value) is not np.ndarray


def test_an_array_inside_of_a_pickled_object_counts_by_content() -> None:
    array = np.arange(12).reshape(3, 4)
    values = [ValueError(array), ValueError(np.asfortranarray(array))]
    assert digest(values[0]) == digest(values[1])
    assert digest(values[0]) != digest(ValueError(array + 1))
    assert digest(ValueError(np.array([{1}, None]))) == digest(ValueError(np.array([{1}, None])))


@pytest.mark.parametrize("place", [0, 3, 6, 8, 9, 30, 60, 80, 127])
def test_a_damaged_array_file_is_refused_or_another_array_but_no_crash(place: int) -> None:
    data = encode(np.arange(LARGE)).data
    for changed in (data[:place], data[:place] + b"\xff" + data[place + 1 :], data + b"x"):
        with pytest.raises(DecodeError):
            decode("numpy", changed)


@pytest.mark.parametrize("header", ["{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", "[" * 9_000, "{}", "1"])
def test_a_hostile_array_header_is_refused(header: str) -> None:
    data = b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header.encode() + b"12345678"
    with pytest.raises(DecodeError):
        decode("numpy", data)


def test_numpy_is_neither_imported_by_the_codecs_nor_by_a_check() -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(ENGINE)!r})\n"
        "from treadle.storage.codecs import decode, digest, encode\n"
        "class C: pass\n"
        "for value in (1, [1, (2,)], {1: C()}, C(), 'x' * 100_000, ValueError(1)):\n"
        "    encoded = encode(value); decode(encoded.codec, encoded.data); digest(value)\n"
        "heavy = {'numpy', 'pandas', 'polars', 'pyarrow', 'torch', 'zoneinfo', 'fractions'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
