"""The events of sends, outcomes and guesses: one for each change, in the transaction that makes it."""

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest

from server.errors import AccountBusy, TooManySends, WrongCode
from server.events.log import EventSwitches, disable_events, enable_events
from server.otps import expiry
from server.otps.admission import SendLimits
from server.otps.expiry import tell_expired
from server.otps.otp import DeliveryStatus
from server.postgres.pool import Pool, acquire
from server.providers.provider import OutcomeKind
from tests.integration.otps.backends import open_as_owner
from tests.integration.otps.replica import ManualClock, Replica, fund, wrong

Told = list[tuple[str, dict[str, Any]]]


@pytest.fixture
async def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def told_replica(pool: Pool, clock: ManualClock) -> Replica:
    """A replica of which acme has events."""
    switches = EventSwitches(pool)
    await enable_events(pool, "acme", now=clock())
    await switches.refresh(clock())
    return Replica(pool, clock=clock, switches=switches)


async def told(pool: Pool, organization_id: str = "acme") -> Told:
    """Kind and details of an organization's events, in order."""
    query = "SELECT kind, details FROM events WHERE organization_id = %s ORDER BY number"
    async with acquire(pool) as connection:
        return [(row[0], row[1]) for row in await (await connection.execute(query, [organization_id])).fetchall()]


async def told_until(pool: Pool) -> set[datetime]:
    """Until when the streams have told what expired."""
    async with acquire(pool) as connection:
        rows = await connection.execute("SELECT DISTINCT expired_until FROM event_streams")
        return {row[0] for row in await rows.fetchall()}


async def test_each_outcome_of_a_delivery_is_told_once(told_replica: Replica) -> None:
    await fund(told_replica.pool, 10)
    sent, failed = await told_replica.send(), await told_replica.send()
    for _ in range(2):
        await told_replica.record_outcome(sent, OutcomeKind.ACCEPTED)
        await told_replica.record_outcome(failed, OutcomeKind.REJECTED_DESTINATION)

    changes = [details for kind, details in await told(told_replica.pool) if kind == "DELIVERY_CHANGED"]
    assert [(each["delivery_id"], each["status"], each["refunded"]) for each in changes] == [
        (str(sent.delivery.delivery_id), DeliveryStatus.SENT, False),
        (str(failed.delivery.delivery_id), DeliveryStatus.FAILED, True),
    ]
    assert {each["otp_id"] for each in changes} == {str(each.record.otp.otp_id) for each in (sent, failed)}


async def test_the_end_of_an_otp_is_told_once(told_replica: Replica, clock: ManualClock) -> None:
    pool, switches = told_replica.pool, told_replica.switches
    assert switches is not None
    await fund(pool, 10)
    otps = [(await told_replica.send(max_attempts=1)).record.otp for _ in range(4)]
    verified, exhausted, expired, later = otps
    await told_replica.verify(verified)
    with pytest.raises(WrongCode):
        await told_replica.verify(exhausted, wrong(exhausted))
    clock.advance(minutes=1)
    second = (await told_replica.send(ttl=timedelta(minutes=10))).record.otp
    clock.advance(minutes=4, seconds=2)
    assert await tell_expired(pool, switches, now=clock()) == 0  # a guess of before the end may still be decided
    clock.advance(seconds=4)
    assert await tell_expired(pool, switches, now=clock()) == 2
    clock.advance(minutes=6)
    assert await tell_expired(pool, switches, now=clock()) == 1
    assert await tell_expired(pool, switches, now=clock()) == 0

    ended = [(details["otp_id"], details["status"]) for kind, details in await told(pool) if kind == "OTP_ENDED"]
    assert ended[:2] == [(str(verified.otp_id), "VERIFIED"), (str(exhausted.otp_id), "ATTEMPTS_EXHAUSTED")]
    assert sorted(ended[2:4]) == sorted((str(otp.otp_id), "EXPIRED") for otp in (expired, later))
    assert ended[4:] == [(str(second.otp_id), "EXPIRED")]


async def test_an_organization_in_which_nothing_expires_costs_no_statement_of_its_own(
    told_replica: Replica, clock: ManualClock
) -> None:
    pool, switches = told_replica.pool, told_replica.switches
    assert switches is not None
    await fund(pool, 10)
    otp = (await told_replica.send()).record.otp
    clock.advance(minutes=4, seconds=50)
    await tell_expired(pool, switches, now=clock())
    clock.advance(seconds=15)

    async def used_connections() -> int:
        before = pool.get_stats()["requests_num"]
        assert await tell_expired(pool, switches, now=clock()) == 1
        return pool.get_stats()["requests_num"] - before

    alone = await used_connections()
    for number in range(300):
        await enable_events(pool, f"quiet-{number}", now=clock())
    clock.advance(minutes=1)
    other = (await told_replica.send(ttl=timedelta(seconds=30))).record.otp
    clock.advance(seconds=36)
    among_others = await used_connections()

    assert (alone, among_others) == (3, 3)
    ended = [details["otp_id"] for kind, details in await told(pool) if kind == "OTP_ENDED"]
    assert ended == [str(otp.otp_id), str(other.otp_id)]


@pytest.mark.plain_postgres
async def test_organizations_in_which_nothing_expires_are_advanced_together_now_and_then(
    told_replica: Replica, clock: ManualClock
) -> None:
    pool, switches = told_replica.pool, told_replica.switches
    assert switches is not None
    for number in range(150):
        await enable_events(pool, f"quiet-{number}", now=clock())

    async def used_connections(**later: float) -> int:
        clock.advance(**later)
        before = pool.get_stats()["requests_num"]
        assert await tell_expired(pool, switches, now=clock()) == 0
        return pool.get_stats()["requests_num"] - before

    assert [await used_connections(seconds=15) for _ in range(8)] == [2] * 8
    assert [await used_connections(seconds=15) for _ in range(2)] == [3, 2]
    assert await told_until(pool) == {clock.now - timedelta(seconds=20)}


async def test_what_expired_is_told_by_one_of_many_replicas_in_steps(
    told_replica: Replica, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.otps.expiry._MOST_FOUND", 7)
    monkeypatch.setattr("server.otps.expiry._MOST_WRITTEN", 2)
    pool, switches = told_replica.pool, told_replica.switches
    assert switches is not None
    organization_ids = ["acme", "other"]
    await enable_events(pool, "other", now=clock())
    await switches.refresh(clock())
    expire_times: dict[str, dict[str, datetime]] = {own: {} for own in organization_ids}
    for own in organization_ids:
        await fund(pool, 20, organization_id=own)
    for number in range(15):
        for own in organization_ids:
            otp = (await told_replica.send(organization_id=own)).record.otp
            expire_times[own][str(otp.otp_id)] = otp.expire_time
        clock.advance(milliseconds=100 * (number % 3))
    clock.advance(minutes=6)

    counts = await asyncio.gather(*(tell_expired(pool, switches, now=clock()) for _ in range(4)))

    assert sum(counts) == 30
    for own, of_otp in expire_times.items():
        ended = [details["otp_id"] for kind, details in await told(pool, own) if kind == "OTP_ENDED"]
        assert sorted(ended) == sorted(of_otp)
        assert [of_otp[otp_id] for otp_id in ended] == sorted(of_otp.values())


async def test_what_an_interrupted_replica_has_not_told_another_tells(
    told_replica: Replica, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.otps.expiry._MOST_WRITTEN", 1)
    pool, switches = told_replica.pool, told_replica.switches
    assert switches is not None
    await fund(pool, 10)
    otps = []
    for _ in range(3):
        otps.append((await told_replica.send()).record.otp)
        clock.advance(seconds=1)
    clock.advance(minutes=6)
    async with acquire(pool) as connection, connection.transaction():
        lock = "SELECT FROM otps WHERE organization_id = 'acme' AND otp_id = %s FOR UPDATE"
        await connection.execute(lock, [otps[1].otp_id])
        with pytest.raises(AccountBusy):
            await tell_expired(pool, switches, now=clock())

    assert await tell_expired(pool, switches, now=clock()) == 2
    ended = [details["otp_id"] for kind, details in await told(pool) if kind == "OTP_ENDED"]
    assert ended == [str(otp.otp_id) for otp in otps]


async def test_a_guess_in_progress_may_still_verify_an_otp(told_replica: Replica, clock: ManualClock) -> None:
    pool, switches = told_replica.pool, told_replica.switches
    assert switches is not None
    await fund(pool, 10)
    verified, expired = [(await told_replica.send()).record.otp for _ in range(2)]
    clock.advance(minutes=6)
    guess = (
        "UPDATE otps SET status = 'VERIFIED', verify_time = create_time WHERE organization_id = 'acme' AND otp_id = %s"
    )
    async with acquire(pool) as connection, connection.transaction():
        await connection.execute(guess, [verified.otp_id])
        with pytest.raises(AccountBusy):
            await tell_expired(pool, switches, now=clock())

    assert await tell_expired(pool, switches, now=clock()) == 1
    ended = [details["otp_id"] for kind, details in await told(pool) if kind == "OTP_ENDED"]
    assert ended == [str(expired.otp_id)]


async def test_a_balance_that_becomes_low_or_recovers_is_told(told_replica: Replica) -> None:
    await fund(told_replica.pool, 101, low_balance_threshold=100)
    await told_replica.send()
    await told_replica.send()
    await told_replica.send()
    await fund(told_replica.pool, 10)

    balances = [(kind, details["available_credits"]) for kind, details in await told(told_replica.pool)]
    assert balances == [("BALANCE_RECOVERED", 101), ("BALANCE_LOW", 99), ("BALANCE_RECOVERED", 108)]


async def test_a_limit_of_the_organization_is_told_once_a_minute(pool: Pool, told_replica: Replica) -> None:
    limits = SendLimits(timedelta(), 1, 0, 3)
    replica = Replica(pool, clock=told_replica.clock, switches=told_replica.switches, limits=limits)
    await fund(pool, 100)
    await replica.send("jane@example.com")
    with pytest.raises(TooManySends):  # of the destination
        await replica.send("jane@example.com")
    for _ in range(2):
        await replica.send()
    for _ in range(3):
        with pytest.raises(TooManySends):
            await replica.send()

    assert (await told(pool))[1:] == [("LIMIT_REACHED", {"limit": "organization_minute"})]


async def test_without_events_nothing_is_told_and_no_statement_asks_for_them(
    told_replica: Replica, clock: ManualClock
) -> None:
    pool, switches = told_replica.pool, told_replica.switches
    assert switches is not None
    await disable_events(pool, "acme", now=clock())
    await switches.refresh(clock())
    await fund(pool, 10)
    async with acquire(pool) as connection:
        # A statement that names the table would wait for this lock, and fail.
        await connection.execute("BEGIN; LOCK TABLE event_streams IN ACCESS EXCLUSIVE MODE")
        sent = await told_replica.send()
        await told_replica.record_outcome(sent, OutcomeKind.ACCEPTED)
        await told_replica.verify(sent.record.otp)
        await connection.execute("ROLLBACK")
    assert await told(pool) == []


@pytest.mark.parametrize(("most_found", "most_written"), [(10_000, 200), (3, 2), (2, 1)])
async def test_a_locked_otp_delays_the_events_of_its_own_organization_alone(
    pool: Pool, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, most_found: int, most_written: int
) -> None:
    """Whether or not all fit into one step; afterwards it has told all of them, in their order."""
    monkeypatch.setattr(expiry, "_MOST_FOUND", most_found)
    monkeypatch.setattr(expiry, "_MOST_WRITTEN", most_written)
    switches, names = EventSwitches(pool), ("acme", "b", "c")
    for name in names:
        await enable_events(pool, name, now=clock())
        await fund(pool, 100, organization_id=name)
    await switches.refresh(clock())
    replica = Replica(pool, clock=clock, switches=switches)
    otps: dict[str, list[str]] = {name: [] for name in names}
    locked_id = None
    for _ in range(3):
        for name in names:
            otp = (await replica.send(organization_id=name)).record.otp
            otps[name].append(str(otp.otp_id))
            locked_id = locked_id or otp.otp_id
        clock.advance(seconds=1)
    clock.advance(minutes=6)

    async def ended(name: str) -> list[str]:
        return [details["otp_id"] for kind, details in await told(pool, name) if kind == "OTP_ENDED"]

    async with await open_as_owner(pool) as owner, owner.transaction():
        lock = "SELECT FROM otps WHERE organization_id = 'acme' AND otp_id = %s FOR UPDATE"
        await owner.execute(lock, [locked_id])
        for _ in range(2):
            with pytest.raises(AccountBusy):
                await tell_expired(pool, switches, now=clock())
            assert {name: await ended(name) for name in names} == otps | {"acme": []}
            clock.advance(minutes=3)  # then acme's stream is behind
    await tell_expired(pool, switches, now=clock())
    assert {name: await ended(name) for name in names} == otps
