"""Webhook events of Stripe, and their signatures."""

import json
import time
from typing import Any

from server.sandbox.stripe.webhooks import sign
from tests.acceptance.deployment import WEBHOOK_SECRET


def event(**changes: Any) -> bytes:
    """A valid event, with these fields changed."""
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
    """A valid signature of now. Bytes that are not UTF-8 are replaced before signing, so that theirs is wrong."""
    return sign(payload.decode(errors="replace"), secrets=[WEBHOOK_SECRET], timestamp=int(time.time()))
