"""Organizations with objects of every kind, so that generated messages refer to objects that exist."""

import asyncio
import time
from collections.abc import Sequence
from uuid import uuid4

from pulsa.errors import PulsaError

from server.credits.stripe.webhooks import EVENT_TYPES
from tests.faults.process_deployment import recipient
from tests.fuzz.environment import FuzzEnvironment
from tests.fuzz.messages import MARKER, NUMBERS, Case, good_fields
from tests.fuzz.stripe_events import event, signature_of
from tests.waiting import until

ORGANIZATIONS = 6
_FAR_DAYS = ("0001-01-01", "1969-12-31", "9999-12-31")
_LISTS = ("ListOtps", "ListTopUps", "ListLedgerEntries")


async def new_cases(environment: FuzzEnvironment) -> Sequence[Case]:
    """Give each organization credits, an OTP that waits for its code, a delivery, a top-up and an event about it."""
    environment.deployment.relay.mails.clear()
    return await asyncio.gather(*(_case(environment, number) for number in range(ORGANIZATIONS)))


async def _case(environment: FuzzEnvironment, number: int) -> Case:
    organization_id, email = f"org-{number}", f"{MARKER}{number}@mail.example"
    deployment = environment.deployment
    await deployment.grant(100_000, organization_id)
    await deployment.call("ResumeOrganization", organization_id)  # a message of the last cases may have suspended it
    sent = await deployment.send(organization_id, email=email, context=MARKER, ttl={"seconds": 600}, max_attempts=10)
    await until(lambda: deployment.code_mailed_to(email))
    top_up_id = await _top_up(environment, organization_id, pay=number % 2 == 0)
    page = await deployment.call(_LISTS[number % len(_LISTS)], organization_id, page_size=1)
    payload = event(
        id=f"evt_{uuid4().hex}", type=EVENT_TYPES[number], data={"object": _invoice(environment, top_up_id)}
    )
    day = (time.strftime("%Y-%m-%d", time.gmtime()), *_FAR_DAYS)[number % 4]
    return good_fields(
        organization_id=organization_id,
        otp_id=sent.otp.otp_id,
        delivery_id=sent.otp.deliveries[0].delivery_id,
        mail_token=_mail_token(environment, email),
        top_up_id=top_up_id,
        # Half of the codes are wrong, so that some OTPs can still be canceled.
        code=deployment.code_mailed_to(email) if number % 2 else MARKER,
        page_token=page.next_page_token,
        start_date=day,
        end_date=day,
        payload=payload,
        signature=signature_of(payload),
        destination=[{"email": email}, {"sms": NUMBERS[number]}, {"whatsapp": NUMBERS[-number]}][number % 3],
        fallbacks=[
            {"destination": {"whatsapp": NUMBERS[number]}, "after": {"seconds": 15}},
            {"destination": {"email": email}},
        ],
    )


def _mail_token(environment: FuzzEnvironment, email: str) -> str:
    """The token in the newest mail to an address."""
    mails = [mail.content.decode() for mail in environment.deployment.relay.mails if recipient(mail) == email]
    return mails[-1].partition("Pulsa-Delivery: ")[2].split()[0]


async def _top_up(environment: FuzzEnvironment, organization_id: str, *, pay: bool) -> str:
    """Open a new top-up, or return the one that is open already."""
    try:
        top_up = await environment.deployment.order(organization_id)
    except PulsaError as error:
        return error.metadata["top_up_id"]
    if pay:
        async with environment.browser.post(f"{top_up.hosted_invoice_url}/pay") as page:
            assert page.status == 200
    return str(top_up.top_up_id)


def _invoice(environment: FuzzEnvironment, top_up_id: str) -> dict[str, str]:
    """The fields of the invoice that the server reads from an event."""
    invoices = environment.deployment.stripe.account.objects["invoice"].values()
    ours = (invoice["id"] for invoice in invoices if invoice["metadata"].get("top_up_id") == top_up_id)
    return {"id": next(ours, "in_1"), "object": "invoice"}
