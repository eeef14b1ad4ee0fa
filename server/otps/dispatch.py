"""Takes accepted deliveries to their channels, outside of any transaction."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import structlog

from server.channels.channel import Channel, ChannelName, Message, Outcome, OutcomeKind
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
        self, channels: Mapping[ChannelName, Channel], vault: Vault, outcomes: Outcomes, *, concurrency: int, queue: int
    ) -> None:
        self._channels = channels
        self._vault = vault
        self._outcomes = outcomes
        self._errands: asyncio.Queue[Errand] = asyncio.Queue(maxsize=queue)
        self._carriers = [asyncio.create_task(self._carry()) for _ in range(concurrency)]

    def hand_over(self, errands: Sequence[Errand]) -> int:
        """Take as many errands as fit, in order, and say how many."""
        taken = min(len(errands), self._errands.maxsize - self._errands.qsize())
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
            errand = await self._errands.get()
            try:
                await self._outcomes.record(errand, await self._deliver(errand))
            except DatabaseUnavailable:
                _log.warning("an outcome could not be recorded", delivery_id=str(errand.delivery.delivery_id))
            except Exception:  # noqa: BLE001 - a carrier outlives any errand; the outbox keeps what it carried
                _log.exception("an errand failed", delivery_id=str(errand.delivery.delivery_id))
            finally:
                self._errands.task_done()

    async def _deliver(self, errand: Errand) -> Outcome:
        otp, delivery = errand.otp, errand.delivery
        now = datetime.now(UTC)
        if now >= errand.lease_expire_time:
            # Somebody else may have it by now.
            return Outcome(OutcomeKind.NOT_SENT, provider="", failure_reason="lease_expired")
        if (status := otp.status_at(now)) is not OtpStatus.PENDING:
            return Outcome(OutcomeKind.REJECTED_DESTINATION, provider="", failure_reason=f"otp_{status.lower()}")
        message = Message(
            delivery_id=delivery.delivery_id,
            channel=delivery.channel,
            destination=errand.destination,
            code=self._vault.code_of(otp),
            purpose=otp.purpose,
            locale=otp.locale,
            expire_time=otp.expire_time,
            web_otp_domain=otp.web_otp_domain,
        )
        return await self._channels[delivery.channel].deliver(message)
