"""Merkle trees of texts, as in RFC 6962: a leaf's digest begins with a zero byte, that of a node with a one.

A node without a sibling moves up as it is. A path has 33 bytes for each sibling on the way from a leaf to the root: 0
if it is on the right or 1 if it is on the left, then its digest.
"""

from collections.abc import Sequence
from hashlib import sha256
from itertools import zip_longest


def leaf_of(text: str) -> bytes:
    """The digest of a leaf."""
    return sha256(b"\0" + text.encode()).digest()


class MerkleTree:
    """The tree over leaves, in their order."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        """At least one leaf."""
        self._levels = [list(leaves)]
        while len(level := self._levels[-1]) > 1:
            pairs = zip_longest(level[::2], level[1::2])
            self._levels.append([left if right is None else _node(left, right) for left, right in pairs])

    @property
    def root(self) -> bytes:
        """The digest of all leaves."""
        return self._levels[-1][0]

    def path(self, position: int) -> bytes:
        """The path from the leaf at this position to the root."""
        steps: list[bytes] = []
        for level in self._levels[:-1]:
            sibling = position ^ 1
            if sibling < len(level):
                steps.append(bytes([sibling < position]) + level[sibling])
            position //= 2
        return b"".join(steps)


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\1" + left + right).digest()
