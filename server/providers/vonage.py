"""The provider vonage: SMS by Vonage's SMS API, https://developer.vonage.com/en/api/sms."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from server.clock import Clock
from server.providers.http import HttpClient, NoReply, Reply, kind_of_status, message_id
from server.providers.provider import Message, Outcome, OutcomeKind
from server.providers.sms_segments import Encoding, segments
from server.providers.templates import Templates

# https://developer.vonage.com/en/messaging/sms/guides/troubleshooting-sms. Strings, as in the response, which has HTTP
# status 200 for errors too. 9: the operator's balance at Vonage is empty.
_ACCEPTED = "0"
_KINDS: Mapping[str, OutcomeKind] = {
    **dict.fromkeys(("1", "10"), OutcomeKind.NOT_SENT),
    "5": OutcomeKind.UNKNOWN,
    **dict.fromkeys(("6", "7"), OutcomeKind.REJECTED_DESTINATION),
    **dict.fromkeys(("2", "3", "4", "8", "9", "15"), OutcomeKind.REJECTED_CONFIGURATION),
}
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
            "from": self._settings.sender,
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
            kind = kind_of_status(reply.status)
            return Outcome(
                kind,
                self.name,
                failure_reason=f"vonage_http_{reply.status}",
                retry_after_seconds=reply.retry_after_seconds,
            )
        provider_id = message_id(part.get("message-id"))
        if status == _ACCEPTED:
            return Outcome(OutcomeKind.ACCEPTED, self.name, provider_id)
        # Every status but 0 is a refusal. One that is not listed more often concerns the account than the number.
        kind = _KINDS.get(status, OutcomeKind.REJECTED_CONFIGURATION)
        return Outcome(kind, self.name, provider_id, f"vonage_{status}", reply.retry_after_seconds)
