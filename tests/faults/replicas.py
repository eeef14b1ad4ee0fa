"""Two replicas in processes of their own, which are restarted one after another with changed settings."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc

from tests.faults.process_deployment import (
    CHANNEL_OPTIONS,
    CODE,
    ProcessDeployment,
    deployed_processes,
    recipient,
    start_process,
)
from tests.faults.processes import Process
from tests.waiting import until

ROUND_ROBIN = [*CHANNEL_OPTIONS, ("grpc.lb_policy_name", "round_robin")]


@dataclass
class Replicas:
    """Two servers, and a channel that balances calls over both."""

    deployment: ProcessDeployment
    settings: list[dict[str, str]]
    processes: list[Process] = field(default_factory=list)

    async def roll(self, **changes: str) -> None:
        """Restart one replica after another with these settings, then wait until the channel is connected again."""
        for number, settings in enumerate(self.settings):
            process = self.processes[number]
            process.signal(signal.SIGTERM)
            assert await process.wait_for_exit() == 0
            settings.update(changes)
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
async def two_replicas(database_url: str, folder: Path, **changes: str) -> AsyncIterator[Replicas]:
    """Run two servers and the stand-ins; `changes` are settings by name."""
    async with deployed_processes(database_url, folder, **changes) as deployment:
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
