#!/bin/sh
# A header that is given to one request of SendGrid's client goes with every later one, send() included.
#
# sendgrid 6.12.5, python-http-client 3.3.7, Python 3.11.
#
# `request_headers` is an argument of the single call, and "On-Behalf-Of" the header by which a parent account acts for
# a subuser. A guess would be that it is for that call alone. But the client writes it into one dictionary of headers
# that all paths of the client share. From then on each mail, from any thread, is sent and billed on behalf of the
# subuser of the last call that named one.
#
# What helps: a SendGridAPIClient for each subuser (its argument is impersonate_subuser).
#
# Seen:
#   sendgrid 6.12.5 python-http-client 3.3.7
#   send(), before: on behalf of nobody
#   a request with the header: on behalf of subuser-1
#   another path, without it: on behalf of subuser-1
#   send(), after: on behalf of subuser-1
#
# Exit code 0 while the behaviour is as described, 1 when it has changed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet 'sendgrid==6.12.5' 'python-http-client==3.3.7'
cat > "$folder/show.py" <<'PYTHON'
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version

from sendgrid import SendGridAPIClient
from sendgrid.helpers.mail import Mail

MAIL = Mail("from@example.com", "to@example.com", "Your code", "123456")
subusers = []


class Accepts(BaseHTTPRequestHandler):
    def do_GET(self):
        subusers.append(self.headers.get("On-Behalf-Of", "nobody"))
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(202)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Accepts)
threading.Thread(target=server.serve_forever, daemon=True).start()
sendgrid = SendGridAPIClient("SG.key", host=f"http://127.0.0.1:{server.server_port}")
calls = {
    "send(), before": lambda: sendgrid.send(MAIL),
    "a request with the header": lambda: sendgrid.client.stats.get(request_headers={"On-Behalf-Of": "subuser-1"}),
    "another path, without it": lambda: sendgrid.client.suppression.bounces.get(),
    "send(), after": lambda: sendgrid.send(MAIL),
}
print("sendgrid", version("sendgrid"), "python-http-client", version("python-http-client"))
for name, call in calls.items():
    call()
    print(f"{name}: on behalf of {subusers[-1]}")
sys.exit(0 if subusers == ["nobody", "subuser-1", "subuser-1", "subuser-1"] else 1)
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
