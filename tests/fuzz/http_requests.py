"""Raw bytes for the webhook sidecar: requests as Stripe sends them, and malformed ones."""

import json
from random import Random
from uuid import uuid4

from server.credits.stripe.webhooks import EVENT_TYPES
from server.webhook.sidecar import PATH
from tests.fuzz.messages import MARKER
from tests.fuzz.mutations import Mutator
from tests.fuzz.stripe_events import event, signature_of

_M = MARKER.encode()
_METHODS = [b"POST", b"GET", b"PUT", b"OPTIONS", b"CONNECT", b"PRI", b"post", b"P\x00ST", b"", b"X" * 70_000, _M]
_TARGETS = [
    b"/healthz",
    b"/" + _M,
    b"*",
    b"http://" + _M + b"/x",
    b"/../..",
    b"/%00%ff",
    b"/\xff",
    b"",
    b"/" + b"a" * 70_000,
]
_VERSIONS = [b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9.9", b"HTTP/1.1" * 3, b"", b"\x00", _M]
_HEADERS = [
    b"Content-Length: 0",
    b"Content-Length: 5",
    b"Content-Length: -1",
    b"Content-Length: 99999999999999999999",
    b"Content-Length: 5, 5",
    b"Content-Length: " + _M,
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: " + _M,
    b"Transfer-Encoding:\x0bchunked",
    b"Content-Encoding: gzip",
    b"Content-Encoding: deflate",
    b"Content-Encoding: br",
    b"Content-Type: multipart/form-data; boundary=" + _M,
    b"Content-Type: \xff",
    b"Expect: 100-continue",
    b"Expect: " + _M,
    b"Upgrade: websocket\r\nConnection: Upgrade",
    b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
    b"Stripe-Signature: " + _M,
    b"Stripe-Signature: t=1,v1=" + b"0" * 64,
    b"Stripe-Signature: t=" + b"9" * 400 + b",v1=00",
    b"Stripe-Signature: " + b"t=1," * 2000,
    b"Stripe-Signature: \xff\xfe",
    b"Stripe-Signature:",
    b"X-" + _M + b": " + b"x" * 100_000,
    b"\r\n".join([b"X: " + _M] * 300),
    b" folded: " + _M,
    b"No-Colon-" + _M,
    b": " + _M,
    b"Nul: \x00" + _M,
    b"Cookie: " + _M,
    b"Host: " + _M,
]
_SIZES = [b"0", b"1", b"-1", b"FFFFFFFFFFFFFFFFFF", b"5;" + _M, b"5;" + b"x" * 70_000, b"0x5", b" 5", b"", _M]


class HttpRequests:
    """Generates one request after another, the same for the same seed, except for signatures, which have the time."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._mutator = Mutator(random, words=[b"\r\n\r\n", b"0\r\n\r\n", b": ", *_HEADERS, *_VERSIONS])
        self._writer = Mutator(random, words=[_M, b'"id": "in_1"', b'"object": "invoice"', b'"livemode": true'])

    def request(self) -> bytes:
        """A request of a random kind."""
        kind = self._random.choice(
            (self._signed, self._signed, self._unusual, self._unusual, self._mutated, self._junk)
        )
        return kind()

    def _signed(self) -> bytes:
        """A well-formed request with a correct signature, and a payload that Stripe would not send."""
        good = _event(self._random)
        tries = (self._writer.mutate(good) for _ in range(self._random.choice((1, 10))))
        payload = next(filter(_is_json, tries), good[:-1])
        return _post(payload, signature_of(payload))

    def _unusual(self) -> bytes:
        """A request of valid and unusual parts."""
        random, payload = self._random, _event(self._random)
        headers = [b"Host: x", b"Stripe-Signature: " + signature_of(payload).encode()]
        headers += random.choices(_HEADERS, k=random.choice((0, 1, 1, 2, 4)))
        method = b"POST" if random.random() < 0.8 else random.choice(_METHODS)
        target = PATH.encode() if random.random() < 0.8 else random.choice(_TARGETS)
        version = b"HTTP/1.1" if random.random() < 0.9 else random.choice(_VERSIONS)
        body = random.choice(self._bodies(payload))
        if random.random() < 0.5:
            headers.append(b"Content-Length: %d" % len(body))
        random.shuffle(headers)
        return b"\r\n".join([b" ".join([method, target, version]), *headers, b"", body])

    def _bodies(self, payload: bytes) -> list[bytes]:
        random = self._random
        chunks = [random.choice(_SIZES) + b"\r\n" + payload[:5] + b"\r\n" for _ in range(3)]
        whole = b"%x\r\n%b\r\n0\r\n\r\n" % (len(payload), payload)
        return [payload, whole, b"".join(chunks), whole * 2, b"x" * 300_000, b"", random.randbytes(200)]

    def _mutated(self) -> bytes:
        """A mutation of a valid request."""
        payload = _event(self._random)
        good = _post(payload, signature_of(payload))
        return self._mutator.mutate(good, self._unusual())

    def _junk(self) -> bytes:
        """Bytes that are not HTTP."""
        random = self._random
        beginnings = [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x00",
            b"EHLO x\r\n",
        ]
        return random.choice(beginnings) + random.randbytes(random.choice((0, 1, 50, 5000))) + random.choice((b"", _M))


def good_request() -> bytes:
    """A webhook that must be accepted."""
    payload = event(id=f"evt_{uuid4().hex}")
    return _post(payload, signature_of(payload))


def _event(random: Random) -> bytes:
    object_ = random.choice(({"object": "invoice", "id": "in_1"}, {"object": "charge", "payment_intent": "pi_1"}))
    return event(
        id=f"evt_{random.getrandbits(64):x}", type=random.choice(EVENT_TYPES), account=None, data={"object": object_}
    )


def _is_json(payload: bytes) -> bool:
    try:
        json.loads(payload)
    except (ValueError, RecursionError):
        return False
    return True


def _post(payload: bytes, signature: str) -> bytes:
    head = [f"POST {PATH} HTTP/1.1", "Host: x", "Connection: close", f"Content-Length: {len(payload)}"]
    return "\r\n".join([*head, f"Stripe-Signature: {signature}", "", ""]).encode() + payload
