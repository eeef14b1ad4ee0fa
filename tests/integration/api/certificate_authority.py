"""A certificate authority for tests."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from server.api.tls import TlsFiles


class CertificateAuthority:
    """Signs certificates for 127.0.0.1, each valid from an hour ago for two hours."""

    def __init__(self) -> None:
        self._key = generate_private_key(SECP256R1())
        self._name = _name("test authority")
        self.certificate = _signed(self._name, self._key, self._name, self._key, is_authority=True)

    def issue(self, name: str) -> tuple[bytes, bytes]:
        """A private key and its certificate, as PEM."""
        key = generate_private_key(SECP256R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return pem, _signed(_name(name), key, self._name, self._key, is_authority=False)


def write_tls(
    folder: Path, authority: CertificateAuthority, *, clients: CertificateAuthority | None = None
) -> TlsFiles:
    """Write a server's key and certificate, or renew them in place; with `clients`, also the authority of clients."""
    files = TlsFiles(
        certificate_chain=folder / "server.crt",
        private_key=folder / "server.key",
        client_authorities=folder / "clients.crt" if clients else None,
    )
    private_key, certificate = authority.issue("server")
    files.private_key.write_bytes(private_key)
    files.certificate_chain.write_bytes(certificate)
    if clients and files.client_authorities:
        files.client_authorities.write_bytes(clients.certificate)
    return files


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _signed(
    subject: x509.Name,
    key: EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: EllipticCurvePrivateKey,
    *,
    is_authority: bool,
) -> bytes:
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
    )
    return builder.sign(issuer_key, SHA256()).public_bytes(Encoding.PEM)
