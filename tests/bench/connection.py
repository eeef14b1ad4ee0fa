"""One HTTP/2 connection for gRPC calls only, cheap enough to measure a server on the same two cores.

All frames to send are built before the run: during it a call costs a slice of bytes and the parsing of three frame
headers. Only the necessary parts of HTTP/2 (RFC 9113) and HPACK (RFC 7541) are implemented.
"""

import socket
import struct
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_HEADER_TABLE_SIZE, _MAX_STREAMS, _INITIAL_WINDOW = 1, 3, 4
_LARGEST_WINDOW = 2**31 - 1
_FIRST_WINDOW = 65535
_FRAME = struct.Struct(">HBBBI")
_LARGEST_READ = 1 << 18
_STATUS = b"grpc-status"
# Names in HPACK's static table, with the prefix that adds the header to the dynamic table.
_INDEXED_NAMES = {":path": 0x44, ":authority": 0x41, "content-type": 0x5F, "authorization": 0x57, "user-agent": 0x7A}
_POST_HTTP = b"\x83\x86"


@dataclass(frozen=True, slots=True)
class Target:
    """What the load calls, and with which token."""

    port: int
    path: str
    token: str

    def headers(self) -> list[tuple[str, str]]:
        """As a gRPC client sends them."""
        return [
            (":path", self.path),
            (":authority", f"127.0.0.1:{self.port}"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("grpc-timeout", "10S"),
            ("authorization", f"Bearer {self.token}"),
            ("user-agent", "pulsa-bench"),
        ]


class Connection:
    """Makes the calls of `bodies` in order, as many as `due` has entries, and records how each ended."""

    def __init__(self, target: Target, bodies: Sequence[bytes]) -> None:
        self.calls = _call_frames(target, bodies)
        self._body_bytes = [5 + len(body) for body in bodies]
        self.due: list[float] = []
        """Scheduled begin of each call that may begin, in seconds of time.perf_counter()."""
        self.started = 0
        self.ended: list[tuple[float, float]] = []
        """(due, ended) of each call that ended with OK."""
        self._has_ended = bytearray(len(bodies))
        self.statuses: Counter[str] = Counter()
        self._status_of: dict[bytes, str] = {}
        self._window, self._most_streams = _FIRST_WINDOW, _LARGEST_WINDOW  # until its SETTINGS say less
        self._unread = self._unsent = b""
        self.socket = socket.create_connection(("127.0.0.1", target.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        settings = struct.pack(">HIHI", _HEADER_TABLE_SIZE, 0, _INITIAL_WINDOW, _LARGEST_WINDOW)
        window = struct.pack(">I", _LARGEST_WINDOW - _FIRST_WINDOW)
        self.socket.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW_UPDATE, 0, 0, window))
        self.socket.settimeout(0)

    @property
    def in_flight(self) -> int:
        """Calls that have begun and not ended."""
        return self.started - self.statuses.total()

    def fileno(self) -> int:
        """For select()."""
        return self.socket.fileno()

    def send(self) -> None:
        """Begin the calls that are due, within the server's stream and window limits."""
        first = self.started
        last = min(len(self.due), len(self.calls), first + self._most_streams - self.in_flight)
        while self.started < last and self._window >= self._body_bytes[self.started]:
            self._window -= self._body_bytes[self.started]
            self.started += 1
        outgoing = self._unsent + b"".join(self.calls[first : self.started])
        if outgoing:
            with suppress(BlockingIOError):
                outgoing = outgoing[self.socket.send(outgoing) :]
            self._unsent = outgoing

    def receive(self, now: float) -> int:
        """Process received frames; returns the number of calls that ended."""
        data = self._unread + self.socket.recv(_LARGEST_READ)
        if len(data) == len(self._unread):
            raise ConnectionError("the server closed the connection")
        position, end, before = 0, len(data), self.statuses.total()
        while end - position >= _FRAME.size:
            high, low, kind, flags, stream = _FRAME.unpack_from(data, position)
            after = position + _FRAME.size + (high << 8 | low)
            if after > end:
                break
            if kind == _HEADERS:
                if flags & _END_STREAM:
                    self._end(stream, data[position + _FRAME.size : after], now)
            elif kind != _DATA:
                self._control(kind, flags, stream, data[position + _FRAME.size : after])
            position = after
        self._unread = data[position:]
        return self.statuses.total() - before

    def _end(self, stream: int, trailers: bytes, now: float) -> None:
        status = self._status_of.get(trailers)
        if status is None:
            status = self._status_of[trailers] = _status(trailers)
        self._count(stream, status)
        if status == "0":
            self.ended.append((self.due[stream >> 1], now))

    def _count(self, stream: int, status: str) -> None:
        if not self._has_ended[stream >> 1]:  # after its trailers the server may still reset a stream
            self._has_ended[stream >> 1] = 1
            self.statuses[status] += 1

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            for name, value in struct.iter_unpack(">HI", payload):
                if name == _MAX_STREAMS:
                    self._most_streams = value
            self._unsent += _frame(_SETTINGS, _ACK, 0, b"")
        elif kind == _PING and not flags & _ACK:
            self._unsent += _frame(_PING, _ACK, 0, payload)
        elif kind == _WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(payload, "big")
        elif kind == _RST_STREAM:
            self._count(stream, f"RST_STREAM {int.from_bytes(payload, 'big')}")
        elif kind == _GOAWAY:
            raise ConnectionError(f"the server said GOAWAY: {payload!r}")


def _call_frames(target: Target, bodies: Sequence[bytes]) -> list[bytes]:
    """The frames of each call. Headers are sent in full once, then as one byte each from HPACK's dynamic table."""
    headers = target.headers()
    in_full = _POST_HTTP + b"".join(_added_header(name, value) for name, value in headers)
    repeated = _POST_HTTP + bytes(0x80 | 61 + len(headers) - position for position in range(len(headers)))
    frames = []
    for number, body in enumerate(bodies):
        stream = 2 * number + 1
        message = b"\x00" + len(body).to_bytes(4, "big") + body
        frames.append(
            _frame(_HEADERS, _END_HEADERS, stream, repeated if number else in_full)
            + _frame(_DATA, _END_STREAM, stream, message)
        )
    return frames


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return _FRAME.pack(len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


def _added_header(name: str, value: str) -> bytes:
    """A literal header that the server adds to its dynamic table."""
    if name in _INDEXED_NAMES:
        return bytes([_INDEXED_NAMES[name]]) + _text(value)
    return b"\x40" + _text(name) + _text(value)


def _text(text: str) -> bytes:
    """A string without Huffman coding, its length as an integer with a prefix of 7 bits."""
    length, octets = len(text), bytearray()
    if length < 127:
        octets.append(length)
    else:
        octets.append(127)
        length -= 127
        while length >= 128:
            octets.append(length & 127 | 128)
            length >>= 7
        octets.append(length)
    return bytes(octets) + text.encode()


def _status(trailers: bytes) -> str:
    """grpc-status from literal trailers: our SETTINGS allow no dynamic table, so the server sends literals."""
    _, found, rest = trailers.partition(_STATUS)
    return rest[1 : 1 + rest[0]].decode() if found else f"no grpc-status: {trailers!r}"
