"""Envelopes of the language's and the standard library's plain values; containers and user classes are elsewhere."""

from __future__ import annotations

import datetime as dt
import pathlib
import struct
from typing import Any, Final

import msgspec
from msgspec.msgpack import Ext

from treadle.storage.codecs import tags
from treadle.storage.codecs.walk import NotFit, Source, Walk, packs, reads

_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1
_SINGLETONS: Final[tuple[Any, ...]] = (Ellipsis, NotImplemented, msgspec.UNSET)
_PATHS: Final = (pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath, pathlib.WindowsPath)


@packs(int)
def _int(value: int, _walk: Walk) -> int | Ext:
    if _MIN_INT <= value <= _MAX_INT:
        return value
    return Ext(tags.BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


@reads(tags.BIG_INT)
def _read_int(data: memoryview, _source: Source) -> int:
    return int.from_bytes(data, "big", signed=True)


@packs(str)
def _str(value: str, _walk: Walk) -> str | Ext:
    try:
        value.encode()
    except UnicodeEncodeError:
        return Ext(tags.SURROGATE_STR, value.encode("utf-8", "surrogatepass"))
    return value


@reads(tags.SURROGATE_STR)
def _read_str(data: memoryview, _source: Source) -> str:
    return bytes(data).decode("utf-8", "surrogatepass")


@packs(complex)
def _complex(value: complex, _walk: Walk) -> Ext:
    return Ext(tags.COMPLEX, struct.pack("<2d", value.real, value.imag))


@reads(tags.COMPLEX)
def _read_complex(data: memoryview, _source: Source) -> complex:
    return complex(*struct.unpack("<2d", data))


@packs(bytearray)
def _bytearray(value: bytearray, walk: Walk) -> Ext:
    walk.mutable = True
    return Ext(tags.BYTEARRAY, bytes(value))


@reads(tags.BYTEARRAY)
def _read_bytearray(data: memoryview, _source: Source) -> bytearray:
    return bytearray(data)


@packs(range)
def _range(value: range, walk: Walk) -> Ext:
    return walk.ext(tags.RANGE, (value.start, value.stop, value.step))


@reads(tags.RANGE)
def _read_range(data: memoryview, source: Source) -> range:
    return range(*source.read(data))


@packs(slice)
def _slice(value: Any, walk: Walk) -> Ext:
    return walk.ext(tags.SLICE, (value.start, value.stop, value.step))


@reads(tags.SLICE)
def _read_slice(data: memoryview, source: Source) -> Any:
    return slice(*source.read(data))


@packs(*map(type, _SINGLETONS))
def _singleton(value: object, _walk: Walk) -> Ext:
    return Ext(tags.SINGLETON, bytes([_SINGLETONS.index(value)]))


@reads(tags.SINGLETON)
def _read_singleton(data: memoryview, _source: Source) -> Any:
    return _SINGLETONS[data[0]]


@packs(dt.datetime)
def _datetime(value: dt.datetime, walk: Walk) -> Ext:
    day = (value.year, value.month, value.day)
    clock = (value.hour, value.minute, value.second, value.microsecond)
    return walk.ext(tags.DATETIME, (*day, *clock, value.fold, value.tzinfo))


@reads(tags.DATETIME)
def _read_datetime(data: memoryview, source: Source) -> dt.datetime:
    year, month, day, hour, minute, second, microsecond, fold, tzinfo = source.read(data)
    return dt.datetime(year, month, day, hour, minute, second, microsecond, tzinfo, fold=fold)


@packs(dt.date)
def _date(value: dt.date, walk: Walk) -> Ext:
    return walk.ext(tags.DATE, (value.year, value.month, value.day))


@reads(tags.DATE)
def _read_date(data: memoryview, source: Source) -> dt.date:
    return dt.date(*source.read(data))


@packs(dt.time)
def _time(value: dt.time, walk: Walk) -> Ext:
    clock = (value.hour, value.minute, value.second, value.microsecond)
    return walk.ext(tags.TIME, (*clock, value.fold, value.tzinfo))


@reads(tags.TIME)
def _read_time(data: memoryview, source: Source) -> dt.time:
    hour, minute, second, microsecond, fold, tzinfo = source.read(data)
    return dt.time(hour, minute, second, microsecond, tzinfo, fold=fold)


@packs(dt.timedelta)
def _timedelta(value: dt.timedelta, walk: Walk) -> Ext:
    return walk.ext(tags.TIMEDELTA, (value.days, value.seconds, value.microseconds))


@reads(tags.TIMEDELTA)
def _read_timedelta(data: memoryview, source: Source) -> dt.timedelta:
    return dt.timedelta(*source.read(data))


@packs(dt.timezone)
def _timezone(value: Any, walk: Walk) -> Ext:
    # Only its pickle support tells a given name from the one made up from the offset.
    return walk.ext(tags.TIMEZONE, value.__getinitargs__())


@reads(tags.TIMEZONE)
def _read_timezone(data: memoryview, source: Source) -> dt.timezone:
    return dt.timezone(*source.read(data))


@packs("zoneinfo:ZoneInfo")
def _zoneinfo(value: Any, walk: Walk) -> Ext:
    if value.key is None:
        raise NotFit("a ZoneInfo without a key cannot be found again")
    return walk.ext(tags.ZONEINFO, (value.key,))


@reads(tags.ZONEINFO)
def _read_zoneinfo(data: memoryview, source: Source) -> Any:
    from zoneinfo import ZoneInfo

    return ZoneInfo(*source.read(data))


@packs("decimal:Decimal")
def _decimal(value: Any, _walk: Walk) -> Ext:
    return Ext(tags.DECIMAL, str(value).encode())


@reads(tags.DECIMAL)
def _read_decimal(data: memoryview, _source: Source) -> Any:
    from decimal import Decimal

    return Decimal(bytes(data).decode())


@packs("fractions:Fraction")
def _fraction(value: Any, walk: Walk) -> Ext:
    return walk.ext(tags.FRACTION, (value.numerator, value.denominator))


@reads(tags.FRACTION)
def _read_fraction(data: memoryview, source: Source) -> Any:
    from fractions import Fraction

    return Fraction(*source.read(data))


@packs("uuid:UUID")
def _uuid(value: Any, _walk: Walk) -> Ext:
    return Ext(tags.UUID, value.bytes)


@reads(tags.UUID)
def _read_uuid(data: memoryview, _source: Source) -> Any:
    from uuid import UUID

    return UUID(bytes=bytes(data))


@packs(*_PATHS)
def _path(value: pathlib.PurePath, walk: Walk) -> Ext:
    return walk.ext(tags.PATH, (_PATHS.index(type(value)), str(value)))


@reads(tags.PATH)
def _read_path(data: memoryview, source: Source) -> pathlib.PurePath:
    kind, text = source.read(data)
    return _PATHS[int(kind)](text)
