"""Reads and writes the node name, tier and hosts in a certificate.

    subject          CN = tier ("device", "edge", "cloud"), O = fleet
    alternative      URI edgewise://{fleet}/{tier}/{node}, and for a node that listens its DNS names and addresses
    key              P-256; signs frames and opens TLS links
    purpose          client; server too on tiers that listen (edge, cloud)

The tier is the common name because Zenoh's access rules match common names exactly and cannot change while a
router runs (`docs/decisions/0002-certificate-names.md`). Issuing is in `authority.py`, checking in `identity.py`.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgewise.core.errors import InputError, nearest
from edgewise.core.ids import NodeId, Tier, node_id

SCHEME = "edgewise"
SIGNATURE = ec.ECDSA(hashes.SHA256())
"""Of certificates and frames: P-256 signs in a third of Ed25519's time here, and rustls takes both."""
TIER_NAMES = {"device": Tier.DEVICE, "edge": Tier.EDGE, "cloud": Tier.CLOUD}
"""Names that begin with a tier's word are of that tier; routers rely on it (`access.py`)."""
MOST_DAYS = 36_525
"""A hundred years; certificates cannot say dates without end."""
_BACKDATE = dt.timedelta(minutes=5)
"""Clocks of small devices lag; a certificate is valid a little before it was made."""
UNPARSED: tuple[type[Exception], ...] = (
    ValueError,
    TypeError,
    OverflowError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What reading a damaged certificate, request, list or key may raise: at once, or when a part of it is first looked at."""
UNUSABLE: tuple[type[Exception], ...] = (OSError, *UNPARSED)
"""The same of a file."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class Subject:
    """Holds the fleet, tier and node a certificate names.

    Attributes:
        fleet: The fleet; also the authority's.
        tier: Where the node stands.
        node: The node's name, unique in the fleet.
    """

    fleet: str
    tier: Tier
    node: NodeId

    @property
    def uri(self) -> str:
        """`edgewise://{fleet}/{tier}/{node}`."""
        return f"{SCHEME}://{self.fleet}/{self.tier}/{self.node}"

    @staticmethod
    def of_uri(uri: str) -> Subject:
        """Parses the URI of a certificate.

        Raises:
            InputError: If it is not `edgewise://fleet/tier/node`.
        """
        parts = urlsplit(uri)
        names = parts.path.strip("/").split("/")
        if parts.scheme != SCHEME or len(names) != 2 or names[0] not in {tier.value for tier in Tier}:
            raise InputError(f"{uri!r} does not name a node. Needed is '{SCHEME}://fleet/tier/node'.")
        return Subject(parts.netloc, Tier(names[0]), node_id(names[1]))

    @property
    def distinguished(self) -> x509.Name:
        """The X.509 subject: common name = tier."""
        return x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, self.fleet),
                x509.NameAttribute(NameOID.COMMON_NAME, self.tier.value),
            ]
        )


def subject_of(document: x509.Certificate | x509.CertificateSigningRequest) -> Subject:
    """Returns the node a certificate or request names.

    Args:
        document: Either; nothing in it is verified here.

    Returns:
        Fleet, tier and node.

    Raises:
        InputError: If it names none, or several.
    """
    uris = [name.value for name in _alternatives(document) if isinstance(name, x509.UniformResourceIdentifier)]
    if len(uris) != 1:
        raise InputError(f"a node's certificate names exactly one node, found {uris}. Issue it with 'edgewise ca'.")
    return Subject.of_uri(uris[0])


def hosts_of(document: x509.Certificate | x509.CertificateSigningRequest) -> tuple[str, ...]:
    """Returns the DNS names and addresses under which the node may listen."""
    return tuple(
        str(name.value) for name in _alternatives(document) if isinstance(name, (x509.DNSName, x509.IPAddress))
    )


def alternative_names(subject: Subject, hosts: tuple[str, ...]) -> x509.SubjectAlternativeName:
    """Builds the extension that carries the node's name and its hosts."""
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(subject.uri), *map(host_name, hosts)])


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Encodes a private key as PKCS 8 PEM, which rustls reads."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def certificate_pem(certificate: x509.Certificate | x509.CertificateSigningRequest) -> bytes:
    """Encodes a certificate or request as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def tier_of(name: str) -> Tier:
    """Parses a tier.

    Raises:
        InputError: If there is no such tier.
    """
    if name not in TIER_NAMES:
        raise InputError(f"{name!r} is not a tier.{nearest(name, TIER_NAMES)}")
    return TIER_NAMES[name]


def named_subject(fleet: str, tier: Tier | str, node: str) -> Subject:
    """Returns a subject, and refuses a name that belongs to another tier.

    Args:
        fleet: The fleet.
        tier: Where the node stands.
        node: Its name.

    Returns:
        The subject.

    Raises:
        InputError: If the name cannot be used, or begins with another tier's word.
    """
    tier = tier_of(str(tier))
    pretended = next((t for word, t in TIER_NAMES.items() if node.startswith(word)), tier)
    if pretended is not tier:
        raise InputError(
            f"{node!r} is to be of tier {tier.value}, its name begins with {pretended.value!r}. Names that begin with "
            f"a tier's word belong to that tier, because routers protect them; call it e.g. '{tier.value}-{node}'."
        )
    return Subject(fleet, tier, node_id(node))


def purposes_of(tier: Tier) -> x509.ExtendedKeyUsage:
    """Builds the key purposes of a tier: TLS client for all, TLS server for edge and cloud."""
    listens = [ExtendedKeyUsageOID.SERVER_AUTH] if tier is not Tier.DEVICE else []
    return x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, *listens])


def utc_now() -> dt.datetime:
    """Returns the wall clock time that certificates are checked against."""
    return dt.datetime.now(dt.UTC)


def host_name(name: str) -> x509.GeneralName:
    """A host as an alternative name.

    Args:
        name: An address, or a DNS name.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _alternatives(document: x509.Certificate | x509.CertificateSigningRequest) -> list[x509.GeneralName]:
    try:
        return list(document.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []
    except UNPARSED as error:
        raise InputError(f"its names cannot be read: {error}. Issue it again with 'edgewise ca'.") from error


def certificate_builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, now: dt.datetime, days: float
) -> x509.CertificateBuilder:
    """Begins a certificate.

    Args:
        subject: Whom it names.
        issuer: Who signs it.
        public: The key it is for.
        now: The time.
        days: Validity.

    Raises:
        InputError: If that is no validity.
    """
    if not 0.0 < days <= MOST_DAYS:
        raise InputError(f"a certificate is valid for more than 0 and at most {MOST_DAYS:,} days, asked were {days:g}.")
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + dt.timedelta(days=days))
    )


def key_usage(*, authority: bool) -> x509.KeyUsage:
    """What a key may sign: certificates where it is an authority's, else what is sent.

    Args:
        authority: Whose it is.
    """
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
