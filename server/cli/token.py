"""`token`: the development key, and the command that signs tokens with it. Production has its own issuer."""

import argparse
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from server.api.auth import mint
from server.api.permissions import ALL_PERMISSIONS
from server.environment import load_settings


@dataclass(frozen=True, slots=True)
class DevelopmentKey:
    """An Ed25519 key pair, in files that only their owner can read."""

    private_key_file: Path
    public_key_file: Path
    """The file for PULSA_TOKEN_KEYS."""

    def private_key(self) -> bytes:
        """Return the private key as PEM, for `server.api.auth.mint`."""
        return self.private_key_file.read_bytes()


def development_key(folder: Path) -> DevelopmentKey:
    """Return the folder's key pair, generated on first use. Processes that start at once get the same one."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = DevelopmentKey(folder / "development-key.pem", folder / "development-key.public.pem")
    if not key.private_key_file.exists():
        pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        _write_once(key.private_key_file, pem)
    public_key = load_pem_private_key(key.private_key(), password=None).public_key()
    _write_once(key.public_key_file, public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return key


def _write_once(file: Path, content: bytes) -> None:
    """Write the file atomically, unless it exists."""
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
        opened.write(content)
    with suppress(FileExistsError):
        file.hardlink_to(draft)
    draft.unlink()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--organization",
        default="demo",
        help="the organization that the token is valid for, or * for any (default: demo)",
    )
    parser.add_argument("--subject", default="developer", help="the caller's name (default: developer)")
    parser.add_argument(
        "--permission",
        action="append",
        choices=sorted(ALL_PERMISSIONS),
        help="a permission; may be repeated (default: all)",
    )
    parser.add_argument("--hours", type=float, default=24, help="hours until the token expires (default: 24)")


def token(arguments: argparse.Namespace) -> None:
    """Print a token."""
    key = development_key(load_settings(os.environ).data)
    print(
        mint(
            key.private_key(),
            subject=arguments.subject,
            organization_id=arguments.organization,
            permissions=arguments.permission or sorted(ALL_PERMISSIONS),
            lifetime_seconds=arguments.hours * 3600,
        )
    )
