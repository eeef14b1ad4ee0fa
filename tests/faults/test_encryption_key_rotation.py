"""The encryption keys are rotated under load, replica by replica, as the README describes; nothing is lost."""

import asyncio
import base64
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import psycopg

from server.otps.crypto import Crypto
from tests.faults.load import under_load
from tests.faults.process_deployment import (
    CHANNEL_OPTIONS,
    CODE,
    KEY,
    ProcessDeployment,
    deployed_processes,
    recipient,
    start_process,
)
from tests.faults.processes import Process
from tests.waiting import until

OLD, NEW = KEY, base64.b64encode(b"n" * 32).decode()
ROUND_ROBIN = [*CHANNEL_OPTIONS, ("grpc.lb_policy_name", "round_robin")]


@dataclass
class Replicas:
    """Two servers, and a channel that balances calls over both."""

    deployment: ProcessDeployment
    settings: list[dict[str, str]]
    processes: list[Process] = field(default_factory=list)

    async def roll(self, ring: str) -> None:
        """Restart one replica after another with this key ring, then wait until the channel is connected again."""
        for number, settings in enumerate(self.settings):
            process = self.processes[number]
            process.signal(signal.SIGTERM)
            assert await process.wait_for_exit() == 0
            settings["PULSA_SECRET_KEYS"] = ring
            self.processes[number] = await start_process("serve", settings, self.deployment.folder)
        await self.deployment.channel.channel_ready()

    async def rotate(self) -> tuple[int, str]:
        """Run `python -m server rotate` while they serve. Returns the exit code and the output."""
        process = Process("rotate", self.settings[0], output=self.deployment.folder / "rotate.log")
        return await process.wait_for_exit(), process.output

    async def verify_all(self, sent: dict[str, str]) -> None:
        """Verify each OTP with the code that was mailed to its address."""
        await until(lambda: {f"{name}@mail.example" for name in sent} <= set(self.deployment.mails()))
        # Only the bodies: an address in a header may contain digits too.
        texts = {
            recipient(mail): mail.content.decode().partition("\r\n\r\n")[2] for mail in self.deployment.relay.mails
        }
        codes = {address: CODE.findall(text)[0] for address, text in texts.items()}
        guesses = ({"otp_id": otp_id, "code": codes[f"{name}@mail.example"]} for name, otp_id in sent.items())
        await asyncio.gather(*(self.deployment.call("VerifyOtp", **guess) for guess in guesses))


@asynccontextmanager
async def two_replicas(database_url: str, folder: Path) -> AsyncIterator[Replicas]:
    async with deployed_processes(database_url, folder, PULSA_SECRET_KEYS=f"old:{OLD}") as deployment:
        settings = [deployment.settings, deployment.settings | {"PULSA_LISTEN": "127.0.0.1:0"}]
        replicas = Replicas(deployment, settings, [deployment.running.pop("serve")])
        try:
            replicas.processes.append(await start_process("serve", settings[1], folder))
            both = f"ipv4:{','.join(each['PULSA_LISTEN'] for each in settings)}"
            async with grpc.aio.insecure_channel(both, options=ROUND_ROBIN) as channel:
                replicas.deployment = replace(deployment, channel=channel)
                yield replicas
        finally:
            for process in replicas.processes:
                await process.kill()


async def test_a_key_is_rotated_under_load_and_nothing_is_lost(database_url: str, tmp_path: Path) -> None:
    old, new = f"old:{OLD}", f"new:{NEW}"
    async with two_replicas(database_url, tmp_path) as replicas:
        deployment, granted = replicas.deployment, 1_000_000
        await deployment.grant(granted)
        async with under_load(deployment, callers=4, interval_seconds=0.1) as load:
            await load.wait_for_answers(20)
            await replicas.roll(f"{new},{old}")
            await replicas.roll(f"{old},{new}")
            sent_with_old_key = {name: answer.otp.otp_id for name, answer in load.answers.items()}
            exit_code_before, report_before = await replicas.rotate()
            await replicas.verify_all(sent_with_old_key)
            exit_code_after, report_after = await replicas.rotate()
            await replicas.roll(new)
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
    crypto = Crypto({"new": b"n" * 32}, digest_secret=b"k" * 32)
    with psycopg.connect(database_url) as connection:
        rows = connection.execute("SELECT destination_sealed FROM deliveries").fetchall()
    return {crypto.unseal(sealed, organization_id="acme") for (sealed,) in rows}
