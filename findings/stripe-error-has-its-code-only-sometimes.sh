#!/bin/sh
# `error.code` of a StripeError is None for a lock timeout, a key in use, an expired API key and most others.
#
# stripe 16.1.0, Python 3.11.
#
# Stripe's errors have a `code`, and every StripeError has an attribute of that name. A guess would be that it is that
# code. It is, for InvalidRequestError and CardError; for the others that a call without /v2 raises the SDK leaves it
# None, and has the code in error.error.code only. So `error.code == "lock_timeout"`, which would tell an object that is
# busy from an account that makes too many requests (both are RateLimitError), is never true, and a metric by code
# counts None. IdempotencyError is for a key that came with other parameters alone: a key whose first request is still
# under way, which can just be waited for, is a plain APIError like a fault of Stripe's.
#
# What helps: (error.json_body or {}).get("error", {}).get("code"), for every class.
#
# Seen:
#   stripe 16.1.0
#   400 parameter_missing: InvalidRequestError, error.code parameter_missing, error.error.code parameter_missing
#   402 card_declined: CardError, error.code card_declined, error.error.code card_declined
#   401 api_key_expired: AuthenticationError, error.code None, error.error.code api_key_expired
#   429 lock_timeout: RateLimitError, error.code None, error.error.code lock_timeout
#   429 rate_limit: RateLimitError, error.code None, error.error.code rate_limit
#   409 idempotency_key_in_use: APIError, error.code None, error.error.code idempotency_key_in_use
#
# Exit code 0 while the behaviour is as described, 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'stripe==16.1.0' 'requests==2.34.2'
cat > "$folder/show.py" <<'PYTHON'
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version

import stripe

ERRORS = (  # HTTP status, type and code of Stripe's answer; whether error.code has it
    (400, "invalid_request_error", "parameter_missing", True),
    (402, "card_error", "card_declined", True),
    (401, "invalid_request_error", "api_key_expired", False),
    (429, "invalid_request_error", "lock_timeout", False),
    (429, "invalid_request_error", "rate_limit", False),
    (409, "idempotency_error", "idempotency_key_in_use", False),
)
stripe.enable_telemetry = False
answer = None


class Refuses(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        status, kind, code, _ = answer
        body = json.dumps({"error": {"type": kind, "code": code, "message": "no"}}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Refuses)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = stripe.StripeClient("sk_test_0", base_addresses={"api": f"http://127.0.0.1:{server.server_port}"})
print("stripe", version("stripe"))
as_described = True
for answer in ERRORS:
    status, _, code, has_code = answer
    try:
        client.v1.invoices.create({"customer": "cus_1"})
    except stripe.StripeError as error:
        kind, inner = type(error).__name__, error.error.code
        print(f"{status} {code}: {kind}, error.code {error.code}, error.error.code {inner}")
        as_described &= error.code == (code if has_code else None) and inner == code
        as_described &= (error.json_body or {}).get("error", {}).get("code") == code
sys.exit(0 if as_described else 1)
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
