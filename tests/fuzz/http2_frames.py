"""Raw bytes for the gRPC port: valid and invalid HTTP/2 (RFC 9113)."""

import struct
from random import Random

from tests.fuzz.http_requests import HttpRequests
from tests.fuzz.messages import MARKER
from tests.fuzz.mutations import Mutator

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _END_HEADERS = 1, 4
_OPENING = _PREFACE + struct.pack(">HBBBI", 0, 0, _SETTINGS, 0, 0)
_POST_HTTP = b"\x83\x86"  # two entries of HPACK's static table (RFC 7541)
_TIMEOUTS = ["10S", "1n", "0S", "99999999H", "999999999S", "-1S", "S", "5", MARKER]
_ENCODINGS = ["identity", "gzip", "deflate", "br", MARKER]


class Http2Frames:
    """Generates the bytes of one connection after another, the same for the same seed."""

    def __init__(self, random: Random, *, path: str, token: str, request: bytes) -> None:
        """`request` is a valid request of the rpc at the path."""
        self._random, self._path, self._token, self._request = random, path, token, request
        self._mutator = Mutator(random, words=[b"\x00\x00\x00\x04\x01\x00\x00\x00\x00", MARKER.encode()])
        self._http_requests = HttpRequests(random)

    def longest_deadline(self) -> bytes:
        """A call whose deadline is beyond the last year of a datetime."""
        headers = ("grpc-timeout", "99999999H"), ("authorization", f"Bearer {self._token}")
        return _OPENING + self._call_with(*headers)

    def connection(self) -> bytes:
        """Everything that one client sends."""
        call = _OPENING + self._call()
        kind = self._random.choice(("call", "call", "mutated", "random", "http"))
        if kind == "mutated":
            return _PREFACE + self._mutator.mutate(call[len(_PREFACE) :])
        if kind == "random":
            frames = (self._random.randbytes(self._random.randint(0, 40)) for _ in range(5))
            return _PREFACE + b"".join(_frame(self._random.randrange(12), 5, 1, frame) for frame in frames)
        return self._http_requests.request() if kind == "http" else call

    def _call(self) -> bytes:
        """A well-formed call, at times with an unusual deadline, encoding or message."""
        random = self._random
        return self._call_with(
            ("grpc-timeout", random.choice(_TIMEOUTS)),
            ("authorization", random.choice([f"Bearer {self._token}", f"Bearer {MARKER}"])),
            ("grpc-encoding", random.choice(["identity", *_ENCODINGS])),
            (MARKER, MARKER * random.choice((1, 1, 3000))),
            path=random.choice([self._path, self._path, self._path + MARKER, "/", "no path"]),
            kind=random.choice(["application/grpc", "application/grpc", f"application/{MARKER}"]),
            message=struct.pack(
                ">BI",
                random.choice((0, 0, 0, 1, 255)),
                random.choice((len(self._request), len(self._request), 0, 2**32 - 1)),
            ),
        )

    def _call_with(
        self,
        *headers: tuple[str, str],
        path: str = "",
        kind: str = "application/grpc",
        message: bytes = b"",
    ) -> bytes:
        """A call with these headers and the usual ones."""
        message = message or struct.pack(">BI", 0, len(self._request))
        usual = [(":path", path or self._path), (":authority", "x"), ("te", "trailers"), ("content-type", kind)]
        block = _POST_HTTP + b"".join(_header(name, value) for name, value in [*usual, *headers])
        return _frame(_HEADERS, _END_HEADERS, 1, block) + _frame(_DATA, _END_STREAM, 1, message + self._request)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">HBBBI", len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


def _header(name: str, value: str) -> bytes:
    return b"\x00" + _text(name) + _text(value)


def _text(value: str) -> bytes:
    """A string literal of HPACK (RFC 7541), without Huffman coding."""
    content = value.encode()
    length = len(content)
    if length < 127:
        return bytes([length]) + content
    length, digits = length - 127, b"\x7f"
    while length >= 128:
        digits += bytes([length % 128 + 128])
        length //= 128
    return digits + bytes([length]) + content
