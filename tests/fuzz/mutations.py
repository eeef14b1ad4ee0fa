"""Mutations of valid bytes: random changes, and insertions of values that often break programs."""

import re
from collections.abc import Callable, Sequence
from random import Random

Change = Callable[[bytes, Random], bytes]

_COUNTS = (1, 1, 1, 2, 4)
"""Changes to one input, chosen at random. With each one it is less likely that a parser reads the input to its end."""
_SCALAR = re.compile(rb'"[^"]*"|-?\d+|true|false|null')
_BYTES = b"\x00 \x7f \x80 \xff \r\n \xed\xa0\x80 \xc0\xaf \xf4\x90\x80\x80 \xe2\x80\xae".split(b" ")
_NUMBERS = [b"0", b"-1", b"2147483648", b"-9223372036854775809", b"1e999", b"NaN", b"9" * 400, b"1.5", b"0x10"]
_WORDS = [
    *_BYTES,
    *_NUMBERS,
    *(b'"\\u0000"', b'"\\ud800"', b'""', b"null", b"true", b"{}", b"[]", b'{"id": []}', b"[" * 2000, b"{" * 50),
]


class Mutator:
    """Mutates one input after another, in the same way for the same seed."""

    def __init__(self, random: Random, *, words: Sequence[bytes] = (), most_bytes: int = 1 << 18) -> None:
        """`words` are byte strings with a meaning in the mutated format; they are inserted too."""
        self._random = random
        self._most_bytes = most_bytes
        self._words = [*_WORDS, *words]
        self._mutations: list[Change] = [_flip, _cut, _repeat, _truncate, self._insert, self._replace]
        self._mutations += [self._replace_scalar] * 4

    def mutate(self, data: bytes, other: bytes = b"") -> bytes:
        """Return the data after a few changes; in a tenth of the cases its end is replaced by a piece of `other`."""
        if other and self._random.random() < 0.1:
            data = data[: _place(data, self._random)] + other[_place(other, self._random) :]
        for _ in range(self._random.choice(_COUNTS)):
            data = self._random.choice(self._mutations)(data, self._random)
        return data[: self._most_bytes]

    def _insert(self, data: bytes, random: Random) -> bytes:
        place = _place(data, random)
        return data[:place] + random.choice(self._words) + data[place:]

    def _replace(self, data: bytes, random: Random) -> bytes:
        start, end = _span(data, random)
        return data[:start] + random.choice(self._words) + data[end:]

    def _replace_scalar(self, data: bytes, random: Random) -> bytes:
        """Replace a number, a string or a literal of JSON, so that the input stays well-formed and is read further."""
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
