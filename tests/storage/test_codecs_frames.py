"""Data frames come back from Parquet as they were, or go to the next codec; they count by content."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from treadle.storage.codecs import decode, digest, encode


def back(value: Any) -> Any:
    encoded = encode(value)
    return decode(encoded.codec, encoded.data)


class TestPandas:
    @pytest.fixture(autouse=True)
    def libraries(self) -> None:
        self.pd = pytest.importorskip("pandas")
        pytest.importorskip("pyarrow")

    def frame(self, **columns: Any) -> Any:
        return self.pd.DataFrame({"n": [1, 2, 3], "x": [1.5, None, -0.0], "s": ["a", None, "c"], **columns})

    def test_a_frame_comes_back_with_its_types_and_its_index(self) -> None:
        pd = self.pd
        times = pd.to_datetime(["2024-01-01", "2024-01-02", None])
        frames = [
            self.frame(),
            self.frame(when=times, zone=times.tz_localize("Europe/Paris"), kind=pd.Categorical(["u", "v", "u"])),
            self.frame(whole=pd.array([1, None, 3], "Int64"), yes=pd.array([True, None, False], "boolean")),
            self.frame().set_index("s"),
            self.frame().set_index(["n", "s"]),
            self.frame().iloc[::2],
            self.frame().iloc[:0],
        ]
        for frame in frames:
            encoded = encode(frame)
            assert encoded.codec == "parquet+pandas", frame
            again = back(frame)
            pd.testing.assert_frame_equal(again, frame, check_freq=True)
            assert encode([{"a": frame}]).codec == "msgpack"
            pd.testing.assert_frame_equal(back([{"a": frame}])[0]["a"], frame)
            assert digest(again) == digest(frame) == encoded.digest
            assert digest([again]) == encode([frame]).digest

    def test_a_frame_that_parquet_cannot_hold_is_pickled(self) -> None:
        pd = self.pd
        frames = [
            self.frame(o=[1, "a", None]),
            self.frame(t=[(1,), (2,), (3,)]),
            pd.DataFrame([[1, 2]], columns=[0, 1]),
            pd.DataFrame(),
            self.frame(o=pd.Series([{1}, {2}, {3}], dtype=object)),
        ]
        for frame in frames:
            again = back(frame)
            pd.testing.assert_frame_equal(again, frame)
            assert type(again.columns) is type(frame.columns)
            assert digest(again) == digest(frame) == encode(frame).digest

    def test_a_frame_counts_by_its_contents(self) -> None:
        frame = self.frame()
        others = [
            frame,
            frame.rename(columns={"n": "m"}),
            frame[["x", "n", "s"]],
            frame.astype({"n": "int32"}),
            frame.set_index("n"),
            frame.set_index("n", drop=False),
            frame.iloc[::-1],
            frame.assign(s=["a", "b", "c"]),
            frame.assign(s=frame["s"].astype("category")),
            frame.to_dict(),
        ]
        assert len({digest(other) for other in others}) == len(others)
        assert digest(frame.copy()) == digest(frame)


class TestPolars:
    def test_a_frame_comes_back_and_counts_by_its_contents(self) -> None:
        pl = pytest.importorskip("polars")
        frame = pl.DataFrame(
            {
                "n": [1, 2],
                "x": [1.5, None],
                "s": ["a", None],
                "when": [dt.datetime(2024, 1, 1), None],
                "many": [[1], []],
                "both": [{"a": 1}, {"a": 2}],
            }
        )
        for value in (frame, frame[:0], frame.with_columns(pl.col("s").cast(pl.Categorical)), frame.select("n")):
            encoded = encode(value)
            assert encoded.codec == "parquet+polars"
            assert back(value).equals(value)
            assert back(value).schema == value.schema
            assert digest(back(value)) == digest(value) == encoded.digest
        assert digest(frame.select("n")) != digest(frame.select(pl.col("n").cast(pl.Int32)))
        assert digest(frame.select("n")) != digest(frame.select(pl.col("n").alias("m")))


class TestArrow:
    def test_a_table_comes_back_and_counts_by_its_contents(self) -> None:
        pa = pytest.importorskip("pyarrow")
        table = pa.table({"n": [1, 2], "s": ["a", None], "d": pa.array(["x", "x"]).dictionary_encode()})
        for value in (table, table.replace_schema_metadata({"k": "v"}), table.slice(1), table.select(["n"])):
            encoded = encode(value)
            assert encoded.codec == "parquet+arrow"
            assert back(value).equals(value)
            assert back(value).schema.equals(value.schema)
            assert digest(back(value)) == digest(value) == encoded.digest
        assert digest(table.select(["n"])) != digest(table.select(["n"]).rename_columns(["m"]))
        assert digest(pa.concat_tables([table.slice(0, 1), table.slice(1)])) == digest(table)
