"""The numbers of the extension types; a number is part of the stored format and is never given to another type."""

from __future__ import annotations

from typing import Final

# containers
TUPLE: Final = 1
SET: Final = 2
FROZENSET: Final = 3
DICT: Final = 4
ORDERED_DICT: Final = 5
DEFAULT_DICT: Final = 6
COUNTER: Final = 7
DEQUE: Final = 8

# values of the language
BIG_INT: Final = 16
SURROGATE_STR: Final = 17
COMPLEX: Final = 18
BYTEARRAY: Final = 19
RANGE: Final = 20
SLICE: Final = 21
SINGLETON: Final = 22

# values of the standard library
DATETIME: Final = 32
DATE: Final = 33
TIME: Final = 34
TIMEDELTA: Final = 35
TIMEZONE: Final = 36
ZONEINFO: Final = 37
DECIMAL: Final = 38
FRACTION: Final = 39
UUID: Final = 40
PATH: Final = 41

# classes of the user
NAMED: Final = 48
ENUM: Final = 49
FLAG: Final = 50
RECORD: Final = 51
STRUCT: Final = 52
NAMED_TUPLE: Final = 53

# what is sent to workers, and never stored
SECRET: Final = 56

# arrays
ARRAY: Final = 64
ARRAY_SCALAR: Final = 65
ARRAY_TEXT: Final = 66

# bytes of another codec inside an envelope
FOREIGN: Final = 80

# only in what is hashed, never stored
CODE: Final = 96
OPAQUE: Final = 97
FILE: Final = 98
