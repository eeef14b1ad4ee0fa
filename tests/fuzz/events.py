"""A webhook of Stripe's, and its signature."""

import json
import time
from typing import Any

from server.sandbox.stripe.delivery import sign
from tests.acceptance.deployment import WEBHOOK_SECRET


def event(**changes: Any) -> bytes:
    """One that is good, but for the changes."""
    good = {
        "id": "evt_1",
        "object": "event",
        "type": "invoice.paid",
        "created": 1_790_000_000,
        "livemode": False,
        "data": {"object": {"id": "in_1", "object": "invoice", "payment_intent": {"id": "pi_1"}}},
    }
    return json.dumps(good | changes).encode()


def signature_of(payload: bytes) -> str:
    """What Stripe would sign it with now, were it Stripe's; bytes that are no text are signed as others."""
    return sign(payload.decode(errors="replace"), secrets=[WEBHOOK_SECRET], timestamp=int(time.time()))
