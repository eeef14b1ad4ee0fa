"""Organizations with something of everything, for messages that are about something."""

import asyncio
import time
from collections.abc import Sequence
from uuid import uuid4

from pulsa.errors import PulsaError

from server.payments.webhooks import EVENT_TYPES
from tests.fuzz.events import event, signature_of
from tests.fuzz.ground import Ground
from tests.fuzz.messages import MARKER, NUMBERS, Case, good_fields
from tests.waiting import until

ORGANIZATIONS = 6
_FAR_DAYS = ("0001-01-01", "1969-12-31", "9999-12-31")
_LISTS = ("ListOtps", "ListTopUps", "ListLedgerEntries")


async def new_cases(ground: Ground) -> Sequence[Case]:
    """Each organization with credits, an OTP that waits for its code, a delivery, a top-up and an event about it."""
    ground.site.relay.mails.clear()
    return await asyncio.gather(*(_case(ground, number) for number in range(ORGANIZATIONS)))


async def _case(ground: Ground, number: int) -> Case:
    site, organization_id, email = ground.site, f"org-{number}", f"{MARKER}{number}@mail.example"
    await site.grant(100_000, organization_id)
    otp = (await site.send(organization_id, email=email, context=MARKER, ttl={"seconds": 600}, max_attempts=10)).otp
    await until(lambda: site.code_mailed_to(email))
    top_up_id = await _top_up(ground, organization_id, pay=number % 2 == 0)
    page = await site.call(_LISTS[number % len(_LISTS)], organization_id, page_size=1)
    payload = event(id=f"evt_{uuid4().hex}", type=EVENT_TYPES[number], data={"object": _invoice(ground, top_up_id)})
    day = (time.strftime("%Y-%m-%d", time.gmtime()), *_FAR_DAYS)[number % 4]
    return good_fields(
        organization_id=organization_id,
        otp_id=otp.otp_id,
        delivery_id=otp.deliveries[0].delivery_id,
        top_up_id=top_up_id,
        # So that some OTPs are left to be canceled.
        code=site.code_mailed_to(email) if number % 2 else MARKER,
        page_token=page.next_page_token,
        start_date=day,
        end_date=day,
        payload=payload,
        signature=signature_of(payload),
        destination=[{"email": email}, {"sms": NUMBERS[number]}, {"whatsapp": NUMBERS[-number]}][number % 3],
        fallbacks=[{"whatsapp": NUMBERS[number]}, {"email": email}],
    )


async def _top_up(ground: Ground, organization_id: str, *, pay: bool) -> str:
    """A new one, or the open one that is in its way."""
    try:
        top_up = await ground.site.order(organization_id)
    except PulsaError as error:
        return error.metadata["top_up_id"]
    if pay:
        async with ground.browser.post(f"{top_up.hosted_invoice_url}/pay") as page:
            assert page.status == 200
    return str(top_up.top_up_id)


def _invoice(ground: Ground, top_up_id: str) -> dict[str, str]:
    """As far as an event's reader looks at it."""
    invoices = ground.site.stripe.books.objects["invoice"].values()
    ours = (invoice["id"] for invoice in invoices if invoice["metadata"].get("top_up_id") == top_up_id)
    return {"id": next(ours, "in_1"), "object": "invoice"}
