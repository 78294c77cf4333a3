"""Data frames of pandas, polars and Arrow as Parquet, and their contents as plain values and arrays.

A library is used only if the value has brought it in already. A frame counts by its contents, not by its file, since
Parquet writers differ; the same contents tell whether a frame came back from Parquet as it was.
"""

from __future__ import annotations

import importlib
import io
import sys
from typing import Any, Final, Protocol

from treadle.storage.codecs.walk import NotFit

_LIBRARIES: Final = ("pandas", "polars", "pyarrow")
_NUMBERS: Final = "biufcmM"


class FrameCodec(Protocol):
    """A built-in codec: like a registered one, and it can say what a value's contents are."""

    name: str
    safe: bool
    mutable: bool

    def accepts(self, value: object) -> bool: ...
    def encode(self, value: Any) -> bytes: ...
    def decode(self, data: bytes) -> Any: ...
    def content(self, value: Any) -> Any: ...


class _Pandas:
    name, safe, mutable = "parquet+pandas", True, True

    def accepts(self, value: object) -> bool:
        return _is(value, "pandas", "DataFrame")

    def encode(self, value: Any) -> bytes:
        try:
            return bytes(value.to_parquet(None, engine="pyarrow"))
        except ImportError as error:
            raise NotFit("pandas needs pyarrow to write Parquet") from error

    def decode(self, data: bytes) -> Any:
        return importlib.import_module("pandas").read_parquet(io.BytesIO(data), engine="pyarrow")

    def content(self, value: Any) -> Any:
        columns = [_pandas_column(value.iloc[:, place]) for place in range(value.shape[1])]
        return [_pandas_index(value.index), _pandas_index(value.columns), columns, dict(value.attrs)]


class _Polars:
    name, safe, mutable = "parquet+polars", True, True

    def accepts(self, value: object) -> bool:
        return _is(value, "polars", "DataFrame")

    def encode(self, value: Any) -> bytes:
        file = io.BytesIO()
        value.write_parquet(file)
        return file.getvalue()

    def decode(self, data: bytes) -> Any:
        return importlib.import_module("polars").read_parquet(io.BytesIO(data))

    def content(self, value: Any) -> Any:
        return [value.height, [_polars_column(column) for column in value.get_columns()]]


class _Arrow:
    name, safe, mutable = "parquet+arrow", True, False

    def accepts(self, value: object) -> bool:
        return _is(value, "pyarrow", "Table")

    def encode(self, value: Any) -> bytes:
        file = io.BytesIO()
        importlib.import_module("pyarrow.parquet").write_table(value, file)
        return file.getvalue()

    def decode(self, data: bytes) -> Any:
        return importlib.import_module("pyarrow.parquet").read_table(io.BytesIO(data))

    def content(self, value: Any) -> Any:
        schema = value.schema
        fields = [[field.name, str(field.type), field.nullable, field.metadata] for field in schema]
        return [value.num_rows, schema.metadata, fields, [_arrow_column(column) for column in value.columns]]


_CODECS: Final[tuple[FrameCodec, ...]] = (_Pandas(), _Polars(), _Arrow())


def find(value: object) -> FrameCodec | None:
    """The codec for a data frame of a library that is loaded."""
    if type(value).__module__.partition(".")[0] not in _LIBRARIES:
        return None
    return next((codec for codec in _CODECS if codec.accepts(value)), None)


def named(name: str) -> FrameCodec | None:
    """The built-in codec of that name."""
    return next((codec for codec in _CODECS if codec.name == name), None)


def _is(value: object, module: str, name: str) -> bool:
    library = sys.modules.get(module)
    return library is not None and type(value) is getattr(library, name, None)


# -- pandas ---------------------------------------------------------------------------------


def _pandas_index(index: Any) -> Any:
    kind = type(index).__name__
    if kind == "RangeIndex":
        return [kind, index.name, range(index.start, index.stop, index.step)]
    if kind == "MultiIndex":
        levels = [_pandas_column(index.get_level_values(place)) for place in range(index.nlevels)]
        return [kind, list(index.names), levels]
    return [kind, getattr(index, "freqstr", None), _pandas_column(index)]


def _pandas_column(column: Any) -> Any:
    """A series or an index without its own index: name, type and items."""
    dtype = column.dtype
    head = [column.name, _pandas_type(dtype)]
    if getattr(dtype, "kind", "O") in _NUMBERS and not hasattr(dtype, "na_value"):
        return [*head, column.to_numpy()]
    if hasattr(dtype, "categories"):
        codes = column.codes if hasattr(column, "codes") else column.cat.codes
        return [*head, _pandas_column(dtype.categories), dtype.ordered, importlib.import_module("numpy").asarray(codes)]
    if getattr(dtype, "tz", None) is not None:
        return [*head, column.to_numpy(dtype=f"M8[{dtype.unit}]")]
    if str(dtype) == "object":
        return [*head, list(column)]
    absent = column.isna()
    return [*head, [None if gone else item for gone, item in zip(absent, column, strict=True)]]


def _pandas_type(dtype: Any) -> list[Any]:
    # str(dtype) is the same for text columns kept in different ways; repr tells them apart.
    return [type(dtype).__name__, str(dtype) if hasattr(dtype, "categories") else repr(dtype)]


# -- polars and Arrow -----------------------------------------------------------------------


def _polars_column(column: Any) -> Any:
    head = [column.name, repr(column.dtype)]
    if column.dtype.is_numeric() and not column.null_count() and not column.dtype.is_decimal():
        return [*head, column.to_numpy()]
    return [*head, column.to_list()]


def _arrow_column(column: Any) -> Any:
    types: Any = importlib.import_module("pyarrow").types
    number = types.is_integer(column.type) or types.is_floating(column.type)
    return column.to_numpy() if number and not column.null_count else column.to_pylist()
