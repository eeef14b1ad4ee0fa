"""The key that signs tokens on a developer's machine. Production has no minting key here."""

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


@dataclass(frozen=True, slots=True)
class DevelopmentKey:
    """An Ed25519 key pair in files of a folder that only their owner can read."""

    private_key_file: Path
    public_key_file: Path
    """What TokenVerifier reads."""

    def private_key(self) -> bytes:
        """The private key as PEM, for `tokens.mint`."""
        return self.private_key_file.read_bytes()


def development_key(folder: Path) -> DevelopmentKey:
    """The folder's key pair; made on first use. Processes that start at once end up with the same one."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = DevelopmentKey(folder / "development-key.pem", folder / "development-key.public.pem")
    if not key.private_key_file.exists():
        pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        _write_once(key.private_key_file, pem)
    public_key = load_pem_private_key(key.private_key(), password=None).public_key()
    _write_once(key.public_key_file, public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return key


def _write_once(file: Path, content: bytes) -> None:
    """Write the whole file at once, unless there is one."""
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
        opened.write(content)
    with suppress(FileExistsError):
        file.hardlink_to(draft)
    draft.unlink()
