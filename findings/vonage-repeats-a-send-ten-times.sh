#!/bin/sh
# One call of Vonage's SDK can send ten SMS: max_retries=0 does not stop it, pool_maxsize=1 does.
#
# vonage 4.9.1, vonage-http-client 1.5.2, Python 3.11.
#
# A guess would be that a send whose connection is closed before the answer raises after one request: urllib3's Retry,
# which max_retries sets, does not repeat a POST that was written; if anything is repeated, then max_retries=0 ends it.
# But the SDK has a loop of its own around that: when the connection ends without an answer (RemoteDisconnected), it
# makes the request again at once, pool_maxsize times in all, 10 by default, whatever the method. A proxy or a gateway
# that gives up on a slow answer, or that restarts, ends connections like this after it has passed the request on; each
# repetition is one more message to the same phone, and one more on the bill. /sms/json knows no idempotency key.
#
# What helps: HttpClientOptions(pool_maxsize=1), which is one attempt.
#
# Seen:
#   vonage 4.9.1 vonage-http-client 1.5.2
#   a server that takes the SMS and closes the connection, one call of sms.send each:
#   by default: ConnectionError, 10 SMS taken
#   max_retries=0: ConnectionError, 10 SMS taken
#   max_retries=0, pool_maxsize=1: ConnectionError, 1 SMS taken
#
# Exit code 0 while the behaviour is as described, 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet \
    'vonage==4.9.1' 'vonage-http-client==1.5.2' 'vonage-sms==1.2.0' 'requests==2.34.2' 'urllib3==2.8.0' 'trustme==1.2.1'
cat > "$folder/show.py" <<'PYTHON'
import os
import ssl
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from urllib.parse import parse_qs

import requests
import trustme
from vonage import Auth, HttpClientOptions, Vonage
from vonage_sms import SmsMessage

CASES = {
    "by default": {},
    "max_retries=0": {"max_retries": 0},
    "max_retries=0, pool_maxsize=1": {"max_retries": 0, "pool_maxsize": 1},
}
taken = []


class TakesAndCloses(BaseHTTPRequestHandler):
    def do_POST(self):
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        taken.append((self.path, form["to"][0], form["text"][0]))
        self.close_connection = True


authority = trustme.CA()
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
authority.issue_cert("localhost").configure_cert(context)
server = ThreadingHTTPServer(("127.0.0.1", 0), TakesAndCloses)
server.socket = context.wrap_socket(server.socket, server_side=True)
threading.Thread(target=server.serve_forever, daemon=True).start()

print("vonage", version("vonage"), "vonage-http-client", version("vonage-http-client"))
print("a server that takes the SMS and closes the connection, one call of sms.send each:")
counts = []
with tempfile.NamedTemporaryFile() as certificates:
    authority.cert_pem.write_to_path(certificates.name)
    os.environ["REQUESTS_CA_BUNDLE"] = certificates.name
    for name, options in CASES.items():
        taken.clear()
        client = Vonage(
            Auth(api_key="key", api_secret="secret"),
            HttpClientOptions(rest_host=f"localhost:{server.server_port}", timeout=10, **options),
        )
        try:
            client.sms.send(SmsMessage(to="447700900123", from_="Example", text="Your code is 123456."))
            outcome = "no error"
        except requests.ConnectionError as error:
            outcome = type(error).__name__
        assert set(taken) == {("/sms/json", "447700900123", "Your code is 123456.")}
        counts.append(len(taken))
        print(f"{name}: {outcome}, {len(taken)} SMS taken")
sys.exit(0 if counts == [10, 10, 1] else 1)
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
