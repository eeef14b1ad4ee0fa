"""EventService: the rpcs of events."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from pulsa.event.v1 import event_service_pb2 as pb

from server.api.converters import event_message
from server.api.interceptor import Call
from server.api.pagination import PageTokens
from server.events.log import disable_events, enable_events
from server.events.streams import EventStreams, Position
from server.postgres.pool import Pool

# ruff: noqa: N802 - a method is named as its rpc

_LAST: Final = 2**127 - 1
_TIME_BITS: Final = 64
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventDependencies:
    """The dependencies of EventService."""

    pool: Pool
    streams: EventStreams


class EventService:
    """pulsa.event.v1.EventService; each rpc is documented there."""

    def __init__(self, dependencies: EventDependencies) -> None:
        self._pool = dependencies.pool
        self._streams = dependencies.streams

    async def WatchEvents(
        self, request: pb.WatchEventsRequest, _: Call
    ) -> AsyncGenerator[pb.WatchEventsResponse, None]:
        """Stream events from the cursor on, until the caller, the server or the token's end ends it."""
        cursors = _cursors(request.organization_id)
        position = _position(cursors.read(request.cursor)) if request.cursor else None
        pages = self._streams.follow(request.organization_id, position, from_oldest=request.from_oldest)
        async with aclosing(pages):
            async for page in pages:
                response = pb.WatchEventsResponse(cursor=cursors.write(_number_of(page.position)))
                response.events.extend(map(event_message, page.events))
                yield response

    async def EnableEvents(self, request: pb.EnableEventsRequest, _: Call) -> pb.EnableEventsResponse:
        """Store the organization's events from now on."""
        await enable_events(self._pool, request.organization_id, now=self._pool.now())
        newest = await self._streams.newest(request.organization_id)
        return pb.EnableEventsResponse(cursor=_cursors(request.organization_id).write(_number_of(newest)))

    async def DisableEvents(self, request: pb.DisableEventsRequest, _: Call) -> pb.DisableEventsResponse:
        """Store no more events of the organization."""
        were_on = await disable_events(self._pool, request.organization_id, now=self._pool.now())
        return pb.DisableEventsResponse(were_on=were_on)


def _cursors(organization_id: str) -> PageTokens:
    return PageTokens("WatchEvents", organization_id, newest=_LAST, field="cursor")


def _number_of(position: Position) -> int:
    microseconds = 0 if position.create_time is None else (position.create_time - _EPOCH) // _MICROSECOND
    return position.number << _TIME_BITS | microseconds


def _position(number: int) -> Position:
    number, microseconds = divmod(number, 1 << _TIME_BITS)
    return Position(number, _EPOCH + microseconds * _MICROSECOND if microseconds else None)
