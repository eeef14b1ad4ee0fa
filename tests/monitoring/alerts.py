"""Each alert fires by its cause, and ends by the cure of its page in docs/runbooks.md: `make test-alerts`."""

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import phonenumbers
import psycopg
import pytest
from pulsa.errors import PulsaError

from server.sandbox.relay import DROP
from tests.database_clock import steppable_clock
from tests.fault_proxy import Fault, FaultProxy, proxy_to
from tests.faults.process_deployment import ProcessDeployment, deployed_processes, start_sidecar
from tests.faults.processes import CHECKOUT, Process, free_ports
from tests.monitoring.prometheus import RULES, Prometheus, prometheus
from tests.waiting import until

MANY = 10_000


@dataclass
class Site:
    """A watched deployment whose database can be cut off."""

    deployment: ProcessDeployment
    prometheus: Prometheus
    database: FaultProxy
    url: str
    """Of the database, past the proxy."""

    @asynccontextmanager
    async def load(self, call: Callable[[], Awaitable[object]], *, callers: int = 4) -> AsyncIterator[None]:
        """Let callers call again and again, whatever the answers."""

        async def keep_calling() -> None:
            while True:
                with suppress(PulsaError):
                    await call()
                await asyncio.sleep(0.05)

        tasks = [asyncio.create_task(keep_calling()) for _ in range(callers)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def balance(self) -> None:
        """Ask for a balance."""
        await self.deployment.balance()

    async def send(self) -> None:
        """Send a mail to a new address."""
        await self.deployment.send(email=f"{uuid4()}@mail.example")

    async def run(self, command: str) -> str:
        """Run a command of `python -m server` to its end; returns its output."""
        process = Process(command, self.deployment.settings, output=self.deployment.folder / f"{uuid4()}.log")
        assert await process.wait_for_exit() == 0, process.output
        return process.output

    def execute(self, query: str) -> list[tuple[Any, ...]]:
        """Run a statement as the schema's owner."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(query.encode())
            return cursor.fetchall() if cursor.description else []

    async def stripe(self, method: str, path: str, **body: Any) -> Any:
        """Call the control API of the stand-in for Stripe."""
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, f"{self.deployment.stripe.url}/_control/{path}", json=body) as answer,
        ):
            assert answer.ok, await answer.text()
            return await answer.json()

    async def pay(self) -> str:
        """Pay the only invoice; returns its id."""
        (invoice,) = (await self.stripe("GET", "invoices"))["invoices"]
        await self.stripe("POST", f"invoices/{invoice['id']}/pay")
        return str(invoice["id"])


@asynccontextmanager
async def watched(database_url: str, folder: Path, **changes: str) -> AsyncIterator[Site]:
    """A server, a sidecar and Prometheus, without an alert at first. `changes` are settings by name."""
    metrics = f"127.0.0.1:{free_ports(1)[0]}"
    async with AsyncExitStack() as stack:
        proxy, url = await stack.enter_async_context(proxy_to(database_url))
        settings = {"PULSA_METRICS_LISTEN": metrics, "PULSA_LOG_LEVEL": "info"} | changes
        deployment = await stack.enter_async_context(deployed_processes(url, folder, **settings))
        await start_sidecar(deployment)
        await deployment.grant(1_000_000)
        watching = await stack.enter_async_context(prometheus(folder, metrics))
        await watching.until_scraped()
        yield Site(deployment, watching, proxy, database_url)


@pytest.fixture
async def site(database_url: str, tmp_path: Path) -> AsyncIterator[Site]:
    async with watched(database_url, tmp_path) as site:
        yield site


def test_promtool_accepts_the_rules() -> None:
    promtool = shutil.which("promtool")
    assert promtool, "Debian's prometheus is needed: apt install prometheus"

    checked = subprocess.run([promtool, "check", "rules", RULES], capture_output=True, text=True, check=False)  # noqa: S603

    assert checked.returncode == 0, checked.stdout + checked.stderr


async def test_an_outage_of_the_database_fails_calls_until_it_ends(site: Site) -> None:
    alerts = ("PulsaDatabaseUnavailable", "PulsaCallsFail", "PulsaCallsFailSlowly")
    async with site.load(site.balance):
        site.database.set(Fault.REFUSE)
        await site.prometheus.until_firing(*alerts)
        site.database.set(Fault.NONE)
        await site.prometheus.until_ended(*alerts)


async def test_a_slow_way_to_the_database_makes_calls_slow_until_it_is_fast_again(site: Site) -> None:
    alerts = ("PulsaCallsAreSlow", "PulsaCallsAreSlowForLong")
    async with site.load(site.balance):
        site.database.delay_seconds = 0.4
        await site.prometheus.until_firing(*alerts)
        site.database.delay_seconds = 0.0
        await site.prometheus.until_ended(*alerts)


async def test_a_dead_replica_is_down_until_it_is_started(site: Site) -> None:
    await site.deployment.kill("serve")
    await site.prometheus.until_firing("PulsaDown")
    await site.deployment.start("serve")
    await site.prometheus.until_ended("PulsaDown")


async def test_more_calls_than_places_are_an_overload_until_the_limit_is_raised(
    database_url: str, tmp_path: Path
) -> None:
    async with watched(database_url, tmp_path, PULSA_LIMIT_CALLS_AT_ONCE="8") as site:
        site.database.delay_seconds = 0.05
        async with site.load(site.balance, callers=64):
            await site.prometheus.until_firing("PulsaOverloaded")
            await site.deployment.kill("serve")
            site.deployment.settings["PULSA_LIMIT_CALLS_AT_ONCE"] = "512"
            await site.deployment.start("serve")
            await site.prometheus.until_ended("PulsaOverloaded")


async def test_rights_that_were_taken_are_incidents_until_migrate_grants_them(site: Site) -> None:
    async def usage() -> None:
        await site.deployment.call("GetUsage", start_date="2026-11-01", end_date="2026-11-02")

    async with site.load(usage):
        site.execute("REVOKE ALL ON daily_usage FROM pulsa_application")
        await site.prometheus.until_firing("PulsaIncident")
        await site.run("migrate")
        await site.prometheus.until_ended("PulsaIncident")


async def test_a_wrong_clock_is_skew_until_it_is_set(database_url: str, tmp_path: Path) -> None:
    with steppable_clock(database_url) as (url, set_ahead):
        async with watched(url, tmp_path) as site:
            set_ahead(5)
            await site.prometheus.until_firing("PulsaClockSkew")
            set_ahead(0)
            await site.prometheus.until_ended("PulsaClockSkew")


async def test_a_broken_file_of_token_keys_is_stale_until_it_is_mended(site: Site) -> None:
    file = site.deployment.key.public_key_file
    good = await asyncio.to_thread(file.read_text)
    await asyncio.to_thread(file.write_text, "-----BEGIN")
    await site.prometheus.until_firing("PulsaTokenKeysStale")
    await asyncio.to_thread(file.write_text, good)
    await site.prometheus.until_ended("PulsaTokenKeysStale")


async def test_an_old_library_has_old_number_ranges_until_it_is_updated(site: Site, tmp_path: Path) -> None:
    old = tmp_path / "old" / "phonenumbers"
    shutil.copytree(Path(phonenumbers.__file__).parent, old)
    library = old / "__init__.py"
    library.write_text(re.sub(r'__version__ = "[^"]+"', '__version__ = "9.0.0"', library.read_text()))
    os.utime(library, (1_700_000_000, 1_700_000_000))
    paths = [str(old.parent), str(CHECKOUT), str(CHECKOUT / "clients" / "python")]

    await site.deployment.kill("serve")
    site.deployment.settings["PYTHONPATH"] = os.pathsep.join(paths)
    await site.deployment.start("serve")
    await site.prometheus.until_firing("PulsaNumberRangesOld")
    await site.deployment.kill("serve")
    del site.deployment.settings["PYTHONPATH"]
    await site.deployment.start("serve")
    await site.prometheus.until_ended("PulsaNumberRangesOld")


async def test_a_lock_makes_jobs_late_until_its_transaction_is_ended(site: Site) -> None:
    async with await psycopg.AsyncConnection.connect(site.url) as holder:
        await holder.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")
        await site.prometheus.until_firing("PulsaJobLate")
        (page,) = re.findall(r"```sql\n(SELECT pid.*?)```", (RULES.parents[1] / "runbooks.md").read_text(), re.DOTALL)
        await until(lambda: {row[0] for row in site.execute(page)} == {holder.info.backend_pid})
        site.execute(f"SELECT pg_terminate_backend({holder.info.backend_pid})")
        await site.prometheus.until_ended("PulsaJobLate")
        with suppress(psycopg.OperationalError):
            await holder.rollback()


async def test_maintenance_that_fails_is_late_until_stripe_answers(site: Site) -> None:
    due = "UPDATE job_leases SET last_success_time = now() - interval '2 hours', expire_time = '-infinity'"
    job = "SELECT 1 FROM job_leases WHERE job = 'undelivered stripe events' AND last_success_time IS NOT NULL"
    await until(lambda: site.execute(job))
    await site.stripe("POST", "faults", match={"path": "/v1/events*"}, fault="server_error", times=0)
    site.execute(f"{due} WHERE job = 'undelivered stripe events'")
    await site.prometheus.until_firing("PulsaMaintenanceLate")
    await site.stripe("DELETE", "faults")
    await site.prometheus.until_ended("PulsaMaintenanceLate")


async def test_a_full_relay_fails_messages_until_it_takes_them(site: Site) -> None:
    async with site.load(site.send):
        site.deployment.relay.maximum_connections = 0
        await site.prometheus.until_firing("PulsaProviderFails")
        site.deployment.relay.maximum_connections = MANY
        await site.prometheus.until_ended("PulsaProviderFails")


async def test_a_relay_that_wants_a_password_refuses_us_until_it_does_not(database_url: str, tmp_path: Path) -> None:
    async with watched(database_url, tmp_path, PULSA_CHANNEL_COOLDOWN_SECONDS="1") as site, site.load(site.send):
        site.deployment.relay.play("MAIL", *["530 5.7.0 authentication required"] * 8)
        await site.prometheus.until_firing("PulsaProviderRefusesUs")
        await until(lambda: site.deployment.relay.has_played("MAIL"))
        await site.prometheus.until_ended("PulsaProviderRefusesUs")


async def test_answers_that_are_lost_are_unknown_until_they_arrive(database_url: str, tmp_path: Path) -> None:
    async with watched(database_url, tmp_path, PULSA_CHANNEL_COOLDOWN_SECONDS="1") as site, site.load(site.send):
        site.deployment.relay.play("CONTENT", *[DROP] * 8)
        await site.prometheus.until_firing("PulsaOutcomesUnknown")
        await until(lambda: site.deployment.relay.has_played("CONTENT"))
        await site.prometheus.until_ended("PulsaOutcomesUnknown")


async def test_a_refund_waits_for_a_person_until_it_is_resolved(site: Site) -> None:
    top_up = await site.deployment.order()
    invoice = await site.pay()
    await until(lambda: site.execute("SELECT 1 FROM top_ups WHERE status = 'PAID'"))
    await site.stripe("POST", f"invoices/{invoice}/refund")
    await site.prometheus.until_firing("PulsaTopUpsWaitForAPerson")
    await site.run(f"resolve-top-up acme {top_up.top_up_id} --credits 0 --by olga --reason refunded")
    await site.prometheus.until_ended("PulsaTopUpsWaitForAPerson")


async def test_an_event_that_was_given_up_is_dead_until_it_is_replayed(site: Site) -> None:
    await site.deployment.order()
    await site.stripe("POST", "faults", match={"method": "GET", "path": "/v1/invoices*"}, fault="server_error", times=0)
    await site.pay()
    # Its tries take half a day: as if all but the last were over.
    waiting = (
        "UPDATE stripe_events SET attempts = 16, next_attempt_time = now() WHERE type = 'invoice.paid' RETURNING 1"
    )
    await until(lambda: site.execute(waiting))
    await site.prometheus.until_firing("PulsaStripeEventsDead")
    await site.stripe("DELETE", "faults")
    for (event_id,) in site.execute("SELECT event_id FROM stripe_events WHERE status = 'DEAD'"):
        await site.run(f"reconcile --event {event_id}")
    await site.prometheus.until_ended("PulsaStripeEventsDead")


async def test_events_of_another_account_are_rejected_until_none_comes(site: Site) -> None:
    change = {"set": {"account": "acct_other"}}
    await site.stripe("POST", "faults", match={"event": "invoice.paid"}, fault="change_event", times=1, **change)
    await site.deployment.order()
    await site.pay()
    await site.prometheus.until_firing("PulsaStripeEventsRejected")
    await site.prometheus.until_ended("PulsaStripeEventsRejected")
