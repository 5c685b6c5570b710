"""Runs one node: identity, uplinks, signed messages, services. Roles (trainer, edge, …) register handlers here.

A node serves on one uplink at a time: the primary, or a standby while the primary is lost (`uplink.py` decides). Every frame that
changes state is checked where it arrives: certificate by our authority, name, tier, incarnation, sequence.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import msgspec
import numpy as np

from edgewise.core.errors import (
    EdgewiseError,
    FrameRefused,
    IdentityRefused,
    InputError,
    PolicyViolation,
    RemoteError,
    TransportError,
    Unreachable,
)
from edgewise.core.ids import Digest, Generation, NodeId, Tier
from edgewise.core.provenance import Origins
from edgewise.fleet.messages import (
    BLOB,
    INLINE_BYTES,
    Displaced,
    InfoRequest,
    Message,
    NodeInfo,
    Progress,
    TakeOver,
    kind_of,
)
from edgewise.fleet.node.blob_grants import BlobGrants
from edgewise.fleet.node.proof import check_proof, make_question, new_nonce, proofs_of
from edgewise.fleet.store.retention import Holder
from edgewise.ledger.entry import FrameCounter, Purpose
from edgewise.security.data_policy import DataPolicy, EgressAudit
from edgewise.security.identity import Identity
from edgewise.security.refusal import Reason
from edgewise.security.verifier import Verifier
from edgewise.transport.bulk.blobs import FolderBlobs
from edgewise.transport.bulk.fetch import fetch_blob, serve_blobs
from edgewise.transport.frame import Frame, Tensor, make_frame
from edgewise.transport.guard import addressed
from edgewise.transport.keys import Keys
from edgewise.transport.transport import QueryHandler, Registration, SyncHandler, Transport

log = logging.getLogger("edgewise.fleet")
Arrays = Mapping[str, np.ndarray[Any, Any]] | Sequence[Tensor]
Answer = tuple[Message, Arrays]
Handler = Callable[[Any, Frame, NodeInfo], Awaitable[Answer | Message]]
M = TypeVar("M", bound=Message)

ORDER_TIMEOUT_S = 10.0
"""Longest a node may take to take an order or a report (not to carry it out)."""
_MOST_REFUSALS = 1000
"""Distinct sentences counted; further ones fall under `…`, so that invented names do not fill the memory."""
_BLOB_SERVICE = re.compile(rf"{BLOB}(-\d+)?")
_SIGNED = frozenset((Purpose.CONTROL, Purpose.TRAINING))


@dataclass(slots=True)
class Route:
    """Describes the handler of one kind of message on one service.

    Attributes:
        message: Its struct.
        handler: (message, frame, sender's info) -> answer.
        tiers: Tiers that may send it; None lets anybody who is certified.
    """

    message: type[Message]
    handler: Handler
    tiers: frozenset[Tier] | None


@dataclass(slots=True, kw_only=True)
class Node:
    """Runs a node: serves its services, sends signed messages, verifies received ones.

    Attributes:
        identity: Name, tier and key.
        generation: This incarnation.
        keys: Key layout.
        uplinks: The primary first, then standbys; a router node has one.
        blobs: Values by digest.
        verifier: Checks what others sign.
        counter: Counts every frame.
        describe: Makes this node's info.
        policy: What data may reach which tier.
        progress: Makes the worker's counter.
        audit: Counts what the policy let go, and what it refused.
        grants: Says who may have which of `blobs`.
        extra_services: Handlers of services that are not messages, by service.
        sync_services: The same for services that answer on a thread of their own.
        refused: How often what was refused here, by a sentence without numbers.
        stores: Its folders of blobs: `blobs`, and what is given to nobody.
        holders: What its parts hold of these, by the file of the state folder that they read and write.
        spare: Set where blobs may have fallen free.
        on_overtaken: Told who refuses this process because it heard a newer one of its name, and which.
        linked: Set once a parent is linked, or none is needed.
        tried: Set once the first attempt to link one has ended, well or not.
        inline_bytes: Of blobs that travel in a letter's frame; larger ones are pulled.
        make_nonce: Makes what the node asks others to sign.
        blob_service: Where it gives what it offers, beside `blob`: an operator's own session, of which there may be several.
    """

    identity: Identity
    generation: Generation
    keys: Keys
    uplinks: list[Transport]
    blobs: FolderBlobs
    verifier: Verifier
    counter: FrameCounter
    describe: Callable[[], NodeInfo]
    policy: DataPolicy
    progress: Callable[[], Progress] = lambda: Progress(0, False)
    attached: int = 0
    _is_quiet: bool = False
    _routes: dict[str, dict[str, Route]] = field(default_factory=dict)
    _registrations: list[Registration] = field(default_factory=list)
    _token: Registration | None = None
    _known: dict[NodeId, NodeInfo] = field(default_factory=dict)
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    refused: dict[str, int] = field(default_factory=dict)
    on_failure: Callable[[str, BaseException], None] | None = None
    extra_services: dict[str, QueryHandler] = field(default_factory=dict)
    sync_services: dict[str, SyncHandler] = field(default_factory=dict)
    coordinator: NodeId | None = None
    blob_service: str = BLOB
    inline_bytes: int = INLINE_BYTES
    make_nonce: Callable[[], str] = new_nonce
    on_overtaken: Callable[[NodeId, Generation], None] | None = None
    linked: asyncio.Event = field(default_factory=asyncio.Event)
    tried: asyncio.Event = field(default_factory=asyncio.Event)
    audit: EgressAudit = field(init=False)
    grants: BlobGrants = field(init=False)
    _uplink_of: dict[NodeId, int] = field(default_factory=dict)
    stores: list[FolderBlobs] = field(init=False)
    holders: dict[str, Holder] = field(default_factory=dict)
    spare: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.stores = [self.blobs]
        self.audit = EgressAudit(self.policy)
        self.grants = BlobGrants(self.blobs)

    @property
    def name(self) -> NodeId:
        """Returns this node's name."""
        return self.identity.node

    @property
    def transport(self) -> Transport:
        """Returns the uplink in use."""
        return self.uplinks[self.attached]

    def route(
        self,
        service: str,
        message: type[M],
        handler: Callable[[M, Frame, NodeInfo], Awaitable[Answer | Message]],
        *tiers: Tier,
    ) -> None:
        """Registers the handler of a kind of message.

        Args:
            service: `control` or `report`.
            message: The struct.
            handler: Called on the event loop.
            *tiers: Tiers that may send it; none given lets anybody certified.
        """
        self._routes.setdefault(service, {})[kind_of(message)] = Route(message, handler, frozenset(tiers) or None)

    async def attach(self, index: int) -> None:
        """Declares services, blobs and the liveliness token on an uplink.

        Args:
            index: Which uplink; what was declared elsewhere is taken back. On the same one as before services are declared
                anew and the token stays: nobody is to take it for an absence.
        """
        if index == self.attached:
            await self._take_back()
        else:
            await self.detach()
        self.attached = index
        transport = self.transport
        for service in self._routes:
            key = self.keys.service(self.name, service)
            self._registrations.append(await transport.serve(key, self._dispatcher(service)))
        for service, handler in self.extra_services.items():
            self._registrations.append(await transport.serve(self.keys.service(self.name, service), handler))
        for service, sync_handler in self.sync_services.items():
            self._registrations.append(await transport.serve_sync(self.keys.service(self.name, service), sync_handler))
        self._registrations.append(await transport.serve(self.keys.service(self.name, "info"), self._answer_info))
        self._registrations.append(
            await transport.serve(self.keys.service(self.name, "progress"), self._answer_progress)
        )
        for service in sorted({BLOB, self.blob_service}):
            key = self.keys.service(self.name, service)
            allow = partial(self._allow_blob, key)
            self._registrations.append(await serve_blobs(transport, key, self.blobs, allow=allow))
        if self._token is None:
            token = self.keys.alive(self.identity.tier, self.name, self.generation)
            self._token = await transport.declare_presence(token)

    async def detach(self) -> None:
        """Withdraws all declarations concurrently; one after the other they would cost seconds."""
        token, self._token = self._token, None
        await self._take_back(*([] if token is None else [token]))

    async def _take_back(self, *more: Registration) -> None:
        registrations, self._registrations = [*self._registrations, *more], []

        async def close(registration: Registration) -> None:
            with contextlib.suppress(EdgewiseError):
                await registration.close()

        await asyncio.gather(*map(close, registrations))

    async def send(
        self,
        node: NodeId,
        service: str,
        message: Message,
        tensors: Arrays = (),
        *,
        purpose: Purpose = Purpose.CONTROL,
        timeout_s: float = ORDER_TIMEOUT_S,
        run: str = "",
    ) -> Frame:
        """Sends a signed message to a node's service and waits for its answer.

        Args:
            node: To whom.
            service: `control` or `report`.
            message: What.
            tensors: What travels beside it.
            purpose: Priority class.
            timeout_s: Deadline for the answer.
            run: Run it belongs to, for the ledger.

        Returns:
            The answering frame, unread; proved to be that node's where its purpose is a signed one.

        Raises:
            TransportError: As `Transport.query`.
            IdentityRefused: If somebody else answered in its name.
        """
        frame = make_frame(kind_of(message), message, tensors, purpose=purpose, run=run, deadline_s=timeout_s)
        key = self.keys.service(node, service)
        self.grants.name(message, node)
        try:
            answer = await self.transport.query(key, frame, timeout_s=timeout_s)
        except RemoteError as error:
            await self._perhaps_overtaken(node, key, error)
            raise
        if purpose in _SIGNED:
            await self._prove_answer(node, key, answer)
        return answer

    async def ask(
        self, node: NodeId, service: str, message: Message, answer: type[M], tensors: Arrays = (), **how: Any
    ) -> M:
        """Sends a message and decodes the answer as a struct."""
        return (await self.send(node, service, message, tensors, **how)).read(answer)

    async def fetch(self, ref: Any, *, progress: Callable[[int, int], None] | None = None) -> bytes:
        """Fetches a blob from its holder, unless it is stored already.

        Args:
            ref: A `BlobRef`.
            progress: Called with (bytes here, bytes in all).

        Returns:
            The bytes.
        """
        await self.pull(ref, progress=progress)
        return self.blobs.read(ref.digest)

    async def pull(self, ref: Any, *, progress: Callable[[int, int], None] | None = None) -> None:
        """As `fetch`, for what is too large to be read at once: it is in `blobs` when this returns."""
        if not self.blobs.claim(ref.digest):
            if not _BLOB_SERVICE.fullmatch(ref.service):
                raise InputError(f"{ref.service!r} is no service that gives blobs. Announce one on {BLOB!r}.")
            key = self.keys.service(ref.holder, ref.service)
            await fetch_blob(self.transport, key, ref.digest, ref.size_bytes, self.blobs, progress=progress)

    async def pull_announced(self, ref: Any, sender: NodeId, what: str, *, most_bytes: int) -> Digest:
        """Pulls what comes with an order, from whoever gave it.

        Args:
            ref: A `BlobRef`; None is refused like a wrong one.
            sender: Who gave the order.
            what: Named in errors, e.g. `the run's graph`.
            most_bytes: Most that is taken.

        Returns:
            The blob's name; it is in `blobs`.

        Raises:
            InputError: If it is somebody else's blob, or too large.
        """
        if ref is None or ref.holder != sender or not 0 < ref.size_bytes <= most_bytes:
            raise InputError(
                f"{sender!r} is to announce {what} as a blob of its own of at most {most_bytes:,} bytes, found {ref}."
            )
        await self.pull(ref)
        digest: Digest = ref.digest
        return digest

    async def info_of(self, node: NodeId, *, fresh: bool = False) -> NodeInfo:
        """Returns the info of a node; queried once, verified by its certificate, then cached.

        Args:
            node: Whom.
            fresh: Ask again.

        Returns:
            Its info.

        Raises:
            IdentityRefused: If its certificate is not by our authority or names another node or tier.
            Unreachable: If it does not answer.
        """
        if fresh or node not in self._known:
            question, nonce = make_question(self.make_nonce)
            try:
                key = self.keys.service(node, "info")
                reply = await self.transport.query(key, question, timeout_s=ORDER_TIMEOUT_S)
                self._known[node] = check_proof(self, node, reply, nonce)
            except (IdentityRefused, FrameRefused, RemoteError) as error:  # who answered first may not be who was asked
                try:
                    self._known[node] = (await proofs_of(self, node))[-1]
                except EdgewiseError:
                    raise error from None
        return self._known[node]

    async def proofs_of(self, node: NodeId) -> list[NodeInfo]:
        """As `proof.proofs_of`; the newest is remembered as `info_of` does."""
        found = await proofs_of(self, node)
        self._known[node] = found[-1]
        return found

    async def tell_displaced(self, node: NodeId, newer: Generation) -> None:
        """Tells every process of a name that a newer one proved itself.

        Args:
            node: The name.
            newer: The incarnation that proved itself.
        """
        message = Displaced(newer)
        frame = make_frame(kind_of(message), message, deadline_s=ORDER_TIMEOUT_S)
        await self.transport.query_all(self.keys.service(node, "control"), frame, timeout_s=ORDER_TIMEOUT_S)

    def uplink_to(self, node: NodeId) -> Transport:
        """Returns the session that leads directly to a parent; the attached one for every other node."""
        return self.uplinks[self._uplink_of.get(node, self.attached)]

    def set_parent(self, node: NodeId, index: int) -> None:
        """Records which uplink leads to a node."""
        self._uplink_of[node] = index

    def allow(self, origins: Origins, key: str) -> None:
        """Applies the data policy to an outgoing frame; raises PolicyViolation where it refuses.

        Args:
            origins: Data classes of the frame's tensors.
            key: Where it goes; a node not known yet, and any answer, counts as the cloud.
        """
        parts = key.split("/")
        known = self._known.get(NodeId(parts[3])) if len(parts) > 3 else None
        self.audit.allow(origins, known.tier if known is not None else Tier.CLOUD)

    def count_refusal(self, what: str) -> None:
        """Counts a refusal.

        Args:
            what: A sentence with names and without numbers, so that equal refusals are counted together.
        """
        what = what if what in self.refused or len(self.refused) < _MOST_REFUSALS else "…"
        self.refused[what] = self.refused.get(what, 0) + 1

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Runs a coroutine as a task whose exception is logged and reported; a quiet node starts none."""
        if self._is_quiet:
            work.close()
            work = _nothing()
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    async def quiet(self) -> None:
        """Withdraws declarations and cancels tasks; the uplinks stay open."""
        self._is_quiet = True
        await self.detach()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        """Quiets the node and closes its uplinks; idempotent."""
        await self.quiet()
        for transport in self.uplinks:
            await transport.close()

    def _reap(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        error = task.exception()
        assert error is not None
        log.error("%s: %s failed: %s: %s", self.name, task.get_name(), type(error).__name__, error)
        if self.on_failure is not None:
            self.on_failure(task.get_name(), error)

    def _dispatcher(self, service: str) -> Callable[[Frame], Awaitable[Frame]]:
        async def dispatch(frame: Frame) -> Frame:
            route = self._routes[service].get(frame.kind)
            if route is None:
                known = ", ".join(sorted(self._routes[service]))
                raise FrameRefused(f"{self.name} takes no {frame.kind!r} on {service}. It takes {known}.")
            sender = await self._verified(frame, route, service)
            answer = await route.handler(frame.read(route.message), frame, sender)
            message, tensors = answer if isinstance(answer, tuple) else (answer, ())
            self.grants.name(message, sender.node)
            return make_frame(kind_of(message), message, tensors, purpose=frame.purpose, run=frame.run)

        return dispatch

    async def _allow_blob(self, key: str, query: Frame, digest: Digest) -> None:
        asker = await self._proved(query, key)
        try:
            self.grants.check(asker.node, digest)
        except PolicyViolation:
            self.count_refusal(f"a blob that is not for {asker.node}")
            raise

    async def _verified(self, frame: Frame, route: Route, service: str) -> NodeInfo:
        sender = await self._proved(frame, self.keys.service(self.name, service))
        if route.tiers is not None and sender.tier not in route.tiers:
            self.count_refusal(f"{frame.kind} by {frame.sender}, a {sender.tier}")
            raise PolicyViolation(
                f"{frame.sender!r} is a {sender.tier}, {frame.kind!r} is taken from "
                f"{', '.join(sorted(route.tiers))} only. Send it from a node of that tier."
            )
        return sender

    async def _proved(self, frame: Frame, key: str) -> NodeInfo:
        """Who signed a frame; a refusal is counted and says how it may be mended."""
        try:
            return await self._prove(frame.sender, frame, key)
        except TransportError as error:
            # Not for good: a node that has just come back cannot be asked who it is yet. It may try again.
            self.count_refusal(f"{frame.kind} of {frame.sender or 'nobody'}, who could not be asked for a certificate")
            raise Unreachable(
                f"{self.name} cannot ask {frame.sender or 'nobody'!r} for its certificate: {error.message} "
                "Send it again once the link is back.",
                node=frame.sender,
            ) from error
        except IdentityRefused as error:
            self.count_refusal(f"{frame.kind} in the name of {frame.sender or 'nobody'}")
            log.warning("%s refuses %s in the name of %s: %s", self.name, frame.kind, frame.sender, error)
            raise IdentityRefused(str(error), **{**error.fields, "node": frame.sender}) from error

    async def _prove(self, node: NodeId, frame: Frame, key: str) -> NodeInfo:
        """Verifies that a node signed this frame for this key in this incarnation, and returns its info."""
        if node == self.name and frame.kind == kind_of(TakeOver):
            return self._prove_successor(frame, key)
        known = self._known.get(node)
        # An operator's sessions come and go under one certificate, and the one that answers may be leaving: what is
        # known of its name stands as long as its signature does.
        gives_orders = known is not None and not known.capability.cores
        stands = gives_orders and self.verifier.is_signed(node, frame.signature, addressed(frame.signed_bytes, key))
        info = await self.info_of(node, fresh=known is not None and known.generation != frame.generation and not stands)
        self.verifier.check(
            frame.sender, frame.generation, frame.sequence, frame.signature, addressed(frame.signed_bytes, key)
        )
        return info

    def _prove_successor(self, frame: Frame, key: str) -> NodeInfo:
        """Verifies that a process of this node's name and tier signed a frame, by a certificate of its own where it was renewed.

        Nobody else could be asked for that certificate: to this node's name this process answers.
        """
        certificate, verifier = frame.read(TakeOver).certificate, self.identity.verifier()
        _, tier = verifier.learn(certificate.encode() or self.identity.certificate_pem, expected=self.name)
        if tier != self.identity.tier or not verifier.is_signed(
            self.name, frame.signature, addressed(frame.signed_bytes, key)
        ):
            raise IdentityRefused(
                f"a process is to take over {self.name!r} and does not prove that it is one. It was refused.",
                reason=Reason.FORGED.value,
            )
        return msgspec.structs.replace(self.describe(), generation=frame.generation)

    async def _prove_answer(self, node: NodeId, key: str, answer: Frame) -> None:
        try:
            if answer.sender != node:
                raise IdentityRefused(f"{answer.sender!r} answers what {node!r} was asked. The answer does not count.")
            await self._prove(node, answer, key)
        except IdentityRefused as error:
            self.count_refusal(f"an answer in the name of {node}")
            log.warning("%s refuses an answer in the name of %s: %s", self.name, node, error)
            raise

    async def _perhaps_overtaken(self, node: NodeId, key: str, error: RemoteError) -> None:
        """Hears a refusal for being of an older incarnation, where the node that was asked signed it."""
        newest = error.fields.get("newest_generation")
        if error.fields.get("reason") != Reason.STALE_GENERATION or self.on_overtaken is None or error.reply is None:
            return
        with contextlib.suppress(EdgewiseError):  # who cannot prove that it refused did not
            await self._prove_answer(node, key, error.reply)
            self.on_overtaken(node, Generation(newest if isinstance(newest, int) else 0))

    async def _answer_info(self, question: Frame) -> Frame:
        info = msgspec.structs.replace(self.describe(), nonce=question.read(InfoRequest).nonce)
        return make_frame(kind_of(info), info)

    async def _answer_progress(self, _: Frame) -> Frame:
        progress = self.progress()
        return make_frame(kind_of(progress), progress)


async def _nothing() -> None:
    return None
