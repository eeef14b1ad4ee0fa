"""The provider vonage: SMS by Vonage's SMS API, https://developer.vonage.com/en/api/sms."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from server.clock import Clock
from server.providers.http import HttpClient, NoReply, Reply, message_id, verdict_of_status
from server.providers.provider import Message, Outcome, OutcomeKind, Subject, Verdict, verdicts
from server.providers.sms_segments import Encoding, segments
from server.providers.templates import Templates

_SOURCE = "https://developer.vonage.com/en/messaging/sms/guides/troubleshooting-sms"
_ACCEPTED = "0"
VERDICTS: Mapping[str, Verdict] = {
    **verdicts(OutcomeKind.NOT_SENT, Subject.ACCOUNT, 1, 10, source=_SOURCE),
    **verdicts(OutcomeKind.UNKNOWN, Subject.PROVIDER, 5, source=_SOURCE),
    **verdicts(OutcomeKind.REJECTED_DESTINATION, Subject.DESTINATION, 6, 7, 33, source=_SOURCE),
    # 15: the sender in that country; 3 and 29 may concern one number.
    **verdicts(OutcomeKind.REJECTED_CONFIGURATION, Subject.ROUTE, 3, 15, 29, source=_SOURCE),
    # 9: the operator's balance at Vonage is empty.
    **verdicts(OutcomeKind.REJECTED_CONFIGURATION, Subject.ACCOUNT, 2, 4, 8, 9, source=_SOURCE),
}
"""By `status`: the HTTP status is 200 for errors too."""
OTHER = Verdict(OutcomeKind.REJECTED_CONFIGURATION, Subject.ROUTE, _SOURCE)
"""Of a status that is not listed: each but 0 is a refusal."""
_LONGEST_STATUS = 3
_SHORTEST_TTL_MS = 20_000


@dataclass(frozen=True, slots=True)
class VonageSettings:
    """A Vonage account and its sender."""

    api_key: str
    api_secret: str = field(repr=False)
    sender: str
    """A number without its plus sign, or an alphanumeric sender id."""
    base_url: str = "https://rest.nexmo.com"
    timeout_seconds: float = 10.0


class Vonage:
    """Sends SMS."""

    name = "vonage"

    def __init__(self, settings: VonageSettings, templates: Templates, *, clock: Clock) -> None:
        """Opens no connections."""
        self._settings = settings
        self._templates = templates
        self._clock = clock
        self._http = HttpClient(settings.base_url, timeout_seconds=settings.timeout_seconds)

    async def deliver(self, message: Message) -> Outcome:
        """Submit the message; ACCEPTED means that Vonage accepted it."""
        reply = await self._http.post("/sms/json", form=self._form(message))
        if isinstance(reply, NoReply):
            return Outcome(reply.kind, self.name, failure_reason=reply.failure_reason)
        return self._outcome(reply)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    def _form(self, message: Message) -> dict[str, str]:
        now = self._clock()
        text = self._templates.render(message, now=now).text
        remaining_ms = int((message.expire_time - now).total_seconds() * 1000)
        form = {
            "api_key": self._settings.api_key,
            "api_secret": self._settings.api_secret,
            "from": message.sender_id.removeprefix("+") or self._settings.sender,
            "to": message.destination.removeprefix("+"),
            "text": text,
            "ttl": str(max(remaining_ms, _SHORTEST_TTL_MS)),
            "client-ref": message.reference,
        }
        if segments(text).encoding is Encoding.UCS_2:
            form["type"] = "unicode"
        return form

    def _outcome(self, reply: Reply) -> Outcome:
        """The outcome by the status of the first part: templates fit into one, and a refused message has one entry."""
        parts = (reply.body or {}).get("messages")
        part = parts[0] if isinstance(parts, list) and parts and isinstance(parts[0], dict) else {}
        status = part.get("status")
        if not isinstance(status, str) or not status.isdecimal() or len(status) > _LONGEST_STATUS:
            verdict, reason = verdict_of_status(reply.status), f"vonage_http_{reply.status}"
            return Outcome(verdict.kind, self.name, "", reason, reply.retry_after_seconds, verdict.about)
        provider_id = message_id(part.get("message-id"))
        if status == _ACCEPTED:
            return Outcome(OutcomeKind.ACCEPTED, self.name, provider_id)
        verdict = VERDICTS.get(status, OTHER)
        return Outcome(
            verdict.kind, self.name, provider_id, f"vonage_{status}", reply.retry_after_seconds, verdict.about
        )
