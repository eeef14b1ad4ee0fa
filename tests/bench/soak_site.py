"""The deployment that `make soak` disturbs: two replicas with mutual TLS, PostgreSQL behind two hosts, a mail relay."""

import asyncio
import os
import random
import secrets
import signal
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
import psycopg
from psycopg.conninfo import make_conninfo

from server.cli.token import development_key
from server.sandbox.relay import Relay
from server.sandbox.stripe import start_stripe_sandbox
from server.setting_types import KEY_BYTES
from tests.bench.soak_hosts import Hosts, open_hosts
from tests.faults.issuer import Issuer
from tests.faults.process_deployment import CHANNEL_OPTIONS, server_settings, start_process
from tests.faults.processes import Process
from tests.integration.api.certificate_authority import CertificateAuthority, write_tls

_SERVERS, _CLIENTS = CertificateAuthority(), CertificateAuthority()
_OPTIONS: Final = [
    *CHANNEL_OPTIONS,
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.ssl_target_name_override", "127.0.0.1"),
]
_PROMOTION_SECONDS: Final = 3.0
_RELOAD_SECONDS: Final = 3.0
"""For the replicas to read a file again that has changed; they do so every second."""
_RINGS: Final = ("PULSA_SECRET_KEYS", "PULSA_SECRET_DIGEST_KEYS")


@dataclass
class Site:
    """The processes and their stand-ins, and what can happen to them. The first replica is the one never killed."""

    folder: Path
    url: str
    """PostgreSQL itself, past the hosts."""
    settings: list[dict[str, str]]
    relay: Relay
    issuer: Issuer
    hosts: Hosts
    chance: random.Random
    processes: list[Process] = field(default_factory=list)
    token: str = ""
    key_number: int = 0
    undisturbed: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by whatever happens: two things at once could leave no replica."""

    @property
    def faults(self) -> Mapping[str, Callable[[], Awaitable[object]]]:
        """What happens every half minute, by name; each is over when it returns."""
        return {
            "second replica restarted": lambda: self.restart(1, signal.SIGTERM),
            "certificates swapped": self.swap_certificates,
            "token keys rotated": self.rotate_token_keys,
            "failover to the other host": self.fail_over,
            "first replica frozen": lambda: self.freeze(self.chance.uniform(0.2, 3)),
            "connections to PostgreSQL ended": self.end_connections,
            "second replica killed": lambda: self.restart(1, signal.SIGKILL),
        }

    async def start(self) -> None:
        """Start both replicas."""
        for settings in self.settings:
            self.processes.append(await start_process("serve", settings, self.folder))

    async def restart(self, number: int, how: signal.Signals) -> None:
        """End a replica by the signal, and start it again on its port."""
        self.processes[number].signal(how)
        await self.processes[number].wait_for_exit()
        self.processes[number] = await start_process("serve", self.settings[number], self.folder)

    async def roll(self, **changes: str) -> None:
        """Restart one replica after another with these settings."""
        async with self.undisturbed:
            for number, settings in enumerate(self.settings):
                settings.update(changes)
                await self.restart(number, signal.SIGTERM)

    async def add_keys(self) -> dict[str, str]:
        """Give both rings a new last key, in two rolls as operations.md says; returns the rings without the old one."""
        new = {name: f"new:{b64encode(secrets.token_bytes(KEY_BYTES)).decode()}" for name in _RINGS}
        old = {name: self.settings[0][name] for name in _RINGS}
        await self.roll(**{name: f"{new[name]},{old[name]}" for name in _RINGS})
        await self.roll(**{name: f"{old[name]},{new[name]}" for name in _RINGS})
        return new

    async def run(self, command: str) -> tuple[int, str]:
        """Run a command beside the replicas; returns its exit code and output."""
        process = Process(command, self.settings[0], output=self.folder / f"{command}.log")
        while not process.has_ended:  # noqa: ASYNC110 - an audit of many sends takes longer than `until` waits
            await asyncio.sleep(0.1)
        return await process.wait_for_exit(), process.output

    async def swap_certificates(self) -> None:
        """Renew the server's certificate in place."""
        await asyncio.to_thread(write_tls, self.folder, _SERVERS, clients=_CLIENTS)

    async def rotate_token_keys(self) -> None:
        """Publish a new key beside the old one, sign with it, and remove the old one."""
        old, self.key_number = f"key-{self.key_number}", self.key_number + 1
        new = f"key-{self.key_number}"
        self.issuer.publish(old, new)
        await asyncio.sleep(_RELOAD_SECONDS)
        self.token = self.issuer.token(new, "*")
        await asyncio.sleep(_RELOAD_SECONDS)  # calls in flight have the old one
        self.issuer.publish(new)

    async def fail_over(self) -> None:
        """Let the host that serves fall silent; a little later the other one takes its place."""
        await self.hosts.fail_over(promotion_seconds=_PROMOTION_SECONDS)

    async def freeze(self, seconds: float) -> None:
        """Stop the first replica for some seconds."""
        self.processes[0].signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        self.processes[0].signal(signal.SIGCONT)

    async def end_connections(self) -> None:
        """End the replicas' sessions, as an administrator does."""
        await self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

    async def execute(self, query: str, *parameters: object) -> list[tuple[float, ...]]:
        """The rows of a query at PostgreSQL itself."""
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            return await (await connection.execute(query.encode(), parameters)).fetchall()

    def memory(self) -> list[float]:
        """The resident memory of each replica, in MB."""
        page = os.sysconf("SC_PAGE_SIZE") / 1e6
        return [page * int(Path(f"/proc/{each.pid}/statm").read_text().split()[1]) for each in self.processes]

    def files(self) -> list[int]:
        """The open files and sockets of each replica."""
        return [len(list(Path(f"/proc/{each.pid}/fd").iterdir())) for each in self.processes]


@asynccontextmanager
async def open_site(url: str, folder: Path, *, seed: int) -> AsyncIterator[tuple[Site, grpc.aio.Channel]]:
    """Run the site on a migrated database, and open a channel that balances calls over both replicas."""
    async with AsyncExitStack() as stack:
        stripe = await start_stripe_sandbox()
        stack.push_async_callback(stripe.close)
        relay = await stack.enter_async_context(Relay())
        hosts = await stack.enter_async_context(open_hosts(url))
        files = write_tls(folder, _SERVERS, clients=_CLIENTS)
        issuer = Issuer(folder / "jwks.json")
        issuer.publish("key-0")
        common = server_settings(
            development_key(folder),
            database_url=make_conninfo(url, host="127.0.0.1,127.0.0.1", port=",".join(hosts.ports)),
            stripe_url=stripe.url,
            relay_port=relay.port,
        ) | {
            "PULSA_LOG_LEVEL": "info",
            "PULSA_DATABASE_CONNECTIONS": "8",
            "PULSA_TOKEN_KEYS": str(issuer.file),
            "PULSA_TLS_CERTIFICATE": str(files.certificate_chain),
            "PULSA_TLS_KEY": str(files.private_key),
            "PULSA_TLS_CLIENT_CA": str(files.client_authorities),
        }
        site = Site(
            folder,
            url,
            [dict(common), dict(common)],
            relay,
            issuer,
            hosts,
            random.Random(seed),  # noqa: S311 - for a repeatable draw
            token=issuer.token("key-0", "*"),
        )
        try:
            await site.start()
            credentials = grpc.ssl_channel_credentials(_SERVERS.certificate, *_CLIENTS.issue("client"))
            both = f"ipv4:{','.join(each['PULSA_LISTEN'] for each in site.settings)}"
            async with grpc.aio.secure_channel(both, credentials, options=_OPTIONS) as channel:
                yield site, channel
        finally:
            for process in site.processes:
                await process.kill()
