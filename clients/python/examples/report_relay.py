# ruff: noqa: INP001, D102 - a script; http.server names the method
"""An example relay: receives what providers report, and passes it on to Pulsa. Run it behind a proxy with TLS.

Needs PULSA, TOKEN_FILE, PUBLIC_URL, TWILIO_AUTH_TOKEN, VONAGE_SIGNATURE_SECRET, META_APP_SECRET and PORT. A mail server
pipes bounces and complaints to POST /mail?recipient=…, which must not be reachable from outside.
"""

import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, parse_qsl, urlsplit

from pulsa import reports
from pulsa.client import connect
from pulsa.errors import PulsaError
from pulsa.otp.v1.otp_service_pb2 import ReportMailRequest
from pulsa.tokens import token_from_file

PULSA = connect(os.environ["PULSA"], token=token_from_file(Path(os.environ["TOKEN_FILE"])))


class Relay(BaseHTTPRequestHandler):
    """Answers 204 for what it passed on, 403 for a wrong signature, and 503 for what is to be repeated."""

    def do_POST(self) -> None:
        url, body = urlsplit(self.path), self.rfile.read(min(int(self.headers["Content-Length"] or 0), 1 << 20))
        form, header = dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True)), self.headers
        try:
            if url.path == "/twilio":
                address, signature = os.environ["PUBLIC_URL"] + self.path, header["X-Twilio-Signature"] or ""
                found = [reports.twilio_report(os.environ["TWILIO_AUTH_TOKEN"], address, form, signature)]
            elif url.path == "/vonage":
                found = [reports.vonage_report(os.environ["VONAGE_SIGNATURE_SECRET"], form, now=time.time())]
            elif url.path == "/meta":
                signature = header["X-Hub-Signature-256"] or ""
                found = [*reports.meta_reports(os.environ["META_APP_SECRET"], body, signature)]
            else:
                found = [reports.mail_report(body, parse_qs(url.query).get("recipient", [""])[0])]
            for request in filter(None, found):
                rpc = PULSA.otps.ReportMail if isinstance(request, ReportMailRequest) else PULSA.otps.ReportDelivery
                rpc(request)
            self.send_response(204)
        except reports.ForgedReport:
            self.send_response(403)
        except PulsaError as error:  # the provider repeats after 503; a delivery that is not there stays so
            self.send_response(204 if error.reason == "DELIVERY_NOT_FOUND" else 503)
        self.end_headers()


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Relay).serve_forever()
