"""The encryption keys are rotated under load, replica by replica, as the README describes; nothing is lost."""

import asyncio
import base64
from pathlib import Path

import psycopg

from server.otps.crypto import Crypto
from tests.faults.load import under_load
from tests.faults.process_deployment import KEY
from tests.faults.replicas import two_replicas

OLD, NEW = KEY, base64.b64encode(b"n" * 32).decode()


async def test_a_key_is_rotated_under_load_and_nothing_is_lost(database_url: str, tmp_path: Path) -> None:
    old, new = f"old:{OLD}", f"new:{NEW}"
    async with two_replicas(database_url, tmp_path, PULSA_SECRET_KEYS=old) as replicas:
        deployment, granted = replicas.deployment, 1_000_000
        await deployment.grant(granted)
        async with under_load(deployment, callers=4, interval_seconds=0.1) as load:
            await load.wait_for_answers(20)
            await replicas.roll(PULSA_SECRET_KEYS=f"{new},{old}")
            await replicas.roll(PULSA_SECRET_KEYS=f"{old},{new}")
            sent_with_old_key = {name: answer.otp.otp_id for name, answer in load.answers.items()}
            exit_code_before, report_before = await replicas.rotate()
            await replicas.verify_all(sent_with_old_key)
            exit_code_after, report_after = await replicas.rotate()
            await replicas.roll(PULSA_SECRET_KEYS=new)
            await load.wait_for_answers(20)
        await deployment.wait_for_empty_outbox()
        sent_with_new_key = {
            name: answer.otp.otp_id for name, answer in load.answers.items() if name not in sent_with_old_key
        }
        await replicas.verify_all(sent_with_new_key)
        await load.assert_charged_once(granted)

    assert (exit_code_before, "old: still needed by" in report_before) == (1, True)
    assert (exit_code_after, "old: no longer needed" in report_after) == (0, True)
    assert set(deployment.mails()) == {f"{name}@mail.example" for name in load.answers}
    assert await asyncio.to_thread(destinations, database_url) == set(deployment.mails())


def destinations(database_url: str) -> set[str]:
    """The destinations of all deliveries, decrypted with the new key alone."""
    crypto = Crypto({"new": b"n" * 32}, digest_secrets={"d1": b"k" * 32})
    with psycopg.connect(database_url) as connection:
        rows = connection.execute("SELECT destination_sealed FROM deliveries").fetchall()
    return {crypto.unseal(sealed, organization_id="acme") for (sealed,) in rows}
