"""Who may join and what may leave: certificates, signatures, access rules, data policy.

How to use:

    authority = create_authority("ca", "main")                      # once per fleet
    authority.issue("device-1", Tier.DEVICE).write("device-1")      # one folder per node: ca.pem node.pem node.key
    identity = Identity.load("device-1")                            # on the node
    data = encode_frame(stamped(frame, ...), sign=identity.sign)    # a frame that changes state
    verifier = Verifier(identity.ca_pem)                            # where it is consumed
    verifier.learn(pem_from_info, expected="device-1")              # once per node, from its `info` answer
    verifier.check(f.sender, f.epoch, f.sequence, f.signature, f.signed_bytes, tiers=[Tier.DEVICE])

The threat model is in `docs/security.md`.
"""

from edgewise.security.authority import Authority, CertificateFiles, create_authority, make_request
from edgewise.security.certificates import Subject
from edgewise.security.identity import Identity
from edgewise.security.replay import ReplayWindow
from edgewise.security.verifier import Reason, Verifier

__all__ = [
    "Authority",
    "CertificateFiles",
    "Identity",
    "Reason",
    "ReplayWindow",
    "Subject",
    "Verifier",
    "create_authority",
    "make_request",
]
