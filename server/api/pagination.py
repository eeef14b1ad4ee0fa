"""Page tokens: opaque to callers, and valid only for the list that returned them."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any, Final, TypeVar

from server.errors import FieldViolation, InvalidFields

DEFAULT_PAGE_SIZE: Final = 50
LARGEST_PAGE_BYTES: Final = 4_000_000
"""Of a page's messages: with the rest of the response below 4 MiB, which gRPC libraries receive by default."""
_LIST_BYTES = 8
_POSITION_BYTES = 16


Row = TypeVar("Row")


def write_page(page: Any, rows: Sequence[Row], write: Callable[[Any, Row], None], *, size: int) -> Row | None:
    """Add a message per row to a page, up to `size` messages or LARGEST_PAGE_BYTES, but at least one.

    `page` is a repeated field. Returns the last row that was added if there are more, for the next page's token.
    """
    room = LARGEST_PAGE_BYTES
    for position, row in enumerate(rows[:size]):
        write(message := page.add(), row)
        room -= message.ByteSize()
        if room < 0 < position:
            del page[-1]
            return rows[position - 1]
    return rows[size - 1] if len(rows) > size else None


def filters_of(request: Any) -> tuple[str, ...]:
    """What identifies a list besides its rpc and organization: the filters of its request; () without any.

    Not a destination: tokens have a digest without a key, from which a phone number could be found by trying all.
    """
    filters = type(request)()
    filters.CopyFrom(request)
    for name in ("organization_id", "page_size", "page_token", "destination"):
        if name in request.DESCRIPTOR.fields_by_name:
            filters.ClearField(name)
    given = filters.SerializeToString(deterministic=True).hex()
    return (given,) if given else ()


class PageTokens:
    """Writes and reads the page tokens of one list, which is ordered newest first.

    A list is identified by its rpc, organization and filters. A position is an integer: a sequence number or a
    time-ordered UUID. Tokens need no signature: a read is always limited to the caller's organization.
    """

    def __init__(self, *list_names: str, newest: int, field: str = "page_token") -> None:
        """`list_names` identify the list; `newest` is an upper bound of its positions; `field` is the request's."""
        self._list = blake2b("\0".join(list_names).encode(), digest_size=_LIST_BYTES).digest()
        self._newest = newest
        self._field = field
        self._expected = f"a {'next_' if field == 'page_token' else ''}{field} of the same list"

    def write(self, position: int) -> str:
        """Return the token of the page that continues after the row at this position."""
        return urlsafe_b64encode(self._list + position.to_bytes(_POSITION_BYTES)).decode()

    def read(self, token: str) -> int:
        """Return the position after which the page continues; `newest` for an empty token.

        Raises InvalidFields for a token that `write` did not return for this list.
        """
        if not token:
            return self._newest
        position = self._position(token)
        if position is None or position > self._newest or token != self.write(position):
            violation = FieldViolation(self._field, self._expected)
            raise InvalidFields(violations=(violation,))
        return position

    def _position(self, token: str) -> int | None:
        try:
            content = urlsafe_b64decode(token)
        except ValueError:
            return None
        if len(content) != _LIST_BYTES + _POSITION_BYTES:
            return None
        return int.from_bytes(content[_LIST_BYTES:])
