"""The logs of providers in which `restored` looks for messages."""

from pathlib import Path
from uuid import UUID

import pytest

from server.cli.restored import _references

DELIVERY = UUID("01a22460-fc3d-7ee2-bf17-5e921dc55bc3")


@pytest.mark.parametrize(
    ("line", "organization_id"),
    [
        (f"POST /status?reference=acme%2F{DELIVERY.hex} HTTP/1.1", "acme"),
        (f'{{"client-ref": "acme:1@x/{DELIVERY.hex}", "status": "delivered"}}', "acme:1@x"),
        (f"acme/{DELIVERY.hex}", "acme"),
        (f"postfix/cleanup[7]: 4F2: message-id=<{DELIVERY}@example.com>", ""),
        (f"message-id=<notice.{DELIVERY}@example.com>", None),
        (f"request {DELIVERY} of otps/{DELIVERY}", None),
    ],
)
def test_a_line_tells_of_a_message_by_its_reference(tmp_path: Path, line: str, organization_id: str | None) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"\xff\n" + line.encode())

    assert list(_references(log)) == ([] if organization_id is None else [(organization_id, DELIVERY)])
