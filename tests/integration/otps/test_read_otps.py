"""Reading, listing and canceling OTPs."""

from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from server.clock import utc_now
from server.errors import OtpAlreadyVerified, OtpAttemptsExhausted, OtpCanceled, OtpExpired, OtpNotFound, WrongCode
from server.otps.otp import Otp, OtpRecord, OtpStatus, cancel_otp, list_otps, read_otp
from server.otps.recipients import RawDestination
from server.postgres.pool import Pool, acquire
from server.providers.provider import Channel, OutcomeKind
from tests.integration.otps.replica import ManualClock, Replica, fund, stored, wrong

NEWEST = UUID(int=2**128 - 1)


async def cancel(replica: Replica, otp: Otp) -> OtpRecord:
    async with acquire(replica.pool) as connection:
        return await cancel_otp(connection, otp.organization_id, otp.otp_id, now=replica.clock())


async def page(
    pool: Pool, *, before: UUID = NEWEST, limit: int = 500, organization_id: str = "acme"
) -> list[OtpRecord]:
    async with acquire(pool) as connection:
        return await list_otps(connection, organization_id, before_otp_id=before, limit=limit)


async def test_otps_are_listed_newest_first_page_by_page_with_their_deliveries(replica: Replica) -> None:
    await fund(replica.pool, 20)
    records = [(await replica.send()).record for _ in range(5)]
    records.sort(key=lambda record: record.otp.otp_id, reverse=True)
    records[1] = (await replica.resend(records[1].otp)).record
    assert await page(replica.pool) == records
    assert await page(replica.pool, limit=2) == records[:2]
    assert await page(replica.pool, before=records[1].otp.otp_id, limit=2) == records[2:4]
    assert await page(replica.pool, before=records[-1].otp.otp_id) == []
    assert await page(replica.pool, organization_id="other") == []


async def test_another_organizations_otp_is_not_found(replica: Replica) -> None:
    await fund(replica.pool, 20)
    otp = (await replica.send()).record.otp
    async with acquire(replica.pool) as connection:
        for organization_id, otp_id in (("other", otp.otp_id), ("acme", uuid4())):
            with pytest.raises(OtpNotFound):
                await read_otp(connection, organization_id, otp_id)
            with pytest.raises(OtpNotFound):
                await cancel_otp(connection, organization_id, otp_id, now=utc_now())


async def test_a_canceled_code_stops_working_and_a_repeat_finds_it_canceled(replica: Replica) -> None:
    await fund(replica.pool, 20)
    otp = (await replica.send()).record.otp
    first = await cancel(replica, otp)
    assert first.otp.status is OtpStatus.CANCELED
    assert await cancel(replica, otp) == first == await stored(replica.pool, otp)
    with pytest.raises(OtpCanceled):
        await replica.verify(otp)


async def test_an_otp_that_is_already_closed_cannot_be_canceled(pool: Pool) -> None:
    clock = ManualClock()
    replica = Replica(pool, clock=clock)
    await fund(pool, 20)
    expired = (await replica.send(ttl=timedelta(seconds=30))).record.otp
    verified, exhausted = [(await replica.send(max_attempts=1)).record.otp for _ in range(2)]
    await replica.verify(verified)
    with pytest.raises(WrongCode):
        await replica.verify(exhausted, wrong(exhausted))
    clock.now = expired.expire_time
    for otp, refusal in (
        (expired, OtpExpired),
        (verified, OtpAlreadyVerified),
        (exhausted, OtpAttemptsExhausted),
    ):
        before = await stored(pool, otp)
        with pytest.raises(refusal):
            await cancel(replica, otp)
        assert await stored(pool, otp) == before


async def test_a_verified_otp_names_its_destination_when_the_code_can_have_been_read_at_one_only(
    replica: Replica,
) -> None:
    await fund(replica.pool, 100)
    one, again, several, failed = [await replica.send(f"{name}@example.com") for name in ("ann", "bob", "eve", "joe")]
    elsewhere = RawDestination(Channel.EMAIL, "zoe@example.com", "destination")
    await replica.resend(again.record.otp)
    await replica.resend(several.record.otp, destination=elsewhere)
    await replica.record_outcome(failed, OutcomeKind.REJECTED_DESTINATION)
    await replica.resend(failed.record.otp, destination=elsewhere)
    assert (await stored(replica.pool, one.record.otp)).verified_destination == ""
    sends = [one, again, several, failed]
    for send in sends:
        await replica.verify(send.record.otp)

    found = [(await stored(replica.pool, send.record.otp)).verified_destination for send in sends]

    assert found == ["a***@example.com", "b***@example.com", "", "z***@example.com"]
