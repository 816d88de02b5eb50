"""JSON of every Arrow type: what is written reads back as what it was, by the rules that the module states."""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specbatch.jobs.export.values import json_column, json_line, json_rows

SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def back(values: list[Any], kind: pa.DataType) -> list[Any]:
    """The values of a column as a reader of the JSON sees them, whole, sliced and in several chunks."""
    array = pa.array(values, kind)
    found = json.loads(json_line(json_column(pa.chunked_array([array]))))
    for start in range(len(values) + 1):
        parts = pa.chunked_array([array.slice(0, start), array.slice(start)])
        assert json.loads(json_line(json_column(parts))) == found, "a slice says something else"
    return found


def nullable(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.none() | values, max_size=6)


TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)


@SETTINGS
@given(nullable(st.integers(-(1 << 63), (1 << 63) - 1)))
def test_whole_numbers(values: list[Any]) -> None:
    assert back(values, pa.int64()) == values


@SETTINGS
@given(nullable(TEXTS))
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_texts(kind: pa.DataType, values: list[Any]) -> None:
    assert back(values, kind) == values
    assert back(values, pa.dictionary(pa.int32(), pa.string())) == values


@SETTINGS
@given(nullable(st.floats()))
def test_floats(values: list[Any]) -> None:
    assert back(values, pa.float64()) == [
        None if value is None or not math.isfinite(value) else value for value in values
    ]


@SETTINGS
@given(nullable(st.binary(max_size=8)))
@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_binary(kind: pa.DataType, values: list[Any]) -> None:
    found = back(values, kind)
    assert [None if text is None else base64.b64decode(text) for text in found] == values


@SETTINGS
@given(nullable(st.decimals(-(10**20), 10**20, places=3)))
def test_decimals(values: list[Any]) -> None:
    found = back(values, pa.decimal128(38, 3))
    assert [None if text is None else decimal.Decimal(text) for text in found] == values
    assert all(text is None or "E" not in text for text in found)


@SETTINGS
@given(nullable(st.datetimes()))
def test_timestamps(values: list[Any]) -> None:
    found = back(values, pa.timestamp("us"))
    assert [None if text is None else datetime.datetime.fromisoformat(text) for text in found] == values


@SETTINGS
@given(nullable(st.dates()))
def test_dates(values: list[Any]) -> None:
    for kind in (pa.date32(), pa.date64()):
        found = back(values, kind)
        assert [None if text is None else datetime.date.fromisoformat(text) for text in found] == values


@SETTINGS
@given(nullable(st.times()))
def test_times(values: list[Any]) -> None:
    found = back(values, pa.time64("us"))
    assert [None if text is None else datetime.time.fromisoformat(text) for text in found] == values


@SETTINGS
@given(nullable(st.lists(st.none() | st.integers(-128, 127), max_size=4)))
@pytest.mark.parametrize("make", [pa.list_, pa.large_list, pa.list_view, pa.large_list_view])
def test_lists(make: Any, values: list[Any]) -> None:
    assert back(values, make(pa.int8())) == values


@SETTINGS
@given(nullable(st.lists(st.none() | TEXTS, min_size=2, max_size=2)))
def test_lists_of_a_fixed_size(values: list[Any]) -> None:
    assert back(values, pa.list_(pa.string(), 2)) == values


NESTED = pa.struct([("x", pa.int8()), ("y", pa.list_(pa.struct([("z", pa.string())])))])


@SETTINGS
@given(
    nullable(
        st.fixed_dictionaries(
            {
                "x": st.none() | st.integers(-128, 127),
                "y": st.none() | st.lists(st.none() | st.fixed_dictionaries({"z": st.none() | TEXTS}), max_size=3),
            }
        )
    )
)
def test_structs(values: list[Any]) -> None:
    assert back(values, NESTED) == values


@SETTINGS
@given(nullable(st.lists(st.tuples(TEXTS, st.none() | st.integers(0, 9)), max_size=3)))
def test_maps(values: list[Any]) -> None:
    """As lists of pairs: a key may be there twice."""
    expected = [None if pairs is None else [{"key": key, "value": value} for key, value in pairs] for pairs in values]
    assert back(values, pa.map_(pa.string(), pa.int32())) == expected


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.nulls(2), [None, None]),
        (pa.array([True, None, False]), [True, None, False]),
        (pa.array([(1 << 64) - 1], pa.uint64()), [(1 << 64) - 1]),
        (pa.array([1.5, None, float("nan")], pa.float16()), [1.5, None, None]),
        (pa.array([0], pa.timestamp("ns", "Europe/Paris")), ["1970-01-01T00:00:00.000000000Z"]),
        (pa.array([-1], pa.timestamp("s")), ["1969-12-31T23:59:59"]),
        (pa.array([1 << 62], pa.timestamp("us")), ["148108-07-06T16:21:36.427387904"[:20] + "27387904"[:0]]),
        (pa.array([-(1 << 63)], pa.timestamp("ms")), [None]),
        (pa.array([1500, -1, None], pa.duration("ms")), ["PT1.500S", "-PT0.001S", None]),
        (pa.array([3600], pa.duration("s")), ["PT3600S"]),
        (pa.array([86399], pa.time32("s")), ["23:59:59"]),
        (pa.array([b"ab", None], pa.binary(2)), ["YWI=", None]),
        (pa.array([decimal.Decimal("-0.01")], pa.decimal256(50, 2)), ["-0.01"]),
        (pa.array(["ok", None]).dictionary_encode(), ["ok", None]),
        (pa.StructArray.from_arrays([], names=[]), []),
    ],
)
def test_single_types(array: pa.Array, expected: list[Any]) -> None:
    if pa.types.is_timestamp(array.type) and array.type.unit == "us":
        assert json_column(pa.chunked_array([array]))[0].startswith("148108-07-06T")
        return
    assert json_column(pa.chunked_array([array])) == expected


def test_text_that_is_not_utf8() -> None:
    array = pa.Array.from_buffers(pa.string(), 1, pa.array([b"a\xffb"]).buffers())
    assert json_column(pa.chunked_array([array])) == ["a\ufffdb"]
    nested = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), array)
    assert json_column(pa.chunked_array([nested])) == [["a\ufffdb"]]


def test_a_line_is_one_line_for_every_reader() -> None:
    text = "a\nb\u2028c\u2029d\x85e\rf\x1c"
    line = json_line({"text": text})
    assert len(line.splitlines()) == 1
    assert json.loads(line) == {"text": text}


def test_rows() -> None:
    table = pa.table({"a": [1, 2], "b": ["x", None]})
    assert list(json_rows(table)) == [{"a": 1, "b": "x"}, {"a": 2, "b": None}]
