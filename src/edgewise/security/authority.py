"""Runs the certificate authority of a fleet, stored in a folder; it decides which nodes may join.

    {folder}/ca.pem            the authority's certificate; every node has a copy
    {folder}/ca.key            its key, 0600; never leaves this folder
    {folder}/revoked.crl       signed list of revoked certificates (X.509 CRL); copy it to nodes to make them refuse
    {folder}/issued/*.pem      every certificate ever signed, so that a node can be revoked by name

A node's own folder, as a user copies it to another machine: `ca.pem`, `node.pem`, `node.key`.
Nodes read theirs with `identity.py`.

Example:
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> authority = create_authority(folder / "ca", "main")
    >>> _ = authority.issue("device-1", Tier.DEVICE, folder=folder / "device-1")
    >>> sorted(path.name for path in (folder / "device-1").iterdir())
    ['ca.pem', 'node.key', 'node.pem']
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgewise.core.errors import IdentityRefused, InputError
from edgewise.core.files import write_atomic
from edgewise.core.ids import Tier, node_id
from edgewise.security.certificates import (
    LOOPBACK,
    UNPARSED,
    UNUSABLE,
    Subject,
    alternative_names,
    certificate_builder,
    certificate_pem,
    hosts_of,
    key_pem,
    key_usage,
    named_subject,
    purposes_of,
    subject_of,
    utc_now,
)

NODE_DAYS = 365.0
AUTHORITY_DAYS = 3650.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFiles:
    """Holds the files a node needs to join.

    Attributes:
        subject: Whom it names.
        ca: The authority's certificate, PEM.
        certificate: The node's certificate, PEM.
        key: The node's key, PEM; empty where it was born on the node.
        expires: End of validity.
    """

    subject: Subject
    ca: bytes
    certificate: bytes
    key: bytes = field(repr=False)
    expires: dt.datetime

    def write(self, folder: str | Path) -> Path:
        """Writes `ca.pem`, `node.pem` and, where there is one, `node.key` (0600).

        Args:
            folder: The node's folder; made if missing, 0700.

        Returns:
            The folder.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.key:
            write_atomic(folder / "node.key", self.key, mode=0o600)
        write_atomic(folder / "ca.pem", self.ca)
        write_atomic(folder / "node.pem", self.certificate)
        return folder


def create_authority(
    folder: str | Path,
    fleet: str,
    *,
    days: float = AUTHORITY_DAYS,
    now: Callable[[], dt.datetime] = utc_now,
) -> Authority:
    """Creates a fleet's authority.

    Args:
        folder: Where it is kept; must not hold one yet.
        fleet: The fleet's name; part of every certificate and wire key.
        days: Validity of the authority.
        now: The wall clock.

    Returns:
        The authority, written to disk.

    Raises:
        InputError: If the folder holds an authority already, or the name cannot be used.
    """
    folder = Path(folder)
    if (folder / "ca.key").exists():
        raise InputError(
            f"{str(folder)!r} already holds an authority; a second one would lock every node out. "
            "Use it as it is, or choose another folder."
        )
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, str(node_id(fleet))),
            x509.NameAttribute(NameOID.COMMON_NAME, f"edgewise authority of {fleet}"),
        ]
    )
    key = ec.generate_private_key(ec.SECP256R1())
    builder = certificate_builder(name, name, key.public_key(), now(), days)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(key_usage(authority=True), critical=True)
    certificate = builder.sign(key, hashes.SHA256())
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomic(folder / "ca.pem", certificate_pem(certificate))
    write_atomic(folder / "ca.key", key_pem(key), mode=0o600)
    authority = Authority(folder, certificate, key, now)
    authority.write_revocations([])
    return authority


@dataclass(frozen=True, slots=True)
class Authority:
    """Issues and revokes certificates; make one with `create_authority`, read it with `load`."""

    folder: Path
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    now: Callable[[], dt.datetime] = utc_now

    @staticmethod
    def load(folder: str | Path, *, now: Callable[[], dt.datetime] = utc_now) -> Authority:
        """Reads an authority.

        Args:
            folder: As given to `create_authority`.
            now: The wall clock.

        Returns:
            The authority.

        Raises:
            InputError: If there is none, or its files cannot be read.
        """
        folder = Path(folder)
        try:
            certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
            key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
            belong = isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() == certificate.public_key()
        except UNUSABLE as error:
            raise InputError(
                f"no usable certificate authority in {str(folder)!r}: {error}. Make one with 'edgewise ca init'."
            ) from error
        if not belong or not isinstance(key, ec.EllipticCurvePrivateKey):
            raise InputError(f"key and certificate in {str(folder)!r} do not belong together. Restore both files.")
        return Authority(folder, certificate, key, now)

    @property
    def fleet(self) -> str:
        """Returns the fleet's name."""
        return str(self.certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value)

    @property
    def ca_pem(self) -> bytes:
        """Returns the authority's certificate, PEM."""
        return certificate_pem(self.certificate)

    def issue(
        self,
        node: str,
        tier: Tier | str,
        hosts: tuple[str, ...] = LOOPBACK,
        days: float = NODE_DAYS,
        *,
        folder: str | Path | None = None,
    ) -> CertificateFiles:
        """Issues the key and certificate of one node.

        Args:
            node: Its name, unique in the fleet.
            tier: Where it stands; a device's certificate cannot serve a TLS listener.
            hosts: DNS names and addresses it listens on; left out for devices, which only dial.
            days: Validity.
            folder: Where to write the three files; None writes none yet.

        Returns:
            The three files; `write(folder)` puts them where the node is started.

        Raises:
            InputError: If the name cannot be used.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = named_subject(self.fleet, tier, node)
        files = self._sign(subject, key.public_key(), hosts, days, key_pem(key))
        if folder is not None:
            files.write(folder)
        return files

    def sign_request(
        self,
        request: bytes,
        *,
        allow_hosts: tuple[str, ...] = LOOPBACK,
        days: float = NODE_DAYS,
    ) -> CertificateFiles:
        """Signs a request whose key was born on the node.

        Args:
            request: PEM from `make_request`; its name and tier are what the operator agrees to by calling this.
            allow_hosts: Hosts the request may ask for; a wider one must be named by the operator.
            days: Validity.

        Returns:
            The files without a key.

        Raises:
            IdentityRefused: If the request is not signed by its own key, or asks for hosts that are not allowed.
            InputError: If it is not a request for a node of this fleet.
        """
        csr = _read_request(request)
        subject = subject_of(csr)
        if subject.fleet not in ("", self.fleet):
            raise InputError(f"the request is for fleet {subject.fleet!r}, this authority is of {self.fleet!r}.")
        hosts = hosts_of(csr)
        foreign = [host for host in hosts if host not in allow_hosts]
        if foreign:
            raise IdentityRefused(
                f"the request of {subject.node!r} asks for hosts {foreign}, allowed are {list(allow_hosts)}. "
                "If the node does listen there, name them when signing (--host)."
            )
        public = csr.public_key()
        if not isinstance(public, ec.EllipticCurvePublicKey):
            raise InputError(f"the request of {subject.node!r} has no P-256 key. Make it with 'edgewise ca request'.")
        return self._sign(named_subject(self.fleet, subject.tier, subject.node), public, hosts, days)

    def revoke(self, node: str) -> int:
        """Adds every certificate of a node to the signed revocation list.

        The list takes effect where it is read: give `revoked.crl` to the nodes whose `Verifier` shall refuse.
        A new certificate may be issued to the same name afterwards.

        Args:
            node: Its name.

        Returns:
            How many certificates were added.

        Raises:
            InputError: If none was ever issued to that name.
        """
        serials = [certificate.serial_number for certificate in self.issued(node)]
        if not serials:
            raise InputError(f"no certificate was issued to {node!r} by this authority. See {self.folder / 'issued'}.")
        known = set(self.revoked())
        self.write_revocations(sorted(known | set(serials)))
        return len(set(serials) - known)

    def issued(self, node: str) -> list[x509.Certificate]:
        """Returns all certificates issued to a name."""
        files = sorted((self.folder / "issued").glob("*.pem"))
        loaded = (x509.load_pem_x509_certificate(file.read_bytes()) for file in files)
        return [certificate for certificate in loaded if subject_of(certificate).node == node]

    def revoked(self) -> tuple[int, ...]:
        """Returns the revoked serial numbers."""
        crl = x509.load_pem_x509_crl((self.folder / "revoked.crl").read_bytes())
        return tuple(entry.serial_number for entry in crl)

    def write_revocations(self, serials: list[int]) -> Path:
        """Signs and writes the list of revoked serial numbers."""
        now = self.now()
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.certificate.subject)
        builder = builder.last_update(now).next_update(now + dt.timedelta(days=AUTHORITY_DAYS))
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            builder = builder.add_revoked_certificate(entry)
        crl = builder.sign(self.key, hashes.SHA256())
        return write_atomic(self.folder / "revoked.crl", crl.public_bytes(serialization.Encoding.PEM))

    def _sign(
        self, subject: Subject, public: ec.EllipticCurvePublicKey, hosts: tuple[str, ...], days: float, key: bytes = b""
    ) -> CertificateFiles:
        names = alternative_names(subject, () if subject.tier is Tier.DEVICE else hosts)
        builder = certificate_builder(subject.distinguished, self.certificate.subject, public, self.now(), days)
        builder = builder.add_extension(names, critical=False)
        builder = builder.add_extension(purposes_of(subject.tier), critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(key_usage(authority=False), critical=True)
        certificate = builder.sign(self.key, hashes.SHA256())
        pem = certificate_pem(certificate)
        write_atomic(self.folder / "issued" / f"{subject.node}-{certificate.serial_number:x}.pem", pem)
        return CertificateFiles(
            subject=subject, ca=self.ca_pem, certificate=pem, key=key, expires=certificate.not_valid_after_utc
        )


def make_request(
    folder: str | Path, node: str, tier: Tier | str, *, fleet: str = "", hosts: tuple[str, ...] = LOOPBACK
) -> bytes:
    """Creates a node's key on the node itself and a signing request for the authority.

    Writes `node.key` (0600) and `node.csr`; the key never leaves the folder. After `Authority.sign_request`,
    its `write(folder)` puts `ca.pem` and `node.pem` beside them.

    Args:
        folder: The node's folder.
        node: The wanted name.
        tier: The wanted tier.
        fleet: The fleet; "" leaves it to the authority.
        hosts: Where the node will listen; left out for devices.

    Returns:
        The request, PEM.

    Raises:
        InputError: If the folder already holds a key, or the name cannot be used.
    """
    folder = Path(folder)
    if (folder / "node.key").exists():
        raise InputError(f"{str(folder)!r} already holds a node's key. Use it as it is, or choose another folder.")
    subject = named_subject(fleet, tier, node)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject.tier.value)])
    )
    names = alternative_names(subject, () if subject.tier is Tier.DEVICE else hosts)
    request = certificate_pem(builder.add_extension(names, critical=False).sign(key, hashes.SHA256()))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomic(folder / "node.key", key_pem(key), mode=0o600)
    write_atomic(folder / "node.csr", request)
    return request


def _read_request(request: bytes) -> x509.CertificateSigningRequest:
    try:
        csr = x509.load_pem_x509_csr(request)
        if not csr.is_signature_valid:
            raise InvalidSignature
        csr.public_key()
    except UNPARSED as error:
        raise InputError(f"this is not a certificate request: {error}. Make one with 'edgewise ca request'.") from error
    except InvalidSignature as error:
        raise IdentityRefused("the request is not signed by its own key; it was changed on the way.") from error
    return csr
