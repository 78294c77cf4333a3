"""Arrays by content: element type, shape and the elements in C order; numpy is never imported for their sake.

A Fortran-ordered or strided array comes back in C order, equal to the original: its memory layout is no part of it.
An array is stored as an extension inside an envelope or, if it is large and alone, as an ``.npy`` file.
"""

from __future__ import annotations

import ast
import functools
import importlib
import math
import sys
from typing import Any, Final

from msgspec.msgpack import Ext

from treadle.errors import DecodeError
from treadle.storage.codecs import tags
from treadle.storage.codecs.walk import NotFit, Packer, Source, Walk, packs, reads, to_bytes

_MAGIC: Final = b"\x93NUMPY\x02\x00"
_MOST_HEAD: Final = 1 << 20
# Bool, integers, floats, complex, text, bytes, datetimes, structures. No objects, and nothing newer than the format.
_KINDS: Final = "biufcSUmMV"
# 80-bit floats have padding that is not content, and their size depends on the machine.
_MACHINE_FLOATS: Final = "gG"
_TEXT: Final[dict[str, Any]] = {"str_": str, "bytes_": bytes}


def is_array(value: Any) -> bool:
    """Whether it is exactly a numpy array (not a subclass)."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(value) is getattr(numpy, "ndarray", None)


def is_plain(array: Any) -> bool:
    """Whether an array is laid out as it would come back from its bytes, and is no view of another one."""
    return array.base is None and bool(array.flags.c_contiguous)


def packer_for(kind: type) -> Packer | None:
    """The packer for numpy's scalar types."""
    numpy: Any = sys.modules.get("numpy")
    if kind.__module__ != "numpy" or numpy is None or not issubclass(kind, numpy.generic):
        return None
    return _text if kind.__name__ in _TEXT else _scalar


def to_npy(value: Any) -> bytes:
    """An array as an ``.npy`` file (format 2.0); raises ``NotFit`` for element types that it cannot hold.

    The header is written here because numpy's has changed between its releases, and the bytes are hashed.
    """
    return b"".join(npy_pieces(value))


def npy_pieces(value: Any) -> tuple[bytes, memoryview | bytes]:
    """The head of that file, and the elements, which are not copied if they lie in order."""
    array = _clean(value)
    return _head(array.dtype, array.shape), _elements(array)


def from_npy(data: bytes | memoryview, *, shared: bool = False) -> Any:
    """The array of an ``.npy`` file that ``to_npy`` has written: an own, writeable copy, or a view of those bytes."""
    dtype, shape, end = _read_head(data)
    return _array(dtype, shape, memoryview(data)[end:], shared=shared)


def shape_of_npy(begin: bytes, size: int) -> Any:
    """An array of the type and shape of a stranger's ``.npy`` file, without memory of its own and with other elements.

    ``None`` if the file is sound, maybe, and yet not what ``to_npy`` would write: its elements have to be looked at.

    Args:
        begin: the first bytes, its header among them.
        size: bytes of the whole file.

    Raises:
        DecodeError: it is no ``.npy`` file that ``to_npy`` has written.
    """
    try:
        dtype, shape, end = _read_head(begin)
        if dtype.names is not None or dtype.kind not in _KINDS or dtype.char in _MACHINE_FLOATS:
            return None
        is_ours = begin[:end] == _head(dtype, shape) and size - end == math.prod(shape) * dtype.itemsize
        sample = _numpy().broadcast_to(_numpy().zeros((), dtype), shape)
    except DecodeError:
        raise
    except Exception as error:  # whatever an odd header leads to
        raise DecodeError("stored array cannot be decoded", why=str(error), codec="numpy") from error
    if not is_ours:
        raise DecodeError("stored array has another header, or another size, than a worker writes", codec="numpy")
    return sample


def _head(dtype: Any, shape: Any) -> bytes:
    header = f"{{'descr': {_descr(dtype)!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    padding = b" " * (-(len(header) + len(_MAGIC) + 5) % 64) + b"\n"
    return b"".join((_MAGIC, (len(header) + len(padding)).to_bytes(4, "little"), header, padding))


def _read_head(data: bytes | memoryview) -> tuple[Any, Any, int]:
    if bytes(data[: len(_MAGIC)]) != _MAGIC:
        raise DecodeError("stored array does not begin like an .npy file of format 2.0")
    start = len(_MAGIC) + 4
    end = start + int.from_bytes(data[len(_MAGIC) : start], "little")
    if end > _MOST_HEAD:
        raise DecodeError(f"stored array has a header of {end:,} bytes")
    header = ast.literal_eval(bytes(data[start:end]).decode())
    return _dtype(header["descr"]), header["shape"], end


@packs("numpy:ndarray")
def _ndarray(value: Any, walk: Walk) -> Ext:
    walk.mutable = True
    array = _clean(value)
    return Ext(tags.ARRAY, b"".join((_inner_head(array.dtype, array.shape), _elements(array))))


def _inner_head(dtype: Any, shape: Any) -> bytes:
    head = to_bytes((_descr(dtype), shape))
    return len(head).to_bytes(4, "big") + head


def canonical_head(begin: bytes) -> tuple[bytes, int]:
    """What comes before the elements of an array inside an envelope, and where they begin in the ``.npy`` file of it.

    Args:
        begin: the first bytes of a file of ``to_npy``.
    """
    dtype, shape, end = _read_head(begin)
    return _inner_head(dtype, shape), end


@reads(tags.ARRAY)
def _read_ndarray(data: memoryview, source: Source) -> Any:
    end = 4 + int.from_bytes(data[:4], "big")
    descr, shape = source.read(data[4:end])
    return _array(_dtype(_tuples(descr)), tuple(shape), data[end:])


def _scalar(value: Any, _walk: Walk) -> Ext:
    if value.dtype.kind not in _KINDS or value.dtype.char in _MACHINE_FLOATS or value.dtype.kind == "V":
        raise NotFit(f"a {type(value).__name__} has no form without pickle")
    descr = _descr(value.dtype)
    if _dtype(descr).type is not type(value):
        # longlong and int64 are two types of one element type: "<i8" would give back the other one, "q" does not.
        descr = value.dtype.char
    return Ext(tags.ARRAY_SCALAR, to_bytes((descr, value.tobytes())))


@reads(tags.ARRAY_SCALAR)
def _read_scalar(data: memoryview, source: Source) -> Any:
    descr, item = source.read(data)
    return _array(_dtype(descr), (), item)[()]


def _text(value: Any, walk: Walk) -> Ext:
    # Neither by its bytes nor by str(): both drop trailing zeros.
    name = type(value).__name__
    return walk.ext(tags.ARRAY_TEXT, (name, _TEXT[name]().join([value])))


@reads(tags.ARRAY_TEXT)
def _read_text(data: memoryview, source: Source) -> Any:
    name, text = source.read(data)
    return getattr(_numpy(), name if name in _TEXT else "")(text)


def _clean(array: Any) -> Any:
    """The array in C order, and with zeros where a structure has padding, which is not content."""
    if array.dtype.kind not in _KINDS or array.dtype.char in _MACHINE_FLOATS or array.dtype.hasobject:
        raise NotFit(f"an array of {array.dtype} has no form without pickle")
    if array.dtype.names is None:
        return _numpy().asarray(array, order="C")
    out = _numpy().zeros(array.shape, array.dtype)
    for name in array.dtype.names:
        out[name] = _clean(array[name])
    return out


def _elements(array: Any) -> Any:
    if not array.nbytes:
        return b""
    return memoryview(array.reshape(-1).view(_numpy().uint8))


def _array(dtype: Any, shape: Any, data: Any, *, shared: bool = False) -> Any:
    numpy = _numpy()
    if dtype.hasobject or dtype.subdtype is not None or len(data) != math.prod(shape) * dtype.itemsize:
        raise DecodeError("stored array has another size than its header says")
    if not len(data):
        return numpy.ndarray(shape, dtype)
    array = numpy.ndarray(shape, dtype, buffer=data)
    return array if shared else array.copy()


def _descr(dtype: Any) -> Any:
    """The element type as the ``.npy`` format writes it: a string, or a list of (name, type[, shape])."""
    if dtype.metadata is not None:  # which equality, and so the cache, leaves out
        raise NotFit("the array's element type carries metadata")
    return _known_descr(dtype)


@functools.lru_cache(maxsize=256)
def _known_descr(dtype: Any) -> Any:
    descr = importlib.import_module("numpy.lib.format").dtype_to_descr(dtype)
    if _dtype(descr) != dtype:
        raise NotFit(f"the element type {dtype} cannot be written down")
    return descr


def _dtype(descr: Any) -> Any:
    return importlib.import_module("numpy.lib.format").descr_to_dtype(descr)


def _tuples(descr: Any) -> Any:
    """The lists that msgpack has made of a structure's tuples as tuples again, shapes included."""
    if isinstance(descr, str):
        return descr
    return [(_name(name), _tuples(kind), *map(tuple, shape)) for name, kind, *shape in descr]


def _name(name: Any) -> Any:
    return name if isinstance(name, str) else tuple(name)  # (title, name)


def _numpy() -> Any:
    return importlib.import_module("numpy")
