"""The key ring is exchanged under load as README tells: replica by replica, and nothing is lost on the way."""

import asyncio
import base64
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import psycopg

from server.otps.vault import Vault
from tests.faults.load import under_load
from tests.faults.processes import Process
from tests.faults.site import CHANNEL_OPTIONS, CODE, KEY, Site, listening, open_site, recipient
from tests.waiting import until

OLD, NEW = KEY, base64.b64encode(b"n" * 32).decode()
ROUND_ROBIN = [*CHANNEL_OPTIONS, ("grpc.lb_policy_name", "round_robin")]


@dataclass
class Replicas:
    """Two servers, and a caller who knows both."""

    site: Site
    settings: list[dict[str, str]]
    processes: list[Process] = field(default_factory=list)

    async def roll(self, ring: str) -> None:
        """Give every replica this ring, one after the other; then the caller has found one of them again."""
        for number, settings in enumerate(self.settings):
            process = self.processes[number]
            process.signal(signal.SIGTERM)
            assert await process.ended() == 0
            settings["PULSA_SECRET_KEYS"] = ring
            self.processes[number] = await listening("serve", settings, self.site.folder)
        await self.site.channel.channel_ready()

    async def rotate(self) -> tuple[int, str]:
        """`python -m server rotate` beside them."""
        process = Process("rotate", self.settings[0], output=self.site.folder / "rotate.log")
        return await process.ended(), process.output

    async def verify_all(self, sent: dict[str, str]) -> None:
        """The code that every address has got is good for its OTP."""
        await until(lambda: {f"{name}@mail.example" for name in sent} <= set(self.site.mails()))
        # Below the headers, as an address may have digits too.
        texts = {recipient(mail): mail.content.decode().partition("\r\n\r\n")[2] for mail in self.site.relay.mails}
        codes = {address: CODE.findall(text)[0] for address, text in texts.items()}
        guesses = ({"otp_id": otp_id, "code": codes[f"{name}@mail.example"]} for name, otp_id in sent.items())
        await asyncio.gather(*(self.site.call("VerifyOtp", **guess) for guess in guesses))


@asynccontextmanager
async def two_replicas(database_url: str, folder: Path) -> AsyncIterator[Replicas]:
    async with open_site(database_url, folder, PULSA_SECRET_KEYS=f"old:{OLD}") as site:
        settings = [site.settings, site.settings | {"PULSA_LISTEN": "127.0.0.1:0"}]
        replicas = Replicas(site, settings, [site.running.pop("serve")])
        try:
            replicas.processes.append(await listening("serve", settings[1], folder))
            both = f"ipv4:{','.join(one['PULSA_LISTEN'] for one in settings)}"
            async with grpc.aio.insecure_channel(both, options=ROUND_ROBIN) as channel:
                replicas.site = replace(site, channel=channel)
                yield replicas
        finally:
            for process in replicas.processes:
                await process.kill()


async def test_a_key_is_rotated_under_load_and_nothing_is_lost(database_url: str, tmp_path: Path) -> None:
    old, new = f"old:{OLD}", f"new:{NEW}"
    async with two_replicas(database_url, tmp_path) as replicas:
        site, granted = replicas.site, 1_000_000
        await site.grant(granted)
        async with under_load(site, callers=4, pause_seconds=0.1) as load:
            await load.has_answers(20)
            await replicas.roll(f"{new},{old}")
            await replicas.roll(f"{old},{new}")
            made_by_old = {name: answer.otp.otp_id for name, answer in load.answers.items()}
            needed, told = await replicas.rotate()
            await replicas.verify_all(made_by_old)
            free, told_at_last = await replicas.rotate()
            await replicas.roll(new)
            await load.has_answers(20)
        await site.is_settled()
        made_by_new = {name: one.otp.otp_id for name, one in load.answers.items() if name not in made_by_old}
        await replicas.verify_all(made_by_new)
        await load.is_charged_once(granted)

    assert (needed, "old: still needed by" in told) == (1, True)
    assert (free, "old: may leave the ring" in told_at_last) == (0, True)
    assert set(site.mails()) == {f"{name}@mail.example" for name in load.answers}
    assert await asyncio.to_thread(destinations, database_url) == set(site.mails())


def destinations(database_url: str) -> set[str]:
    """Where all that was sent went, as the new key alone tells."""
    vault = Vault({"new": b"n" * 32}, digest_secret=b"k" * 32)
    with psycopg.connect(database_url) as connection:
        rows = connection.execute("SELECT destination_sealed FROM deliveries").fetchall()
    return {vault.unseal(sealed, organization_id="acme") for (sealed,) in rows}
