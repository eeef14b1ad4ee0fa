"""The server's TLS certificate, replaced while it runs when its files change."""

from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificates

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files."""

    certificate_chain: Path
    private_key: Path
    client_authorities: Path | None = None
    """When set, only clients with a certificate that these signed may connect: mutual TLS."""


@dataclass(frozen=True, slots=True)
class _Pem:
    """What the files hold."""

    certificate_chain: bytes
    private_key: bytes
    client_authorities: bytes | None

    def check(self) -> None:
        """Raise ValueError when TLS cannot use it, as in the middle of a renewal, when only one file is new."""
        try:
            certificate = load_pem_x509_certificates(self.certificate_chain)[0]
            private_key = load_pem_private_key(self.private_key, password=None)
            if self.client_authorities is not None:
                load_pem_x509_certificates(self.client_authorities)
        except (TypeError, UnsupportedAlgorithm) as error:  # TypeError: the key is locked with a password
            raise ValueError("a key of a kind that cannot be used here") from error
        if certificate.public_key() != private_key.public_key():
            raise ValueError("the certificate is not for this private key")

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """The same for gRPC."""
        chain = [(self.private_key, self.certificate_chain)]
        return grpc.ssl_server_certificate_configuration(chain, self.client_authorities)


class Certificates:
    """Reads the files before every handshake: a renewed certificate serves the next connection, no other is touched.

    Files that cannot be used change nothing.
    """

    def __init__(self, files: TlsFiles) -> None:
        """Raises OSError or ValueError when the files cannot be used."""
        self._files = files
        self._current = self._read()
        self._current.check()
        self._complaint = ""

    def server_credentials(self) -> grpc.ServerCredentials:
        """What a gRPC server listens with."""
        return grpc.dynamic_ssl_server_credentials(
            self._current.configuration(),
            self._renewed,  # type: ignore[arg-type] # the type stubs of grpc forget that None is "no change"
            require_client_authentication=self._files.client_authorities is not None,
        )

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """What changed, or None; gRPC calls it in a thread of its own."""
        try:
            found = self._read()
            if found == self._current:
                return None
            found.check()
        except (OSError, ValueError) as error:
            self._complain(str(error) if isinstance(error, ValueError) else type(error).__name__)
            return None
        self._current, self._complaint = found, ""
        _log.info("certificate_reloaded")
        return found.configuration()

    def _complain(self, why: str) -> None:
        if why != self._complaint:  # once, not for every connection
            self._complaint = why
            _log.error("certificate_not_reloaded", alert=True, why=why)

    def _read(self) -> _Pem:
        authorities = self._files.client_authorities
        return _Pem(
            self._files.certificate_chain.read_bytes(),
            self._files.private_key.read_bytes(),
            authorities.read_bytes() if authorities else None,
        )
