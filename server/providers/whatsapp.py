"""The provider whatsapp: WhatsApp by Meta's Cloud API, https://developers.facebook.com/docs/whatsapp/cloud-api/reference/messages."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from server.providers.http import HttpClient, Json, NoReply, Reply, message_id, verdict_of_status
from server.providers.provider import Message, Outcome, OutcomeKind, Subject, Verdict, verdicts
from server.providers.templates import lookup_locales

_SOURCE = "https://developers.facebook.com/docs/whatsapp/cloud-api/support/error-codes"
_DESTINATION = (470, 130472, 130497, 131021, 131026, 131030, 131047, 131049, 131050, 131051, 131053)
# 100 and 131009 are of a wrong parameter, often the recipient; 131008 and 132000 to 132016 of the template.
_ROUTE = (100, 131008, 131009, 132000, 132001, 132005, 132007, 132008, 132012, 132015, 132016)
_ACCOUNT = (0, 3, 10, 33, 190, *range(200, 300), 368, 131005, 131031, 131037, 131042, 131045, 133010)
VERDICTS: Mapping[str, Verdict] = {
    **verdicts(OutcomeKind.REJECTED_DESTINATION, Subject.DESTINATION, *_DESTINATION, source=_SOURCE),
    **verdicts(OutcomeKind.REJECTED_CONFIGURATION, Subject.ROUTE, *_ROUTE, source=_SOURCE),
    **verdicts(OutcomeKind.REJECTED_CONFIGURATION, Subject.ACCOUNT, *_ACCOUNT, source=_SOURCE),
    **verdicts(OutcomeKind.NOT_SENT, Subject.DESTINATION, 131056, source=_SOURCE),
    **verdicts(OutcomeKind.NOT_SENT, Subject.ACCOUNT, 4, 80007, 130429, 131048, 131057, source=_SOURCE),
    **verdicts(OutcomeKind.NOT_SENT, Subject.PROVIDER, 2, 131016, source=_SOURCE),
    # Meta's general errors do not say whether the message was sent.
    **verdicts(OutcomeKind.UNKNOWN, Subject.PROVIDER, 1, 131000, 135000, source=_SOURCE),
}
"""By `error.code`, whatever the title. A code that is not listed is judged by the HTTP status."""
_PAIR_LIMIT = 131056
_PAIR_LIMIT_SECONDS = 6.0


@dataclass(frozen=True, slots=True)
class WhatsAppSettings:
    """A business phone number and its authentication template."""

    phone_number_id: str
    access_token: str = field(repr=False)
    template_name: str
    """An approved template of category AUTHENTICATION with a one-tap or copy-code button."""
    template_languages: tuple[str, ...] = ("en",)
    """Its approved languages, in Meta's spelling (`en`, `id`, `pt_BR`); the first is the default."""
    version: str = "v23.0"
    base_url: str = "https://graph.facebook.com"
    timeout_seconds: float = 10.0


class WhatsApp:
    """Sends the template with the code. Meta posts delivery reports to its webhook.

    Meta's message id contains the recipient's number in Base64, so provider_message_id is its SHA-256
    (`printf %s wamid.… | sha256sum`).
    """

    name = "whatsapp"

    def __init__(self, settings: WhatsAppSettings) -> None:
        """Opens no connections."""
        self._settings = settings
        self._languages = {next(lookup_locales(language), ""): language for language in settings.template_languages}
        self._http = HttpClient(
            settings.base_url,
            timeout_seconds=settings.timeout_seconds,
            credentials={"Authorization": f"Bearer {settings.access_token}"},
        )

    async def deliver(self, message: Message) -> Outcome:
        """Submit the message; ACCEPTED means that Meta accepted it, or holds it for later."""
        phone_number_id = message.sender_id or self._settings.phone_number_id
        path = f"/{self._settings.version}/{phone_number_id}/messages"
        reply = await self._http.post(path, document=self._document(message))
        if isinstance(reply, NoReply):
            return Outcome(reply.kind, self.name, failure_reason=reply.failure_reason)
        return self._outcome(reply)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    def _document(self, message: Message) -> Json:
        code = [{"type": "text", "text": message.code}]
        return {
            "messaging_product": "whatsapp",
            "recipient_type": "individual",
            "to": message.destination.removeprefix("+"),
            "type": "template",
            # Returned in Meta's delivery reports.
            "biz_opaque_callback_data": message.reference,
            "template": {
                "name": self._settings.template_name,
                "language": {"code": self._language(message.locale)},
                "components": [
                    {"type": "body", "parameters": code},
                    # "url" for a copy-code button too: "copy_code" is valid in a template, but not in a message.
                    {"type": "button", "sub_type": "url", "index": "0", "parameters": code},
                ],
            },
        }

    def _language(self, locale: str) -> str:
        """The approved language that fits the locale best, or the default: Meta refuses any other."""
        approved = (self._languages[each] for each in lookup_locales(locale) if each in self._languages)
        return next(approved, self._settings.template_languages[0])

    def _outcome(self, reply: Reply) -> Outcome:
        body = reply.body or {}
        error = body.get("error")
        by_status = verdict_of_status(reply.status)
        if isinstance(error, dict) and isinstance(code := error.get("code"), int):
            retry_after = _PAIR_LIMIT_SECONDS if code == _PAIR_LIMIT else reply.retry_after_seconds
            verdict = VERDICTS.get(str(code), by_status)
            return Outcome(verdict.kind, self.name, "", f"whatsapp_{code}", retry_after, verdict.about)
        messages = body.get("messages")
        first = messages[0] if isinstance(messages, list) and messages else None
        if error is None and isinstance(first, dict) and (provider_id := message_id(first.get("id"))):
            return Outcome(OutcomeKind.ACCEPTED, self.name, sha256(provider_id.encode()).hexdigest())
        reason = f"whatsapp_http_{reply.status}"
        return Outcome(by_status.kind, self.name, "", reason, reply.retry_after_seconds, by_status.about)
