"""Issues certificates of HTTP ports, by an authority beside the fleet's: `{ca}/https/`, made when it is first needed.

It is another one so that what it signs opens nothing in the fleet: a device with a certificate for a server of the fleet's
own authority could pose as a router. Clients trust its `ca.pem`. An edge and a coordinator need none, their own serve.

Example:
    >>> import tempfile
    >>> from edgewise.security.authority import create_authority
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = create_authority(folder / "ca", "home")
    >>> _ = issue_https(folder / "ca", "cam-7", ("192.168.1.20",), folder=folder / "https")
    >>> sorted(path.name for path in (folder / "https").iterdir())
    ['ca.pem', 'http.key', 'http.pem']
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgewise.core.errors import InputError
from edgewise.core.files import write_atomic
from edgewise.core.ids import node_id
from edgewise.security.authority import AUTHORITY_DAYS, NODE_DAYS, Authority, create_authority
from edgewise.security.certificates import (
    LOOPBACK,
    certificate_builder,
    certificate_pem,
    host_name,
    key_pem,
    key_usage,
    utc_now,
)

FOLDER = "https"


def issue_https(
    ca: str | Path,
    name: str,
    hosts: tuple[str, ...] = (),
    days: float = NODE_DAYS,
    *,
    folder: str | Path,
    now: Callable[[], dt.datetime] = utc_now,
) -> Path:
    """Issues key and certificate of one HTTP port.

    Args:
        ca: Folder of the fleet's authority.
        name: Whose port; stands in the certificate for people.
        hosts: Names and addresses that clients will call, beside loopback.
        days: Validity.
        folder: Where to write `http.pem`, `http.key` (0600) and `ca.pem`, which clients trust; 0700.
        now: The wall clock.

    Returns:
        The folder.

    Raises:
        InputError: If there is no authority, or the folder holds a node's identity.
    """
    fleet, folder = Authority.load(ca, now=now).fleet, Path(folder)
    if (folder / "node.pem").exists():
        raise InputError(f"{str(folder)!r} is a node's identity, whose ca.pem is another. Choose a folder of its own.")
    own = Path(ca) / FOLDER
    authority = (
        Authority.load(own, now=now)
        if (own / "ca.key").exists()
        else create_authority(own, fleet, days=AUTHORITY_DAYS, now=now)
    )
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, fleet),
            x509.NameAttribute(NameOID.COMMON_NAME, f"http of {node_id(name)}"),
        ]
    )
    names = x509.SubjectAlternativeName([host_name(host) for host in dict.fromkeys((*hosts, *LOOPBACK))])
    builder = certificate_builder(subject, authority.certificate.subject, key.public_key(), now(), days)
    builder = builder.add_extension(names, critical=False)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(key_usage(authority=False), critical=True)
    certificate = builder.sign(authority.key, hashes.SHA256())
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_atomic(folder / "http.key", key_pem(key), mode=0o600)
    write_atomic(folder / "http.pem", certificate_pem(certificate))
    write_atomic(folder / "ca.pem", authority.ca_pem)
    return folder
