"""Good bytes, spoiled: by chance, and with what tends to break programs."""

import re
from collections.abc import Callable, Sequence
from random import Random

Change = Callable[[bytes, Random], bytes]

_COUNTS = (1, 1, 1, 2, 4)
"""Of changes to one input: each further one makes it less likely that anybody reads it to the end."""
_SCALAR = re.compile(rb'"[^"]*"|-?\d+|true|false|null')
_BYTES = b"\x00 \x7f \x80 \xff \r\n \xed\xa0\x80 \xc0\xaf \xf4\x90\x80\x80 \xe2\x80\xae".split(b" ")
_NUMBERS = [b"0", b"-1", b"2147483648", b"-9223372036854775809", b"1e999", b"NaN", b"9" * 400, b"1.5", b"0x10"]
_WORDS = [
    *_BYTES,
    *_NUMBERS,
    *(b'"\\u0000"', b'"\\ud800"', b'""', b"null", b"true", b"{}", b"[]", b'{"id": []}', b"[" * 2000, b"{" * 50),
]


class Mutator:
    """Spoils one input after another; equal seeds spoil equally."""

    def __init__(self, random: Random, *, words: Sequence[bytes] = (), most_bytes: int = 1 << 18) -> None:
        """`words` are pieces that mean something in what is spoiled."""
        self._random = random
        self._most_bytes = most_bytes
        self._words = [*_WORDS, *words]
        self._changes: list[Change] = [_flip, _cut, _repeat, _truncate, self._insert, self._replace]
        self._changes += [self._replace_scalar] * 4

    def mutate(self, data: bytes, other: bytes = b"") -> bytes:
        """The data after a few changes, at times grown together with a piece of the other."""
        if other and self._random.random() < 0.1:
            data = data[: _place(data, self._random)] + other[_place(other, self._random) :]
        for _ in range(self._random.choice(_COUNTS)):
            data = self._random.choice(self._changes)(data, self._random)
        return data[: self._most_bytes]

    def _insert(self, data: bytes, random: Random) -> bytes:
        place = _place(data, random)
        return data[:place] + random.choice(self._words) + data[place:]

    def _replace(self, data: bytes, random: Random) -> bytes:
        start, end = _span(data, random)
        return data[:start] + random.choice(self._words) + data[end:]

    def _replace_scalar(self, data: bytes, random: Random) -> bytes:
        """Another value for a number, a quoted text or a name of JSON: what stays well-formed gets further."""
        found = list(_SCALAR.finditer(data))
        if not found:
            return self._replace(data, random)
        start, end = random.choice(found).span()
        return data[:start] + random.choice(self._words) + data[end:]


def _flip(data: bytes, random: Random) -> bytes:
    if not data:
        return random.randbytes(4)
    place = random.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << random.randrange(8)]) + data[place + 1 :]


def _cut(data: bytes, random: Random) -> bytes:
    start, end = _span(data, random)
    return data[:start] + data[end:]


def _repeat(data: bytes, random: Random) -> bytes:
    start, end = _span(data, random)
    return data[:end] + data[start:end] * random.choice((1, 2, 50)) + data[end:]


def _truncate(data: bytes, random: Random) -> bytes:
    return data[: _place(data, random)]


def _place(data: bytes, random: Random) -> int:
    return random.randint(0, len(data))


def _span(data: bytes, random: Random) -> tuple[int, int]:
    start = _place(data, random)
    return start, min(len(data), start + random.choice((1, 2, 4, 16, 64)))
