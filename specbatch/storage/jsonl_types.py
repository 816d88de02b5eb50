"""Which Arrow types the values of JSONL files have: seen over all rows, then decided. Pure.

Whole numbers are int64; mixed with fractions they are double where none loses a digit. Objects are structs, arrays are
lists, a missing key is null. What has no type of its own (values of several kinds, whole numbers beyond 64 bits,
objects with very many keys or none) is kept exactly, as the text of its JSON. So are chats, unless all of their
messages have a role and a content and nothing else: a template may tell a missing key from a null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from specbatch.storage.jsonl_lines import Refused, shown

JSON_KEY = b"specbatch:json"
"""Metadata of a field that holds JSON text: why."""

MAX_DEPTH = 32
MAX_OBJECT_KEYS = 256
MAX_COLUMNS = 10_000

TEXT, BOOL, INT, WIDE, HUGE, FLOAT, OBJECT, LIST, FREE = (1 << bit for bit in range(9))
"""Kinds of values. WIDE is a whole number of 64 bits that a double may not hold, HUGE one of more; FREE is nested too
deeply, or an object with too many keys."""

_EXACT = 1 << 53
_INT64 = 1 << 63
_NUMBERS = INT | WIDE | HUGE
_KIND_NAMES = {
    TEXT: "text",
    BOOL: "true or false",
    INT: "a number",
    WIDE: "a number of 64 bits",
    HUGE: "a number beyond 64 bits",
    FLOAT: "a fraction",
    OBJECT: "an object",
    LIST: "a list",
    FREE: "an object with too many keys, or nested too deeply",
}

Place = tuple[str, int]
"""File name and number of a line."""


class Shape:
    """What is known of the values under one name.

    Attributes:
        kinds: bits of the kinds seen; null leaves no trace.
        places: where each kind was first seen.
        fields: of the objects, by key, in the order in which the keys came.
        items: of the elements of the lists, None before the first one.
        kept_as_json: why the values are to be kept as JSON text although they have a type of their own.
    """

    __slots__ = ("fields", "items", "kept_as_json", "kinds", "places")

    def __init__(self) -> None:
        self.kinds = 0
        self.kept_as_json: str | None = None
        self.places: dict[int, Place] = {}
        self.fields: dict[str, Shape] = {}
        self.items: Shape | None = None

    def observe(self, value: Any, place: Place, depth: int = 0) -> None:
        """Take one more value into account.

        Raises:
            Refused: a number beyond the range of a double.
        """
        kind = type(value)
        if kind is str:
            bit = TEXT
        elif value is None:
            return
        elif kind is bool:
            bit = BOOL
        elif kind is int:
            bit = INT if -_EXACT <= value <= _EXACT else WIDE if -_INT64 <= value < _INT64 else HUGE
        elif kind is float:
            if math.isinf(value):
                raise Refused("it holds a number beyond the range of a double")
            bit = FLOAT
        elif depth == MAX_DEPTH:
            bit = self._let_go()
        elif kind is dict:
            bit = OBJECT if self._observe_object(value, place, depth) else self._let_go()
        else:
            bit = LIST
            if value and not self.kinds & FREE:
                if self.items is None:
                    self.items = Shape()
                for item in value:
                    self.items.observe(item, place, depth + 1)
        if not self.kinds & bit:
            self.kinds |= bit
            self.places[bit] = place

    def _observe_object(self, value: dict[str, Any], place: Place, depth: int) -> bool:
        """False where the object has more keys than are told apart."""
        if self.kinds & FREE:
            return False
        fields = self.fields
        for key, item in value.items():
            shape = fields.get(key)
            if shape is None:
                if len(fields) == (MAX_OBJECT_KEYS if depth else MAX_COLUMNS):
                    return False
                shape = fields[key] = Shape()
            shape.observe(item, place, depth + 1)
        return True

    def _let_go(self) -> int:
        self.fields, self.items = {}, None
        return FREE

    def merge(self, other: Shape, depth: int = 0) -> None:
        """Take into account what another shape has seen behind this one."""
        self.kinds |= other.kinds
        self.places = {**other.places, **self.places}
        for key, shape in other.fields.items():
            self.fields.setdefault(key, Shape()).merge(shape, depth + 1)
        if other.items is not None:
            self.items = self.items or Shape()
            self.items.merge(other.items, depth + 1)
        if len(self.fields) > (MAX_OBJECT_KEYS if depth else MAX_COLUMNS) and not self.kinds & FREE:
            self.kinds |= FREE
            self.places[FREE] = next(iter(other.places.values()))
        if self.kinds & FREE:
            self._let_go()

    @property
    def json_reason(self) -> str | None:
        """Why the values are kept as JSON text; None where they have a type of their own."""
        if self.kept_as_json is not None:
            return self.kept_as_json
        kinds = self.kinds
        numbers = kinds & (_NUMBERS | FLOAT)
        if kinds & FREE or kinds & HUGE or (kinds & FLOAT and kinds & WIDE):
            return self._told()
        num_kinds = sum(bool(kinds & bit) for bit in (TEXT, BOOL, OBJECT, LIST)) + bool(numbers)
        if num_kinds > 1:
            return self._told()
        if kinds & OBJECT and not (self.fields and all(_is_plain_name(key) for key in self.fields)):
            return "an object without keys, or with keys that are no names of columns"
        return None

    def _told(self) -> str:
        seen = sorted(self.places.items())
        return ", ".join(f"{_KIND_NAMES[bit]} in {name} line {line}" for bit, (name, line) in seen)


def _is_plain_name(key: str) -> bool:
    return bool(key) and "\0" not in key


def arrow_type(shape: Shape) -> pa.DataType:
    """The type of a column, or of what is nested in one. Where no value was ever seen it is text."""
    kinds = shape.kinds
    if shape.json_reason is not None or not kinds or kinds & TEXT:
        return pa.string()
    if kinds & BOOL:
        return pa.bool_()
    if kinds & OBJECT:
        return pa.struct([arrow_field(key, inner) for key, inner in shape.fields.items()])
    if kinds & LIST:
        return pa.list_(arrow_field("element", shape.items or Shape()))
    return pa.float64() if kinds & FLOAT else pa.int64()


def arrow_field(name: str, shape: Shape) -> pa.Field:
    """A field of that type; one that holds JSON text says so, and why, in its metadata."""
    reason = shape.json_reason
    return pa.field(name, arrow_type(shape), metadata=None if reason is None else {JSON_KEY: reason.encode()})


def settle_chats(rows: Shape, column: str) -> None:
    """Keep a column of chats as JSON text, unless its messages are plain pairs of role and content."""
    chats = rows.fields.get(column)
    if chats is None or chats.kinds == TEXT:
        return
    message = chats.items
    if (
        chats.kinds == LIST
        and message is not None
        and message.kinds == OBJECT
        and message.fields.keys() == {"role", "content"}
        and all(field.kinds in (0, TEXT) for field in message.fields.values())
    ):
        return
    chats.kept_as_json = "chats whose messages have more than a role and a text"


def arrow_schema(rows: Shape) -> pa.Schema:
    """The columns of rows that this shape has seen.

    Raises:
        Refused: too many keys or none at all, or one that cannot be the name of a column.
    """
    if rows.kinds & FREE:
        raise Refused(f"its rows have more than {MAX_COLUMNS:,} keys; give them fewer")
    if not rows.fields:
        raise Refused("its rows are objects without a key; there is no column")
    for key in rows.fields:
        if not _is_plain_name(key):
            raise Refused(f"the key {shown(key)} cannot be the name of a column; rename it")
    return pa.schema([arrow_field(key, shape) for key, shape in rows.fields.items()])


def build_batch(rows: Sequence[dict[str, Any]], schema: pa.Schema, shape: Shape) -> pa.RecordBatch:
    """Rows as Arrow arrays. The shape has seen all of them, the schema is its own."""
    arrays = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        if convert := _converter(shape.fields[field.name]):
            values = [convert(value) for value in values]
        arrays.append(pa.array(values, field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def json_notes(shape: Shape, path: str = "") -> list[str]:
    """One line for every place whose values are kept as JSON text."""
    if shape.kept_as_json is not None:
        return []
    if reason := shape.json_reason if path else None:
        return [f"column {path} is kept as JSON text: {reason}"]
    notes = [
        note
        for key, inner in shape.fields.items()
        for note in json_notes(inner, f"{path}.{shown(key)}" if path else shown(key))
    ]
    return notes + (json_notes(shape.items, f"{path}[]") if shape.items is not None else [])


Convert = Callable[[Any], Any]


def _converter(shape: Shape) -> Convert | None:
    """What makes a value fit its type; None where it fits as it is."""
    if shape.json_reason is not None:
        return _json_text
    if shape.kinds & OBJECT:
        inner = {key: found for key, field in shape.fields.items() if (found := _converter(field)) is not None}
        return _object_converter(inner) if inner else None
    if shape.kinds & LIST and shape.items is not None and (convert := _converter(shape.items)) is not None:
        return _list_converter(convert)
    return None


def _json_text(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _object_converter(inner: dict[str, Convert]) -> Convert:
    def convert(value: Any) -> Any:
        if value is None:
            return None
        return {key: inner[key](item) if key in inner else item for key, item in value.items()}

    return convert


def _list_converter(convert: Convert) -> Convert:
    return lambda value: None if value is None else [convert(item) for item in value]
