"""Identities of a virtual fleet, the same bytes in every process: keys from names, fixed dates, signatures without chance.

Never for a real fleet: whoever reads this file has every key.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgewise.core.ids import Tier
from edgewise.security.certificates import Subject, alternative_names, certificate_pem, named_subject, purposes_of
from edgewise.security.identity import Identity

FLEET = "virtual"
BEGINNING = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
"""The wall clock of a fleet at virtual time 0; its certificates were issued a day before."""
_DAY = dt.timedelta(days=1)
_SIGNATURE = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
_ORDER = int("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551", 16)
"""Of the group of P-256."""


class FixedIdentity(Identity):
    """An identity whose signature of the same bytes is always the same."""

    __slots__ = ()

    def sign(self, data: bytes) -> bytes:
        """As `Identity.sign`."""
        return self._key.sign(data, _SIGNATURE)


@cache
def fixed_identity(name: str, tier: Tier, *, valid_s: float | None = None) -> FixedIdentity:
    """Makes the identity of a name.

    Args:
        name: The node's.
        tier: Where it stands.
        valid_s: Seconds after the beginning at which its certificate expires; by default in a year.

    Returns:
        The identity.
    """
    key, ca, ca_key = _key(name), _authority(), _key("authority")
    subject = named_subject(FLEET, tier, name)
    until = BEGINNING + (365 * _DAY if valid_s is None else dt.timedelta(seconds=valid_s))
    builder = _builder(subject.distinguished, ca.subject, key, f"{name} {valid_s}", until)
    builder = builder.add_extension(alternative_names(subject, ()), critical=False)
    builder = builder.add_extension(purposes_of(tier), critical=False)
    certificate = builder.sign(ca_key, hashes.SHA256(), ecdsa_deterministic=True)
    named = Subject(FLEET, tier, subject.node)
    return FixedIdentity(named, certificate, certificate_pem(ca), Path(name), key)


@cache
def _authority() -> x509.Certificate:
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, FLEET),
            x509.NameAttribute(NameOID.COMMON_NAME, f"edgewise authority of {FLEET}"),
        ]
    )
    key = _key("authority")
    builder = _builder(name, name, key, "authority", BEGINNING + 3650 * _DAY)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return builder.sign(key, hashes.SHA256(), ecdsa_deterministic=True)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, serial: str, until: dt.datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(_number(f"serial of {serial}") >> 100)
    return builder.not_valid_before(BEGINNING - _DAY).not_valid_after(until)


@cache
def _key(name: str) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(_number(f"key of {name}") % (_ORDER - 1) + 1, ec.SECP256R1())


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest())
