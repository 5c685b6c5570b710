"""Has a node prove who it is: a description, signed in the incarnation it speaks of, in answer to this very question.

Anybody in a fleet may declare a liveliness token, and within a tier may answer a question in another's name. A nonce binds an
answer to its question, the signature to the certificate, so that neither is of use to whoever has not the node's key.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Protocol

import msgspec

from edgewise.core.errors import EdgewiseError, IdentityRefused, Unreachable
from edgewise.core.ids import NodeId
from edgewise.fleet.messages import InfoRequest, NodeInfo, kind_of
from edgewise.security.refusal import Reason
from edgewise.security.verifier import Verifier
from edgewise.transport.frame import Frame, make_frame
from edgewise.transport.guard import addressed
from edgewise.transport.keys import Keys
from edgewise.transport.transport import Transport

PROOF_TIMEOUT_S = 5.0
"""For all that answer to a name; one of them may never."""


class Asker(Protocol):
    """A node, as far as it asks others who they are."""

    keys: Keys
    verifier: Verifier

    @property
    def transport(self) -> Transport:
        """Returns the uplink in use."""
        ...

    def count_refusal(self, what: str) -> None:
        """Counts a refusal."""
        ...


def new_nonce() -> str:
    """What nobody can foresee, 32 characters."""
    return secrets.token_hex(16)


def make_question(make_nonce: Callable[[], str] = new_nonce) -> tuple[Frame, str]:
    """A question who a node is, and its nonce.

    Args:
        make_nonce: Makes what nobody can foresee.
    """
    nonce = make_nonce()
    return make_frame(kind_of(InfoRequest), InfoRequest(nonce)), nonce


def check_proof(node: Asker, name: NodeId, reply: Frame, nonce: str) -> NodeInfo:
    """Checks that a description is by the node it names, of the incarnation it names, and an answer to our question.

    Args:
        node: Who asked.
        name: Who was asked.
        reply: What came.
        nonce: Of the question.

    Returns:
        The description.

    Raises:
        FrameRefused: If it is none.
        IdentityRefused: If it proves nothing; counted.
    """
    info = reply.read(NodeInfo)
    proven, tier = node.verifier.learn(info.certificate.encode(), expected=name)
    if info.node != name or tier != info.tier:
        node.count_refusal(f"{name} presents the certificate of {proven} ({tier})")
        raise IdentityRefused(
            f"{name!r} ({info.tier}) presents a certificate of {proven!r} ({tier}). "
            "Each node needs its own certificate; issue one with `edgewise ca issue`."
        )
    signed = addressed(reply.signed_bytes, node.keys.service(name, "info"))
    says_itself = (reply.sender, reply.generation, info.nonce) == (name, info.generation, nonce)
    if not says_itself or not node.verifier.is_signed(name, reply.signature, signed):
        node.count_refusal(f"a description of {name} that it did not sign")
        raise IdentityRefused(
            f"somebody answers in the name of {name!r} who has not its key, or repeats an older answer. It was refused.",
            reason=Reason.FORGED.value,
        )
    node.verifier.check_generation(name, info.generation, name)
    return msgspec.structs.replace(info, nonce="")


async def proofs_of(node: Asker, name: NodeId, *, timeout_s: float = PROOF_TIMEOUT_S) -> list[NodeInfo]:
    """Asks every process that answers to a name; whoever lies or says nothing keeps nobody else from being heard.

    Args:
        node: Who asks.
        name: Who is asked.
        timeout_s: For all of them.

    Returns:
        The proved descriptions, the newest incarnation last; at least one.

    Raises:
        IdentityRefused: If somebody answers and nobody proves to be that node.
        Unreachable: If nobody answers.
    """
    question, nonce = make_question()
    refused: EdgewiseError | None = None
    found: list[NodeInfo] = []
    for reply in await node.transport.query_all(node.keys.service(name, "info"), question, timeout_s=timeout_s):
        try:
            found.append(check_proof(node, name, reply, nonce))
        except EdgewiseError as error:
            refused = error
    if not found:
        raise refused or Unreachable(f"nobody answers for {name!r}. Check that the node is up.", node=name)
    return sorted(found, key=lambda info: info.generation)
