"""The provider twilio: SMS by Twilio's Messages resource, https://www.twilio.com/docs/messaging/api/message-resource."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode

import aiohttp

from server.clock import Clock
from server.providers.http import HttpClient, NoReply, Reply, message_id, verdict_of_status
from server.providers.provider import Message, Outcome, OutcomeKind, Subject, Verdict, verdicts
from server.providers.templates import Templates

_SOURCE = "https://www.twilio.com/docs/api/errors/{code}"
_DESTINATION = (21211, 21265, 21266, 21268, 21610, 21614, 21635, 30005, 30006, 30450)
# Of the sender in that country; 21408 of a country, 21608 of one number, 30007 of a carrier.
_ROUTE = (21408, 21606, 21608, 21612, 21659, 21703, 30007)
VERDICTS: Mapping[str, Verdict] = {
    **verdicts(OutcomeKind.REJECTED_DESTINATION, Subject.DESTINATION, *_DESTINATION, source=_SOURCE),
    **verdicts(OutcomeKind.REJECTED_CONFIGURATION, Subject.ROUTE, *_ROUTE, source=_SOURCE),
    **verdicts(OutcomeKind.REJECTED_CONFIGURATION, Subject.ACCOUNT, 20003, source=_SOURCE),
    **verdicts(OutcomeKind.NOT_SENT, Subject.ACCOUNT, 20429, source=_SOURCE),
}
"""The codes that mean something else than their HTTP status, as Twilio makes new codes of old ones."""
CREATED_AS_FAILED = Verdict(
    OutcomeKind.REJECTED_CONFIGURATION, Subject.ROUTE, "https://www.twilio.com/docs/messaging/api/message-resource"
)
"""Of a code that is not listed, in a message that failed while it was created."""
_CREATED = 201
_LONGEST_VALIDITY_SECONDS = 36000


@dataclass(frozen=True, slots=True)
class TwilioSettings:
    """A Twilio account and its sender."""

    account_sid: str
    auth_token: str = field(repr=False)
    sender: str
    """A number in E.164, an alphanumeric sender id, or a messaging service's SID (`MG…`)."""
    api_key_sid: str = ""
    """The SID of an API key, whose secret `auth_token` is; empty: `auth_token` is the account's."""
    status_callback_url: str = ""
    """Where Twilio posts delivery reports, with the query parameter `reference`; empty: no reports."""
    base_url: str = "https://api.twilio.com"
    timeout_seconds: float = 10.0


class Twilio:
    """Sends SMS. Twilio has no idempotency key, so a lost response is UNKNOWN."""

    name = "twilio"

    def __init__(self, settings: TwilioSettings, templates: Templates, *, clock: Clock) -> None:
        """Opens no connections."""
        self._settings = settings
        self._templates = templates
        self._clock = clock
        authorization = aiohttp.encode_basic_auth(settings.api_key_sid or settings.account_sid, settings.auth_token)
        self._http = HttpClient(
            settings.base_url,
            timeout_seconds=settings.timeout_seconds,
            credentials={"Authorization": authorization},
        )

    async def deliver(self, message: Message) -> Outcome:
        """Create the message at Twilio; ACCEPTED means that Twilio queued it."""
        path = f"/2010-04-01/Accounts/{self._settings.account_sid}/Messages.json"
        reply = await self._http.post(path, form=self._form(message))
        if isinstance(reply, NoReply):
            return Outcome(reply.kind, self.name, failure_reason=reply.failure_reason)
        return self._outcome(reply)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    def _form(self, message: Message) -> dict[str, str]:
        settings = self._settings
        sender = message.sender_id or settings.sender
        is_service = not message.sender_id and sender.startswith("MG")
        now = self._clock()
        remaining = int((message.expire_time - now).total_seconds())
        form = {
            "To": message.destination,
            "MessagingServiceSid" if is_service else "From": sender,
            "Body": self._templates.render(message, now=now).text,
            # By default Twilio retries for ten hours, long after the code has expired.
            "ValidityPeriod": str(min(max(remaining, 1), _LONGEST_VALIDITY_SECONDS)),
        }
        if settings.status_callback_url:
            form["StatusCallback"] = _with_reference(settings.status_callback_url, message.reference)
        return form

    def _outcome(self, reply: Reply) -> Outcome:
        body = reply.body or {}
        sid = message_id(body.get("sid"))
        # An error response has "code"; a message that failed while it was created has "error_code".
        code = next((value for value in (body.get("code"), body.get("error_code")) if isinstance(value, int)), None)
        if reply.status == _CREATED and sid and code is None:
            return Outcome(OutcomeKind.ACCEPTED, self.name, provider_message_id=sid)
        reason = f"twilio_http_{reply.status}" if code is None else f"twilio_{code}"
        default = (
            CREATED_AS_FAILED if reply.status == _CREATED and code is not None else verdict_of_status(reply.status)
        )
        verdict = VERDICTS.get(str(code), default)
        return Outcome(verdict.kind, self.name, sid, reason, reply.retry_after_seconds, verdict.about)


def _with_reference(url: str, reference: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{urlencode({'reference': reference})}"
