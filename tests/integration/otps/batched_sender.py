"""A Sender behind a Batcher, as the OTP service has it, without protobuf requests and responses."""

from collections.abc import Sequence

from server.errors import DomainError
from server.otps.admission import Admitted, Replayed, Send
from server.otps.recipients import ResendRequest, SendRequest
from server.otps.send import Accepted, Sender
from server.postgres.batcher import Batcher, Batching
from server.postgres.lanes import Locked


class BatchedSender:
    """Gathers concurrent sends and resends; each batch is prepared, then accepted in one transaction."""

    def __init__(self, sender: Sender, batching: Batching) -> None:
        self._sender = sender
        self._batcher: Batcher[SendRequest | Send, Accepted | Replayed] = Batcher(self._flush, batching)

    @property
    def waiting_count(self) -> int:
        """How many calls wait for the next batch."""
        return sum(len(lane.calls) for lane in self._batcher._lanes.values())

    async def send(self, request: SendRequest) -> Accepted:
        """Send a new OTP. Raises the DomainError that refuses it."""
        return await self._submit(request.organization_id, request)

    async def resend(self, request: ResendRequest) -> Accepted:
        """Send an OTP again. Raises the DomainError that refuses it."""
        return await self._submit(request.organization_id, await self._sender.prepare_resend(request))

    async def _submit(self, organization_id: str, item: SendRequest | Send) -> Accepted:
        answer = await self._batcher.submit(organization_id, item)
        return await self._sender.replay(answer) if isinstance(answer, Replayed) else answer

    async def _flush(
        self, items: Sequence[SendRequest | Send], *, wait: bool
    ) -> list[Accepted | Replayed | Locked | Exception]:
        requests = iter(self._sender.prepare([item for item in items if isinstance(item, SendRequest)]))
        prepared = [next(requests) if isinstance(item, SendRequest) else item for item in items]
        sends = [one for one in prepared if isinstance(one, Send)]
        answers = iter(await self._sender.accept(sends, wait=wait) if sends else ())
        return [_answer(next(answers)) if isinstance(one, Send) else one for one in prepared]


def _answer(decision: Admitted | Replayed | DomainError | Locked) -> Accepted | Replayed | DomainError | Locked:
    if isinstance(decision, Admitted):
        return Accepted(decision.record, decision.delivery, decision.low_balance, replayed=False)
    return decision
