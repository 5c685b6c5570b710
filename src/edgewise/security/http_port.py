"""How an HTTP port is protected: by loopback, or by TLS and tokens. The agent, the coordinator and `serve` say it alike."""

from __future__ import annotations

import contextlib
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from edgewise.core.errors import InputError, SecurityError
from edgewise.core.ids import Tier
from edgewise.security.tokens import read_tokens

LOOPBACK_HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class PortSecurity:
    """What an HTTP port asks of its clients.

    Attributes:
        tls: Certificate and key files, PEM; None for plain HTTP.
        tokens: File of `edgewise token`; None asks for none.
        insecure: Lets a port leave loopback without them.
    """

    tls: tuple[Path, Path] | None = None
    tokens: Path | None = None
    insecure: bool = False

    @staticmethod
    def of(
        *, certificate: str | Path | None, key: str | Path | None, tokens: str | Path | None, insecure: bool = False
    ) -> PortSecurity:
        """From what an operator wrote.

        Args:
            certificate: PEM; "" or None for none.
            key: PEM.
            tokens: File of tokens.
            insecure: As of the class.

        Raises:
            InputError: If one of certificate and key is missing.
        """
        if bool(certificate) != bool(key):
            raise InputError("TLS needs both a certificate and its key. Give the other one too.")
        tls = (Path(certificate), Path(key)) if certificate and key else None
        return PortSecurity(tls, Path(tokens) if tokens else None, insecure)

    def or_identity(self, folder: str | Path, tier: Tier) -> PortSecurity:
        """The same with a node's own certificate for TLS, where it has none of its own and tokens are asked for.

        Args:
            folder: The node's identity.
            tier: Where it stands; a device's certificate is for no server, so a device stays as it is.
        """
        if self.tls is not None or self.tokens is None or tier is Tier.DEVICE:
            return self
        return PortSecurity((Path(folder) / "node.pem", Path(folder) / "node.key"), self.tokens, self.insecure)

    def check(self, host: str, port: int) -> None:
        """Refuses an address that others reach while something is missing.

        Args:
            host: Address to listen on.
            port: For the message.

        Raises:
            SecurityError: If the address is not loopback and TLS or tokens are missing.
            InputError: If the tokens cannot be read.
        """
        if self.tokens is not None:
            read_tokens(self.tokens)
        missing = [
            *(["no TLS (give a certificate and a key)"] if self.tls is None else []),
            *(["no tokens (edgewise token create NAME, then --tokens FILE)"] if self.tokens is None else []),
        ]
        if missing and not self.insecure and not is_loopback(host):
            raise SecurityError(
                f"{host}:{port} is not a loopback address and there is {' and '.join(missing)}; anybody on the network "
                "could use it. Give what is missing, keep it on loopback behind what knows its users, or say --insecure."
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address.

    Args:
        host: Name or address.
    """
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False
