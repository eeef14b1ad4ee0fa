"""Page tokens: opaque to callers, and good only for the list that gave them."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from hashlib import blake2b
from typing import Final

from server.errors import FieldViolation, InvalidFields

DEFAULT_PAGE_SIZE: Final = 50
_LIST_BYTES = 8
_POSITION_BYTES = 16


class PageTokens:
    """The tokens of one list, newest first: of an rpc, an organization and whatever else the caller filters by.

    A position is a whole number: a sequence, or a time-ordered UUID's. A token needs no signature: each read is of the
    caller's own organization whatever the token says.
    """

    def __init__(self, *names_of_the_list: str, newest: int) -> None:
        """`newest` is a position that none is above."""
        self._list = blake2b("\0".join(names_of_the_list).encode(), digest_size=_LIST_BYTES).digest()
        self._newest = newest

    def write(self, position: int) -> str:
        """The token of the page that goes on after the row at this position."""
        return urlsafe_b64encode(self._list + position.to_bytes(_POSITION_BYTES)).decode()

    def read(self, token: str) -> int:
        """The position that the page goes on after; for an empty token the newest.

        Raises InvalidFields for whatever `write` did not make for this list.
        """
        if not token:
            return self._newest
        position = self._position(token)
        if position is None or position > self._newest or token != self.write(position):
            violation = FieldViolation("page_token", "the next_page_token of this same list")
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
