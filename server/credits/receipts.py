"""Receipts: proofs that a ledger entry is one of those that were there when a day was over.

Each day (UTC) has a head, which is signed with an Ed25519 key. It is over a tree of all organizations' roots of that
day, and each of these over a tree of entries: those of one MAC. So one entry is checked with two short paths, without
any other entry. Each head has the digest of the one before: two different histories cannot have the same later head.
docs/receipts.md has the check.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import date
from hashlib import sha256
from typing import Final, NamedTuple

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from server.credits.audit import ledger_parts
from server.credits.ledger import DIGEST, AuditKeys
from server.credits.merkle import MerkleTree, leaf_of
from server.errors import ReceiptNotFound
from server.postgres.columns import BIGINT, BYTEA, TEXT, RowSource
from server.postgres.pool import Connection, Pool, acquire, run_idempotent, transaction
from server.postgres.queries import load_queries

_NAME: Final = "pulsa ledger head 1"
_ENTRY: Final = """jsonb_build_array(
        organization_id, sequence, kind, credits, balance_after, reference_id, reason, created_by,
        to_char(create_time AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
    )::text"""
"""An entry as a leaf of its tree: all its columns as a JSON array."""
_LEAVES: Final = f"array_agg(sha256('\\x00'::bytea || convert_to({_ENTRY}, 'UTF8')) ORDER BY sequence)"
_log = structlog.get_logger(__name__)


class LedgerRoot(NamedTuple):
    """The root of the entries of one MAC."""

    organization_id: str
    last_sequence: int
    first_sequence: int
    root: bytes
    path: bytes = b""
    """To the root of its day."""


_ROOTS: RowSource[LedgerRoot] = RowSource(
    organization_id=TEXT, last_sequence=BIGINT, first_sequence=BIGINT, root=BYTEA, path=BYTEA
)
SQL = load_queries(__file__, entry=_ENTRY, leaves=_LEAVES, digest=DIGEST, root=_ROOTS)
_ROWS: Final = 1000
"""The most roots that one statement writes."""


class Receipt(NamedTuple):
    """What proves one entry; pulsa.credit.v1.Receipt says how."""

    entry: str
    entry_path: bytes
    last_sequence: int
    ledger_path: bytes
    head: str
    key_id: str
    signature: bytes


class SigningKeys:
    """Ed25519 keys by id: the last one of the ring signs."""

    def __init__(self, secrets: Mapping[str, bytes]) -> None:
        """Each secret has 32 random bytes."""
        self._keys = {key_id: Ed25519PrivateKey.from_private_bytes(secret) for key_id, secret in secrets.items()}
        self._current_key_id = tuple(secrets)[-1]

    def sign(self, text: str) -> tuple[str, bytes]:
        """The current key's id, and its signature of the text."""
        return self._current_key_id, self._keys[self._current_key_id].sign(text.encode())

    def public_keys(self) -> dict[str, str]:
        """The public keys by id, as PEM."""
        form = Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
        return {key_id: key.public_key().public_bytes(*form).decode() for key_id, key in self._keys.items()}


async def sign_days(pool: Pool, audit_keys: AuditKeys, signing_keys: SigningKeys) -> int:
    """Sign each day whose MACs are made and that has no head, oldest first; returns how many.

    Also those of before there was a key. Stops, with an error in the log, at entries that are not those of their MAC.
    """
    signed = 0
    while (day := await _next_day(pool)) is not None:
        roots = await _read_roots(pool, audit_keys, day)
        if roots is None:
            break
        await _write_head(pool, signing_keys, day, roots)
        signed += 1
    return signed


async def make_receipt(pool: Pool, organization_id: str, sequence: int) -> Receipt:
    """The receipt of an entry. Raises ReceiptNotFound when there is no such entry, or its day is not signed yet."""
    values = {"organization_id": organization_id, "sequence": sequence}

    async def make(connection: Connection) -> Receipt:
        found = await (await connection.execute(SQL.find_root, values)).fetchone()
        if found is None:
            raise ReceiptNotFound
        last_sequence, first_sequence, day, root, path = found
        signed = await (await connection.execute(SQL.read_head, {"day": day})).fetchone()
        if signed is None:
            raise ReceiptNotFound
        entry = await (await connection.execute(SQL.read_entry, values)).fetchone()
        leaves, _ = await _read_leaves(connection, organization_id, first_sequence - 1, last_sequence)
        tree = MerkleTree(leaves)
        if entry is None or tree.root != root:
            raise LookupError(f"the entries of {organization_id} were changed: run python -m server audit")
        return Receipt(entry[0], tree.path(sequence - first_sequence), last_sequence, path, *signed)

    return await run_idempotent(pool, make)


async def _next_day(pool: Pool) -> date | None:
    async with acquire(pool, seconds=pool.timeouts.job) as connection:
        row = await (await connection.execute(SQL.find_next_day)).fetchone()
    return row[0] if row else None


async def _read_roots(pool: Pool, audit_keys: AuditKeys, day: date) -> list[LedgerRoot] | None:
    """The roots of a day, in order; None when some entries are not those of their MAC."""
    roots: list[LedgerRoot] = []
    async with acquire(pool, seconds=pool.timeouts.job) as connection:
        macs = await (await connection.execute(SQL.read_macs, {"day": day})).fetchall()
        for own, last, key_id, mac, previous_last, previous_mac in macs:
            leaves, digest = await _read_leaves(connection, own, previous_last, last)
            parts = ledger_parts(own, last, day, previous_mac, digest)
            if (objection := audit_keys.objection(key_id, mac, *parts)) or len(leaves) != last - previous_last:
                _log.error("a day was not signed", alert=True, organization_id=own, day=str(day), why=objection)
                return None
            roots.append(LedgerRoot(own, last, previous_last + 1, MerkleTree(leaves).root))
    return roots


async def _read_leaves(
    connection: Connection, organization_id: str, previous_last: int, last: int
) -> tuple[Sequence[bytes], bytes]:
    """The leaves of the entries after one up to another, and their digest."""
    values = {"organization_id": organization_id, "previous_last": previous_last, "last_sequence": last}
    ((leaves, digest),) = await (await connection.execute(SQL.read_leaves, values)).fetchall()
    return leaves or [], digest or b""


async def _write_head(pool: Pool, signing_keys: SigningKeys, day: date, roots: Sequence[LedgerRoot]) -> None:
    """Store the roots, then the head, in transactions of their own: on Citus the heads are on another server.

    A crash between the two repeats what is missing, as the roots of a day are always the same.
    """
    tree = MerkleTree([leaf_of(_ledger_text(root)) for root in roots] or [leaf_of("")])
    placed = [root._replace(path=tree.path(position)) for position, root in enumerate(roots)]
    async with transaction(pool, seconds=pool.timeouts.job) as connection:
        for start in range(0, len(placed), _ROWS):
            await _ROOTS.write(connection, SQL.insert_roots, rows=placed[start : start + _ROWS], day=day)
    async with transaction(pool, seconds=pool.timeouts.job) as connection:
        previous = await (await connection.execute(SQL.read_previous_head, {"day": day})).fetchone()
        digest = sha256(previous[0].encode()).hexdigest() if previous else ""
        head = json.dumps([_NAME, str(day), tree.root.hex(), digest])
        key_id, signature = signing_keys.sign(head)
        values = {"day": day, "head": head, "key_id": key_id, "signature": signature}
        if not (await connection.execute(SQL.insert_head, values)).rowcount:
            return  # another replica has signed it
    _log.info("a day is signed", day=str(day), head=head, key_id=key_id, signature=signature.hex())


def _ledger_text(root: LedgerRoot) -> str:
    """An organization's root as a leaf of the day's tree."""
    return json.dumps([root.organization_id, root.last_sequence, root.root.hex()])
