"""Takes accepted deliveries to their channels, outside of any transaction."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta

import structlog

from server.channels.channel import Channel, ChannelName, Outcome, OutcomeKind
from server.clock import Clock, utc_now
from server.errors import DatabaseUnavailable
from server.otps.errands import Errand
from server.otps.otp import OtpStatus
from server.otps.outcomes import Outcomes
from server.otps.vault import Vault

_log = structlog.get_logger(__name__)


class Dispatcher:
    """Carries errands with bounded concurrency. What does not fit into its queue stays in the outbox.

    Whatever happens here, the outbox row is only removed together with the outcome: an errand that is dropped, or
    that dies with the process, is taken up by the night watch once its lease has run out.
    """

    def __init__(
        self,
        channels: Mapping[ChannelName, Channel],
        vault: Vault,
        outcomes: Outcomes,
        *,
        concurrency: int,
        queue: int,
        fresh_for: timedelta = timedelta(seconds=1),
        clock: Clock = utc_now,
    ) -> None:
        """An errand that waited for `fresh_for`, less than any lease, is looked up again before it is sent."""
        self._channels = channels
        self._vault = vault
        self._outcomes = outcomes
        self._fresh_for = fresh_for
        self._clock = clock
        self._errands: asyncio.Queue[Errand] = asyncio.Queue(maxsize=queue)
        self._carriers = [asyncio.create_task(self._carry()) for _ in range(concurrency)]

    def hand_over(self, errands: Sequence[Errand]) -> int:
        """Take as many errands as fit, in order, and say how many."""
        taken = min(len(errands), self.room)
        for errand in errands[:taken]:
            self._errands.put_nowait(errand)
        return taken

    @property
    def room(self) -> int:
        """How many more errands fit."""
        return self._errands.maxsize - self._errands.qsize()

    async def drain(self, timeout_seconds: float) -> None:
        """Finish what was handed over, within the time; leave the rest to the night watch of another replica."""
        try:
            await asyncio.wait_for(self._errands.join(), timeout_seconds)
        except TimeoutError:
            _log.warning("deliveries left to the night watch", count=self._errands.qsize())
        for carrier in self._carriers:
            carrier.cancel()
        await asyncio.gather(*self._carriers, return_exceptions=True)

    async def _carry(self) -> None:
        while True:
            errand: Errand | None = await self._errands.get()
            try:
                if errand is not None and self._clock() - errand.read_time >= self._fresh_for:
                    errand = await self._outcomes.renew(errand)
                if errand is not None and (fallback := await self._record(errand, await self._deliver(errand))):
                    self.hand_over([fallback])
            except DatabaseUnavailable:
                _log.warning("a delivery was left to the night watch: no database")
            except Exception:  # noqa: BLE001 - a carrier outlives any errand; the outbox keeps what it carried
                _log.exception("an errand failed")
            finally:
                self._errands.task_done()

    async def _record(self, errand: Errand, outcome: Outcome) -> Errand | None:
        """Store the outcome, however long the database is away: without it the message would go out again."""
        while True:
            try:
                return await self._outcomes.record(errand, outcome)
            except DatabaseUnavailable as error:
                _log.warning("an outcome waits for the database", delivery_id=str(errand.delivery.delivery_id))
                await asyncio.sleep(error.retry_after_seconds)

    async def _deliver(self, errand: Errand) -> Outcome:
        otp, delivery = errand.otp, errand.delivery
        if (status := otp.status_at(self._clock())) is not OtpStatus.PENDING:
            return _refusal(OutcomeKind.REJECTED_DESTINATION, f"otp_{status.lower()}")
        channel = self._channels.get(delivery.channel)
        if channel is None:
            return _refusal(OutcomeKind.REJECTED_CONFIGURATION, "channel_not_configured")
        try:
            code = self._vault.code_of(otp)
        except KeyError:
            code = ""
        if not code or not errand.destination:
            return _refusal(OutcomeKind.REJECTED_CONFIGURATION, "key_missing")
        return await channel.deliver(errand.message(code))


def _refusal(kind: OutcomeKind, failure_reason: str) -> Outcome:
    """An outcome of ours: no provider was asked."""
    return Outcome(kind, provider="", failure_reason=failure_reason)
