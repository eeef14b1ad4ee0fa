"""Takes accepted deliveries to their channels, outside of any transaction."""

import asyncio
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from datetime import timedelta

import structlog

from server.channels.channel import Channel, ChannelName, Outcome, OutcomeKind
from server.clock import Clock, utc_now
from server.errors import DatabaseUnavailable
from server.logs import trace_of
from server.otps.errands import Errand
from server.otps.otp import OtpStatus
from server.otps.outcomes import Outcomes
from server.otps.settlement import Report
from server.otps.vault import Vault

_log = structlog.get_logger(__name__)


class Dispatcher:
    """Carries errands with bounded concurrency. What does not fit into its queue stays in the outbox.

    Whatever happens here, the outbox row is only removed together with the outcome: an errand that is dropped, or
    that dies with the process, is taken up by the night watch once its lease has run out.

    A carrier does not wait until an outcome is stored, only for its provider; an errand keeps its place until then, so
    that no more than `concurrency` messages can ever go out again. Carriers and the recorder live while there is work.
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
        self._queue = queue
        self._fresh_for = fresh_for
        self._clock = clock
        self._places = concurrency
        self._many = concurrency / 2  # outcomes that no longer linger; the other places carry on meanwhile
        self._waiting: deque[Errand] = deque()
        self._reports: list[Report] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._carrier_comes = False
        self._recorder_is_here = False

    def hand_over(self, errands: Sequence[Errand]) -> int:
        """Take as many errands as fit, in order, and say how many."""
        taken = errands[: self.room]
        self._waiting.extend(taken)
        self._call_carrier()
        return len(taken)

    @property
    def room(self) -> int:
        """How many more errands fit."""
        return max(0, self._queue - len(self._waiting))

    async def idle(self) -> None:
        """Return once everything that was handed over is done with."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def drain(self, timeout_seconds: float) -> None:
        """Finish what was handed over, within the time; leave the rest to the night watch of another replica."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self.idle()
        except TimeoutError:
            _log.warning("deliveries left to the night watch", count=len(self._waiting))
        self._queue = 0
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _call_carrier(self) -> None:
        """One at a time: it calls the next one. With channels that answer at once, a single one carries everything."""
        if self._waiting and self._places and not self._carrier_comes:
            self._carrier_comes = True
            self._start(self._carry())

    async def _carry(self) -> None:
        self._carrier_comes = False
        while self._waiting and self._places:
            errand = self._waiting.popleft()
            self._places -= 1
            self._call_carrier()
            report = await self._report(errand)
            if report is None:
                self._places += 1
                continue
            self._reports.append(report)
            if not self._recorder_is_here:
                self._recorder_is_here = True
                self._start(self._record())

    async def _report(self, errand: Errand) -> Report | None:
        """What became of the errand; None when it is left to whoever has taken it over, or to the night watch."""
        try:
            if self._clock() - errand.read_time >= self._fresh_for:
                renewed = await self._outcomes.renew(errand)
                if renewed is None:
                    return None
                errand = renewed
            return Report(errand, await self._deliver(errand))
        except DatabaseUnavailable:
            _log.warning("a delivery was left to the night watch: no database")
        except Exception as error:  # noqa: BLE001 - a carrier outlives any errand; the outbox keeps what it carried
            _log.error("an errand failed", trace=trace_of(error))
        return None

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

    async def _record(self) -> None:
        """Store outcomes, many at once, as long as there are any; their errands give their places back."""
        while self._reports:
            if len(self._reports) < self._many:
                await asyncio.sleep(self._outcomes.linger_seconds)
            reports, self._reports = self._reports, []
            for batch in self._outcomes.batches(reports):
                fallbacks = await self._store(batch)
                self._places += len(batch)
                self.hand_over(fallbacks)
        self._recorder_is_here = False

    async def _store(self, reports: Sequence[Report]) -> Sequence[Errand]:
        """Store outcomes, however long the database is away: without them the messages would go out again."""
        while True:
            try:
                return await self._outcomes.record(reports)
            except DatabaseUnavailable as error:
                _log.warning("outcomes wait for the database", count=len(reports))
                await asyncio.sleep(error.retry_after_seconds)
            except Exception as error:  # noqa: BLE001 - the recorder outlives any outcome; the outbox keeps its errand
                _log.error("outcomes were not stored", count=len(reports), trace=trace_of(error))
                return []


def _refusal(kind: OutcomeKind, failure_reason: str) -> Outcome:
    """An outcome of ours: no provider was asked."""
    return Outcome(kind, provider="", failure_reason=failure_reason)
