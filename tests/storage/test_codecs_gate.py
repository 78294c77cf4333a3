"""The gate lets nothing through that it should not: what cannot be stored, broken bytes, and bytes of strangers."""

from __future__ import annotations

import os
import pickle
import re
import sys
import threading
from collections import defaultdict
from dataclasses import dataclass, make_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.msgpack import Ext

from treadle.errors import DecodeError, EncodeError, OptionError
from treadle.storage.codecs import Codec, decode, digest, encode, register_codec, registry, tags

HERE = sys.modules[__name__]
pack = msgspec.msgpack.encode


@dataclass
class Settings:
    lock: Any
    name: str = "x"


class Shade(Enum):
    DARK = 1


class Pair(NamedTuple):
    a: int
    b: int


class Row(msgspec.Struct):
    a: int


class Unloadable:
    """Its pickle leaves out an argument that its constructor takes, as that of many an exception does."""

    def __init__(self, code: int, text: str) -> None:
        self.text = f"{code}: {text}"

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return Unloadable, (self.text,)


UNPICKLED: list[str] = []


def betray(name: str) -> str:
    UNPICKLED.append(name)
    return name


class Hostile:
    """Unpickling it leaves a trace."""

    def __reduce__(self) -> Any:
        return (betray, ("it was loaded",))


# -- what cannot be stored ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (threading.Lock(), "value"),
        ({"model": [1, {"lock": threading.Lock()}]}, "value['model'][1]['lock']"),
        ([Settings(1), Settings((1, threading.Lock()))], "value[1].lock[1]"),
        ({threading.Lock(): 1}, "value.keys()[0]"),
        ([{1, threading.Lock()}], "value[0]{...}"),
        ((1, lambda: 0), "value[1]"),
        (defaultdict(lambda: 0), "value"),
        ({"rows": (n for n in [1])}, "value['rows']"),
        ([memoryview(b"x")], "value[0]"),
        ([Row(threading.Lock())], "value[0].a"),  # type: ignore[arg-type]
    ],
)
def test_an_encode_error_names_the_part_the_reason_and_the_fix(value: Any, path: str) -> None:
    with pytest.raises(EncodeError) as caught:
        encode(value)
    assert caught.value.path == path
    assert caught.value.value is value
    assert path in str(caught.value)
    assert caught.value.why
    assert "persist=False" in caught.value.fix
    assert "register_codec" in caught.value.fix


def test_a_local_class_is_refused_with_the_fix() -> None:
    class Local:
        pass

    for value in (Local(), Local, make_dataclass("Made", ["a"])(1)):
        with pytest.raises(EncodeError, match="top level of a module"):
            encode([value])


def test_a_value_whose_pickle_cannot_be_loaded_is_refused_before_it_is_stored() -> None:
    with pytest.raises(EncodeError, match="cannot be loaded again"):
        encode([Unloadable(1, "x")])


def test_without_pickle_what_has_no_envelope_is_refused() -> None:
    with pytest.raises(EncodeError, match="pickle is not allowed") as caught:
        encode({"a": [ValueError("x")]}, allow_pickle=False)
    assert caught.value.path == "value['a'][0]"
    with pytest.raises(EncodeError, match="cannot be hashed"):
        digest({"a": [ValueError("x")]}, allow_pickle=False)
    assert encode([1, (2,)], allow_pickle=False).codec == "msgpack"


def test_nesting_without_end_is_an_error_and_no_crash() -> None:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    for use in (encode, digest):
        with pytest.raises(EncodeError, match="deep") as caught:
            use(value)
        assert len(str(caught.value)) < 1_000
    while value:  # taking it apart level by level, or freeing it would recurse
        value = value[0]


def test_a_value_whose_own_methods_fail_is_refused_with_their_words() -> None:
    class Rude(dict[str, Any]):
        def __reduce_ex__(self, protocol: Any) -> Any:
            raise LookupError("not for you")

    with pytest.raises(EncodeError, match="not for you"):
        encode([Rude()])


# -- bytes that are not what they should be --------------------------------------------------


def decoded_or_refused(codec: str, data: bytes, *, trusted: bool) -> None:
    try:
        decode(codec, data, trusted=trusted)
    except DecodeError:
        pass


EXTENSIONS = st.builds(
    lambda tag, data: pack(Ext(tag, data)), st.integers(-128, 127) | st.sampled_from(list(range(1, 99))), st.binary()
)
NESTED = st.recursive(
    st.one_of(
        st.binary(),
        st.integers(-5, 300),
        st.text(max_size=3),
        st.sampled_from([f"{__name__}:Row", f"{__name__}:Settings", "builtins:int", "<f8", "name", "a"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=9),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.builds(lambda tag, data: Ext(tag, pack(data)), st.integers(1, 99), inner),
    ),
    max_leaves=9,
).map(pack)


@settings(max_examples=600)
@given(st.binary(max_size=40) | EXTENSIONS | NESTED, st.booleans())
def test_whatever_the_bytes_only_decode_error_comes_out(data: bytes, trusted: bool) -> None:
    decoded_or_refused("msgpack", data, trusted=trusted)


SAMPLE = encode({"a": [(1, {2}), Row(1), Pair(1, 2), Shade.DARK, Settings(2**70)], "path": Path("/x")}).data


@settings(max_examples=400)
@given(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255), st.booleans())
def test_a_flipped_byte_never_raises_anything_but_decode_error(place: int, byte: int, trusted: bool) -> None:
    decoded_or_refused("msgpack", SAMPLE[:place] + bytes([byte]) + SAMPLE[place + 1 :], trusted=trusted)


@pytest.mark.parametrize("place", range(len(SAMPLE)))
def test_a_truncated_envelope_is_refused(place: int) -> None:
    with pytest.raises(DecodeError):
        decode("msgpack", SAMPLE[:place])


def nested_extensions(levels: int, tag: int) -> bytes:
    """An extension in an extension in an extension, written from the inside."""
    parts = [b"\x90"]
    size = 1
    for _ in range(levels):
        head = b"\x91\xc9" + size.to_bytes(4, "big") + bytes([tag])
        parts.append(head)
        size += len(head)
    return b"".join(reversed(parts))


@pytest.mark.parametrize(
    "data",
    [
        b"\x91" * 500_000,
        b"\x81\xa1a" * 300_000,
        nested_extensions(50_000, tags.TUPLE),
        nested_extensions(50_000, tags.FROZENSET),
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff" + b"\0" * 100,
        b"\xc9\xff\xff\xff\xff\x01",
    ],
)
def test_hostile_nesting_and_sizes_are_refused_and_no_crash(data: bytes) -> None:
    for trusted in (True, False):
        with pytest.raises(DecodeError):
            decode("msgpack", data, trusted=trusted)


def test_an_unknown_codec_is_refused_with_the_fix() -> None:
    with pytest.raises(DecodeError, match="register_codec"):
        decode("no-such-codec", b"")


@pytest.mark.parametrize(
    ("tag", "body", "reason"),
    [
        (tags.RECORD, [f"{__name__}:Settings", "lock", 1], "changed"),
        (tags.RECORD, [f"{__name__}:Settings", "lock", 1, "title", "x"], "changed"),
        (tags.RECORD, [f"{__name__}:Pair", "a", 1, "b", 2], "changed"),
        (tags.RECORD, ["builtins:int"], "changed"),
        (tags.RECORD, [f"{__name__}:pack", "a", 1], "changed"),
        (tags.STRUCT, [f"{__name__}:Row", "b", 1], "changed"),
        (tags.NAMED_TUPLE, [f"{__name__}:Pair", ["a"], 1], "changed"),
        (tags.NAMED_TUPLE, [f"{__name__}:Pair", ["a", "b"], 1], "changed"),
        (tags.ENUM, [f"{__name__}:Shade", "LIGHT"], "no longer has"),
        (tags.ENUM, [f"{__name__}:Gone", "LIGHT"], "moved or renamed"),
        (tags.NAMED, ["treadle.no_such_module:f"], "cannot be imported"),
        (tags.NAMED, ["builtins:int.no_such"], "moved or renamed"),
    ],
)
def test_a_class_that_has_changed_since_is_an_error_and_no_guess(tag: int, body: list[Any], reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decode("msgpack", pack(Ext(tag, pack(body))))


def test_a_class_that_was_renamed_is_found_by_its_alias(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Row(5)).data.replace(b"Row", b"Old")
    monkeypatch.setattr(HERE, "Old", Row, raising=False)
    assert decode("msgpack", data) == Row(5)


# -- bytes of strangers ---------------------------------------------------------------------


def test_pickle_is_loaded_only_if_trusted_and_allowed() -> None:
    UNPICKLED.clear()
    data = pickle.dumps(Hostile())
    with pytest.raises(DecodeError, match="trust_workers"):
        decode("pickle", data, trusted=False)
    with pytest.raises(DecodeError, match="allow_pickle"):
        decode("pickle", data, allow_pickle=False)
    assert UNPICKLED == []
    assert decode("pickle", data) == "it was loaded"
    assert UNPICKLED == ["it was loaded"]
    with pytest.raises(DecodeError):
        decode("pickle", b"\x80\x05nonsense")


def test_strangers_bytes_import_no_module() -> None:
    sys.modules.pop("this", None)
    with pytest.raises(DecodeError, match="untrusted bytes never import"):
        decode("msgpack", pack(Ext(tags.NAMED, pack(["this:s"]))), trusted=False)
    assert "this" not in sys.modules


def test_strangers_bytes_name_no_functions() -> None:
    for value in (len, os.getcwd, [os.path.join]):
        assert decode("msgpack", encode(value).data) == value
        with pytest.raises(DecodeError, match="classes only"):
            decode("msgpack", encode(value).data, trusted=False)
    assert decode("msgpack", encode(Row).data, trusted=False) is Row


def test_strangers_bytes_choose_no_factory() -> None:
    data = encode(defaultdict(Hostile)).data
    assert decode("msgpack", data).default_factory is Hostile
    with pytest.raises(DecodeError, match="factory"):
        decode("msgpack", data, trusted=False)
    assert decode("msgpack", encode(defaultdict(list)).data, trusted=False).default_factory is list


def test_strangers_bytes_give_plain_data_and_known_classes() -> None:
    value = {"a": [(1, {2}), Row(1), Pair(1, 2), Shade.DARK, Settings(2**70)]}
    assert decode("msgpack", encode(value).data, trusted=False) == value


def test_pickles_are_loaded_in_one_place_only() -> None:
    engine = Path(__file__).parents[2] / "engine"
    pattern = re.compile(r"\b(pickle|cloudpickle|dill|marshal|shelve|joblib)\.(loads?|Unpickler)\b")
    found = [(path.name, hit) for path in sorted(engine.rglob("*.py")) for hit in pattern.findall(path.read_text())]
    assert found == [("pickled.py", ("pickle", "loads"))]


# -- registered codecs ----------------------------------------------------------------------


class Tensor:
    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers

    def __reduce__(self) -> Any:
        raise TypeError("no pickle")


class TensorCodec:
    name = "tensor"

    def __init__(self) -> None:
        self.encoded = 0

    def accepts(self, value: object) -> bool:
        return type(value) is Tensor

    def encode(self, value: Any) -> bytes:
        self.encoded += 1
        return bytes(value.numbers)

    def decode(self, data: bytes) -> object:
        return Tensor(list(data))


@pytest.fixture
def codec(monkeypatch: pytest.MonkeyPatch) -> TensorCodec:
    monkeypatch.setattr(registry, "_registered", ())
    made = TensorCodec()
    register_codec(made)
    return made


def test_a_registered_codec_stores_its_values_alone_and_inside_of_others(codec: TensorCodec) -> None:
    assert isinstance(codec, Codec)
    encoded = encode(Tensor([1, 2]))
    assert (encoded.codec, encoded.data) == ("tensor", b"\1\2")
    assert decode("tensor", encoded.data).numbers == [1, 2]
    value = {"a": (Tensor([3]), [Row(1)])}
    assert encode(value).codec == "msgpack"
    assert decode("msgpack", encode(value).data)["a"][0].numbers == [3]


def test_a_registered_codecs_values_count_by_their_bytes_or_its_own_digest(codec: TensorCodec) -> None:
    assert digest(Tensor([1])) == digest(Tensor([1])) == encode(Tensor([1])).digest
    assert digest([Tensor([1])]) == encode([Tensor([1])]).digest
    assert len({digest(Tensor([1])), digest(Tensor([2])), digest([Tensor([1])]), digest(b"\1")}) == 4
    codec.digest = lambda value: str(sorted(value.numbers)).encode()  # type: ignore[attr-defined]
    codec.encoded = 0
    assert digest(Tensor([1, 2])) == digest(Tensor([2, 1]))
    assert codec.encoded == 0
    assert digest(Tensor([1, 2])) == encode(Tensor([1, 2])).digest


def test_a_registered_codec_is_given_strangers_bytes_only_if_it_is_safe(codec: TensorCodec) -> None:
    alone, inside = encode(Tensor([1])), encode([Tensor([1])])
    for encoded in (alone, inside):
        with pytest.raises(DecodeError, match="safe = True"):
            decode(encoded.codec, encoded.data, trusted=False)
    codec.safe = True  # type: ignore[attr-defined]
    assert decode("tensor", alone.data, trusted=False).numbers == [1]
    assert decode("msgpack", inside.data, trusted=False)[0].numbers == [1]


def test_a_registered_codec_may_take_over_a_type_that_has_an_envelope(codec: TensorCodec) -> None:
    assert encode([Row(1)]).data == encode([Row(1)]).data
    codec.accepts = lambda value: type(value) is Row and value.a > 1  # type: ignore[method-assign]
    codec.encode = lambda value: bytes([value.a])  # type: ignore[method-assign]
    codec.decode = lambda data: Row(data[0] + 100)  # type: ignore[method-assign]
    assert decode("msgpack", encode([Row(1), Row(2)]).data) == [Row(1), Row(102)]


def test_a_registered_codec_that_fails_is_named(codec: TensorCodec) -> None:
    with pytest.raises(EncodeError, match="codec 'tensor' failed: ValueError") as caught:
        encode({"a": Tensor([1000])})
    assert caught.value.path == "value['a']"
    codec.encode = lambda value: "text"  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(EncodeError, match="gave str, not bytes"):
        encode(Tensor([1]))


def test_a_codec_of_the_same_name_replaces_the_earlier_one(codec: TensorCodec) -> None:
    other = TensorCodec()
    register_codec(other)
    encode(Tensor([1]))
    assert (codec.encoded, other.encoded) == (0, 1)


@pytest.mark.parametrize("name", ["", "msgpack", "pickle", "parquet+mine", None])
def test_a_codec_needs_a_name_of_its_own(codec: TensorCodec, name: Any) -> None:
    codec.name = name
    with pytest.raises(OptionError, match="codec cannot be named"):
        register_codec(codec)
