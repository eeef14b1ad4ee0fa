"""Page tokens: opaque to callers, and valid only for the list that returned them."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b
from typing import Final

from server.errors import FieldViolation, InvalidFields

DEFAULT_PAGE_SIZE: Final = 50
_LIST_BYTES = 8
_POSITION_BYTES = 16


class PageTokens:
    """Writes and reads the page tokens of one list, which is ordered newest first.

    A list is identified by its rpc, organization and filters. A position is an integer: a sequence number or a
    time-ordered UUID. Tokens need no signature: a read is always limited to the caller's organization.
    """

    def __init__(self, *list_names: str, newest: int) -> None:
        """`list_names` identify the list; `newest` is an upper bound of its positions."""
        self._list = blake2b("\0".join(list_names).encode(), digest_size=_LIST_BYTES).digest()
        self._newest = newest

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
            violation = FieldViolation("page_token", "a next_page_token of the same list")
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
