"""Builds a router's Zenoh access rules by tier; a coarse first check before the signatures of frames.

Rules are read once, when a router starts, and match a certificate's common name exactly. Our common name is the tier,
so a node that enrols later is covered by the rules that are already there; which *node* of a tier speaks is proved by
the signature of its frames (`verifier.py`). See `docs/decisions/0002-certificate-names.md`.

    a device may        serve info, control, progress, blob · publish events · hold tokens of tier device · ask anything
    an edge may         the same, and serve report and stage, and pass on what devices serve and hold
    a cloud may         everything in its fleet
    anybody else        nothing; without a certificate of the authority TLS refuses the link
    no device           serves, receives queries or publishes under a protected name: those that begin with `edge` or `cloud`, which the
                        authority gives to no device, and whatever else `protect` lists
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgewise.core.ids import Tier

DEVICE_SERVICES = ("info", "control", "progress", "blob")
"""What a device may serve; `report` and `stage` belong to edges and clouds."""
PROTECTED = ("edge$*", "cloud$*")
"""`$*` stands for any end of a name in Zenoh's key expressions."""
_ASK = ("query", "liveliness_query", "declare_subscriber", "declare_liveliness_subscriber")
_SERVE = ("declare_queryable", "reply")
_TELL = ("put", "delete")
_ALL = (*_ASK, *_SERVE, *_TELL, "liveliness_token")


def access_control(
    fleet: str,
    *,
    protect: Sequence[str] = (),
    device_services: Sequence[str] = DEVICE_SERVICES,
) -> dict[str, Any]:
    """Makes the `access_control` section of a router's Zenoh configuration.

    Args:
        fleet: The fleet's name; nothing outside `ew/{fleet}/**` passes.
        protect: Further names no device may speak for, e.g. of an edge called `gateway-7`; may hold `$*`.
        device_services: Services devices may serve.

    Returns:
        The section, ready for `Config.insert_json5`.
    """
    root = f"ew/{fleet}"
    served = [f"{root}/node/*/{service}" for service in device_services]
    names = (*PROTECTED, *protect)
    own = [f"{root}/node/{name}/**" for name in names] + [f"{root}/event/{name}" for name in names]
    rules = [
        _rule("receive", "allow", ["egress"], _ALL, [f"{root}/**"]),
        _rule("ask", "allow", ["ingress"], _ASK, [f"{root}/**"]),
        _rule("device-serve", "allow", ["ingress"], _SERVE, served),
        _rule("tell", "allow", ["ingress"], _TELL, [f"{root}/event/*"]),
        _rule("edge-serve", "allow", ["ingress"], _SERVE, [f"{root}/node/*/*"]),
        _rule("cloud-all", "allow", ["ingress"], _ALL, [f"{root}/**"]),
        _rule("protect", "deny", ["ingress"], (*_SERVE, *_TELL), own),
        # A device may declare `node/*/control`, wildcard and all; it still must not receive the queries of an edge.
        _rule("unheard", "deny", ["egress"], ["query"], own),
        *(_token_rule(tier, root) for tier in (Tier.DEVICE, Tier.EDGE)),
    ]
    granted = {
        Tier.DEVICE: ["receive", "ask", "device-serve", "tell", "protect", "unheard", "device-token"],
        Tier.EDGE: ["receive", "ask", "edge-serve", "tell", "device-token", "edge-token"],
        Tier.CLOUD: ["receive", "cloud-all"],
    }
    return {
        "enabled": True,
        "default_permission": "deny",
        "rules": rules,
        "subjects": [{"id": tier.value, "cert_common_names": [tier.value]} for tier in Tier],
        "policies": [{"rules": names, "subjects": [tier.value]} for tier, names in granted.items()],
    }


def tls_config(folder: str | Path) -> dict[str, Any]:
    """Makes the `transport/link/tls` section of a node's Zenoh configuration: mutual TLS from its folder.

    Args:
        folder: Holds `ca.pem`, `node.pem`, `node.key`.

    Returns:
        The section; a link closes when its certificate expires.
    """
    folder = Path(folder)
    key, certificate = str(folder / "node.key"), str(folder / "node.pem")
    return {
        "root_ca_certificate": str(folder / "ca.pem"),
        "listen_private_key": key,
        "listen_certificate": certificate,
        "connect_private_key": key,
        "connect_certificate": certificate,
        "enable_mtls": True,
        "verify_name_on_connect": True,
        "close_link_on_expiration": True,
    }


def log_refused_links() -> None:
    """Logs to standard error why Zenoh refused a link: no certificate, wrong authority, expired.

    Call it once, where a process begins. Zenoh can only write to file descriptor 1, which is what a program reads
    that asked for `--json`; so 1 is led to standard error, and `sys.stdout` writes to what 1 was. `RUST_LOG` selects
    what Zenoh logs.
    """
    import zenoh

    if sys.stdout is sys.__stdout__ and sys.stdout is not None and sys.stdout.fileno() == 1:
        sys.stdout.flush()
        was = os.dup(1)
        os.dup2(2, 1)
        sys.stdout = open(was, "w", buffering=1, encoding=sys.stdout.encoding)  # noqa: SIM115 - lives as long as we do
    zenoh.init_log_from_env_or("error,zenoh_link_tls=warn")


def _rule(
    name: str, permission: str, flows: list[str], messages: Sequence[str], key_exprs: Sequence[str]
) -> dict[str, Any]:
    return {
        "id": name,
        "permission": permission,
        "flows": flows,
        "messages": list(messages),
        "key_exprs": list(key_exprs),
    }


def _token_rule(tier: Tier, root: str) -> dict[str, Any]:
    return _rule(f"{tier}-token", "allow", ["ingress"], ["liveliness_token"], [f"{root}/alive/{tier}/*/*"])
