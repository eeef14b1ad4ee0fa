"""A channel with several providers: the next one is asked only when the one before surely sent nothing."""

from collections.abc import Sequence

from server.channels.channel import Channel, Message, Outcome, OutcomeKind

_ASK_THE_NEXT = frozenset({OutcomeKind.NOT_SENT, OutcomeKind.REJECTED_CONFIGURATION})


class Route:
    """Providers of one channel in order of preference.

    A delivery may take as long as all of them together. Never two messages: after ACCEPTED and UNKNOWN no other is
    asked, nor after REJECTED_DESTINATION, which the next would only repeat.
    """

    def __init__(self, channels: Sequence[Channel]) -> None:
        """At least one channel. Raises ValueError for none."""
        if not channels:
            raise ValueError("a route needs a provider")
        self._channels = tuple(channels)
        self.provider = "+".join(channel.provider for channel in channels)

    async def deliver(self, message: Message) -> Outcome:
        """The first outcome that settles the delivery; when none does, the one that a retry may help soonest."""
        refusals = []
        for channel in self._channels:
            outcome = await channel.deliver(message)
            if outcome.kind not in _ASK_THE_NEXT:
                return outcome
            refusals.append(outcome)
        transient = [outcome for outcome in refusals if outcome.kind is OutcomeKind.NOT_SENT]
        return min(transient, key=lambda outcome: outcome.retry_after_seconds or 0.0) if transient else refusals[0]

    async def close(self) -> None:
        """Close every provider."""
        for channel in self._channels:
            await channel.close()
