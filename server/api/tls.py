"""The server's TLS certificate, reloaded while the server runs when its files change."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import grpc
import structlog
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificates

_log = structlog.get_logger(__name__)

Content = TypeVar("Content")


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """The PEM files of a server."""

    certificate_chain: Path
    private_key: Path
    client_authorities: Path | None = None
    """CAs. When set, clients must present a certificate that one of them signed (mutual TLS)."""


class TlsFileError(ValueError):
    """A file cannot be read or used."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        """The file's field of TlsFiles."""
        self.reason = reason


@dataclass(frozen=True, slots=True)
class _Pem:
    """The contents of the files."""

    certificate_chain: bytes
    private_key: bytes
    client_authorities: bytes | None

    def check(self) -> None:
        """Raise TlsFileError when TLS cannot use them, as in the middle of a renewal, when only one file is new."""
        public_key = _parse("certificate_chain", _first_public_key, self.certificate_chain)
        private_key = _parse("private_key", partial(load_pem_private_key, password=None), self.private_key)
        if self.client_authorities is not None:
            _parse("client_authorities", load_pem_x509_certificates, self.client_authorities)
        if public_key != private_key.public_key():
            raise TlsFileError("certificate_chain", "the certificate is not for this private key")

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """Return the contents as gRPC takes them."""
        chain = [(self.private_key, self.certificate_chain)]
        return grpc.ssl_server_certificate_configuration(chain, self.client_authorities)


class Certificates:
    """Reads the files before every handshake: a renewed certificate serves new connections, open ones stay.

    Unusable files change nothing.
    """

    def __init__(self, files: TlsFiles) -> None:
        """Raises TlsFileError when a file cannot be read or used."""
        self._files = files
        self._current = self._read()
        self._current.check()
        self._logged_error = ""

    def server_credentials(self) -> grpc.ServerCredentials:
        """Return new credentials for one gRPC server."""
        return grpc.dynamic_ssl_server_credentials(
            self._current.configuration(),
            self._renewed,  # type: ignore[arg-type] # the type stubs of grpc lack None, which means "no change"
            require_client_authentication=self._files.client_authorities is not None,
        )

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the new certificate, or None when it is unchanged; gRPC calls this in a thread of its own."""
        try:
            found = self._read()
            if found == self._current:
                return None
            found.check()
        except TlsFileError as error:
            self._log_error(str(error))
            return None
        self._current, self._logged_error = found, ""
        _log.info("certificate_reloaded")
        return found.configuration()

    def _log_error(self, why: str) -> None:
        if why != self._logged_error:  # once, not for every connection
            self._logged_error = why
            _log.error("certificate_not_reloaded", alert=True, why=why)

    def _read(self) -> _Pem:
        files = self._files
        return _Pem(
            _read("certificate_chain", files.certificate_chain),
            _read("private_key", files.private_key),
            _read("client_authorities", files.client_authorities) if files.client_authorities else None,
        )


def _read(field: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise TlsFileError(field, f"cannot be read: {error.strerror}") from error


def _first_public_key(chain: bytes) -> CertificatePublicKeyTypes:
    return load_pem_x509_certificates(chain)[0].public_key()


def _parse(field: str, parse: Callable[[bytes], Content], content: bytes) -> Content:
    try:
        return parse(content)
    except Exception as error:  # cryptography raises errors of many types, and no file may end the reloading
        raise TlsFileError(field, "not a PEM file of this kind, or with a key that cannot be used here") from error
