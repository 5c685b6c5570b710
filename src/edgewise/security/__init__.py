"""Decides who may join and which data may leave: certificates, signatures, access rules, data policy.

How to use:

    authority = create_authority("ca", "main")                      # once per fleet
    authority.issue("device-1", Tier.DEVICE).write("device-1")      # one folder per node: ca.pem node.pem node.key
    identity = Identity.load("device-1")                            # on the node
    data = encode_frame(stamped(frame, ...), sign=identity.sign)    # a frame that changes state
    verifier = identity.verifier()                                  # where it is consumed
    verifier.learn(pem_from_info, expected="device-1")              # once per node, from its `info` answer
    verifier.check(f.sender, f.generation, f.sequence, f.signature, f.signed_bytes, tiers=[Tier.DEVICE])
    config["transport/link/tls"] = tls_config("edge-1")             # Zenoh's sections
    config["access_control"] = access_control("main")               # routers only
    policy = DataPolicy(raw=Tier.DEVICE)                            # what may leave: encode_frame(..., allow=...)

The threat model is in `docs/security.md`.
"""

from edgewise.security.access import access_control, log_refused_links, tls_config
from edgewise.security.authority import Authority, CertificateFiles, create_authority, make_request
from edgewise.security.certificates import Subject
from edgewise.security.data_policy import DataPolicy, EgressAudit
from edgewise.security.identity import Identity
from edgewise.security.refusal import Reason
from edgewise.security.replay import ReplayWindow
from edgewise.security.verifier import Verifier

__all__ = [
    "Authority",
    "CertificateFiles",
    "DataPolicy",
    "EgressAudit",
    "Identity",
    "Reason",
    "ReplayWindow",
    "Subject",
    "Verifier",
    "access_control",
    "create_authority",
    "log_refused_links",
    "make_request",
    "tls_config",
]
