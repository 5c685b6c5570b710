"""Holds this node's identity: name, certificate, signing key. `verifier.py` checks the others.

Example:
    >>> import tempfile
    >>> from edgewise.core.ids import Tier
    >>> from edgewise.security.authority import create_authority
    >>> folder = Path(tempfile.mkdtemp())
    >>> authority = create_authority(folder / "ca", "main")
    >>> identity = Identity.load(authority.issue("device-1", Tier.DEVICE).write(folder / "device-1"))
    >>> verifier = identity.verifier()
    >>> verifier.learn(identity.certificate_pem)
    ('device-1', <Tier.DEVICE: 'device'>)
    >>> verifier.check("device-1", 1, 0, identity.sign(b"frame"), b"frame")
    ('device-1', <Tier.DEVICE: 'device'>)
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from edgewise.core.errors import InputError
from edgewise.core.ids import NodeId, Tier
from edgewise.security.certificates import SIGNATURE, UNUSABLE, Subject, certificate_pem, subject_of, utc_now
from edgewise.security.replay import ReplayWindow
from edgewise.security.verifier import Verifier


@dataclass(frozen=True, slots=True)
class Identity:
    """Holds a node's name, certificate and signing key."""

    subject: Subject
    certificate: x509.Certificate
    ca_pem: bytes
    folder: Path
    _key: ec.EllipticCurvePrivateKey = field(repr=False)

    @staticmethod
    def load(folder: str | Path, *, now: Callable[[], dt.datetime] = utc_now) -> Identity:
        """Loads a node's folder: `ca.pem`, `node.pem`, `node.key`.

        Args:
            folder: As written by `CertificateFiles.write`.
            now: The wall clock.

        Returns:
            The identity.

        Raises:
            InputError: If a file is missing or unreadable, or they do not belong together.
            IdentityRefused: If the certificate is expired or of another authority.
        """
        folder = Path(folder)
        try:
            certificate = x509.load_pem_x509_certificate((folder / "node.pem").read_bytes())
            key = serialization.load_pem_private_key((folder / "node.key").read_bytes(), None)
            ca_pem = (folder / "ca.pem").read_bytes()
            belong = isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() == certificate.public_key()
        except UNUSABLE as error:
            raise InputError(
                f"no usable certificate in {str(folder)!r}: {error}. "
                "Copy ca.pem, node.pem and node.key there; 'edgewise ca issue' makes them."
            ) from error
        if not belong or not isinstance(key, ec.EllipticCurvePrivateKey):
            raise InputError(
                f"node.key and node.pem in {str(folder)!r} do not belong together. Copy both from the same issue."
            )
        Verifier(ca_pem, now=now).learn(certificate_pem(certificate))
        return Identity(subject_of(certificate), certificate, ca_pem, folder, key)

    @property
    def node(self) -> NodeId:
        """Returns the node's name."""
        return self.subject.node

    @property
    def tier(self) -> Tier:
        """Returns the node's tier."""
        return self.subject.tier

    @property
    def fleet(self) -> str:
        """Returns the fleet's name."""
        return self.subject.fleet

    @property
    def certificate_pem(self) -> bytes:
        """Returns the certificate, PEM; it is public."""
        return certificate_pem(self.certificate)

    @property
    def expires(self) -> dt.datetime:
        """Returns the end of the certificate's validity."""
        return self.certificate.not_valid_after_utc

    def verifier(self, *, windows: dict[str, ReplayWindow] | None = None) -> Verifier:
        """Makes a verifier with this node's authority and the `revoked.crl` of its folder, once one is there.

        Args:
            windows: Replay windows of an earlier process.

        Returns:
            The verifier.
        """
        return Verifier(self.ca_pem, revoked=self.folder / "revoked.crl", windows=windows)

    def sign(self, data: bytes) -> bytes:
        """Signs bytes.

        Args:
            data: What a frame's signature covers.

        Returns:
            An ECDSA P-256 signature in DER, 68-72 bytes.
        """
        return self._key.sign(data, SIGNATURE)
