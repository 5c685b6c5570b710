"""Verifies who signed a frame, and accepts each signed frame once.

A transport layer above passes the fields of its frames; this file knows no frame. Every refusal is an
`IdentityRefused` whose `fields["reason"]` is one of `Reason`, is counted by (claimed name, proven name, reason)
and is logged under `edgewise.security` with both names.
"""

from __future__ import annotations

import datetime as dt
import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgewise.core.errors import IdentityRefused, InputError
from edgewise.core.ids import NodeId, Tier
from edgewise.security.certificates import SIGNATURE, UNPARSED, Subject, subject_of, utc_now
from edgewise.security.refusal import Reason, future_refusal, refusal
from edgewise.security.replay import ReplayWindow

LOG = logging.getLogger("edgewise.security")
_MAX_SUSPECTS = 64
"""Keys tried to name the real signer of a forged frame; bounds what a flood can cost."""
_MAX_COUNTED = 4096
"""Distinct (claimed, proven, reason) counted; further ones fall under `…`."""


@dataclass(frozen=True, slots=True)
class _LearnedKey:
    subject: Subject
    certificate: x509.Certificate
    key: ec.EllipticCurvePublicKey


class Verifier:
    """Holds the certificates one node has learned and checks signed frames against them; thread-safe."""

    def __init__(
        self,
        ca_pem: bytes,
        *,
        revoked: bytes | Path | Collection[int] = (),
        windows: dict[str, ReplayWindow] | None = None,
        now: Callable[[], dt.datetime] = utc_now,
    ) -> None:
        """Makes a verifier.

        Args:
            ca_pem: The fleet's authority.
            revoked: The authority's signed list (`revoked.crl`), its path, or serial numbers. A path is read again
                whenever the file changes, so that a copied list takes effect at the next frame.
            windows: Replay windows of an earlier process, by sender, as `windows` gave them.
            now: The wall clock.

        Raises:
            IdentityRefused: If the list is not signed by the authority.
        """
        self._ca = _read_certificate(ca_pem, "the authority")
        self._now = now
        self._known: OrderedDict[str, _LearnedKey] = OrderedDict()
        self._former: dict[str, _LearnedKey] = {}
        self._windows = dict(windows or {})
        self._refused: Counter[tuple[str, str, str]] = Counter()
        self._lock = threading.RLock()
        self._list_file = revoked if isinstance(revoked, Path) else None
        self._list_stamp = -1
        self._revoked: frozenset[int] = frozenset()
        if not isinstance(revoked, Path):
            self.revoke(revoked)
        self._reload()

    def revoke(self, revoked: bytes | Collection[int]) -> None:
        """Replaces the list of revoked certificates.

        Args:
            revoked: `revoked.crl`, PEM, or serial numbers.

        Raises:
            IdentityRefused: If the list is not signed by the authority.
        """
        self._revoked = frozenset(_read_revocations(revoked, self._ca) if isinstance(revoked, bytes) else revoked)

    def learn(self, certificate_pem: bytes, *, expected: str | None = None) -> tuple[NodeId, Tier]:
        """Stores a node's certificate, after checking authority, validity, purpose, fleet and revocation.

        Args:
            certificate_pem: As the node shows it.
            expected: The name under which it was shown; None where there was none.

        Returns:
            Name and tier it proves. Beside another certificate of the same name, e.g. a renewed one, the one before counts
            as long as it is valid: which process is heard is said by its generation.

        Raises:
            IdentityRefused: With the reason; counted and logged.
        """
        claimed = expected or "?"
        try:
            certificate = _read_certificate(certificate_pem, repr(claimed))
            subject = self._judge(certificate)
        except UNPARSED as cause:  # a part that is looked at only now
            error = refusal(
                Reason.UNREADABLE, f"the certificate of {claimed!r} cannot be read: {cause}. Issue a new one."
            )
            self._count(claimed, "nobody", error)
            raise error from cause
        except IdentityRefused as error:
            self._count(claimed, "nobody", error)
            raise
        if expected is not None and subject.node != expected:
            misnamed = refusal(
                Reason.WRONG_NAME,
                f"{expected!r} showed the certificate of {subject.node!r}. Start the node with its own folder.",
            )
            self._count(expected, subject.node, misnamed)
            raise misnamed
        key = certificate.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        with self._lock:
            before = self._known.get(subject.node)
            if before is not None and before.certificate != certificate:
                self._former[subject.node] = before
            self._known[subject.node] = _LearnedKey(subject, certificate, key)
            self._known.move_to_end(subject.node)
        return subject.node, subject.tier

    def check(
        self,
        sender: str,
        generation: int,
        sequence: int,
        signature: bytes,
        signed_bytes: bytes,
        *,
        tiers: Collection[Tier] = tuple(Tier),
        link: str = "",
    ) -> tuple[NodeId, Tier]:
        """Checks the signature, replay window and tier of a frame.

        Args:
            sender: The name the frame claims.
            generation: The sender's incarnation.
            sequence: The frame's number in it.
            signature: The frame's signature; empty if unsigned.
            signed_bytes: What it covers.
            tiers: Tiers that may send this kind.
            link: Name of the neighbour it came through, where known; for the log.

        Returns:
            Name and tier, proved.

        Raises:
            IdentityRefused: With the reason; counted and logged with the claimed and the proven name.
        """
        known = self._signed_by(sender, signature, signed_bytes)
        error, proven = self._judge_frame(known, sender, signature, signed_bytes, tiers)
        if error is None:
            assert known is not None
            error, proven = self._take(sender, generation, sequence), sender
            if error is None:
                return known.subject.node, known.subject.tier
        self._count(sender, proven or link or "nobody", error)
        raise error

    def check_generation(self, sender: str, generation: int, proven: str = "nobody") -> None:
        """Refuses an incarnation that would begin far in the future.

        Args:
            sender: Whose.
            generation: Its start, in ns.
            proven: Who is known to have said so.

        Raises:
            IdentityRefused: If it is more than `MOST_AHEAD_S` ahead; counted and logged.
        """
        error = future_refusal(sender, generation, self._now())
        if error is not None:
            self._count(sender, proven, error)
            raise error

    def is_signed(self, sender: str, signature: bytes, signed_bytes: bytes) -> bool:
        """Returns whether a signature matches the certificate learned for a name, without replay or tier checks.

        Args:
            sender: The name.
            signature: A frame's signature.
            signed_bytes: What it covers.
        """
        known = self._signed_by(sender, signature, signed_bytes)
        return known is not None and _is_signed(known, signature, signed_bytes)

    def knows(self, node: str) -> bool:
        """Returns whether a certificate of that name was learned."""
        with self._lock:
            return node in self._known

    @property
    def windows(self) -> dict[str, ReplayWindow]:
        """Returns the replay windows by sender; store them where a restart must not take a frame twice."""
        with self._lock:
            return dict(self._windows)

    @property
    def refused(self) -> dict[tuple[str, str, str], int]:
        """Returns how many were refused, by (claimed name, proven name or link, reason)."""
        with self._lock:
            return dict(self._refused)

    def _signed_by(self, sender: str, signature: bytes, signed_bytes: bytes) -> _LearnedKey | None:
        """The certificate of a name that a frame is signed by, or the last learned of it."""
        with self._lock:
            known, former = self._known.get(sender), self._former.get(sender)
        if former is None or not signature or (known is not None and _is_signed(known, signature, signed_bytes)):
            return known  # first: a certificate that was renewed for the same key stands in place of the one before
        return former if _is_signed(former, signature, signed_bytes) else known

    def _judge(self, certificate: x509.Certificate) -> Subject:
        try:
            certificate.verify_directly_issued_by(self._ca)
        except (ValueError, TypeError, InvalidSignature):
            raise refusal(
                Reason.WRONG_AUTHORITY,
                f"the certificate of {_name(certificate)} was not issued by this fleet's authority. "
                "Issue one with the authority whose ca.pem this node has.",
            ) from None
        self._judge_validity(certificate)
        try:
            subject = subject_of(certificate)
        except InputError as error:
            raise refusal(Reason.UNREADABLE, error.message) from None
        fleet = self._ca.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value
        if subject.fleet != fleet:
            raise refusal(Reason.WRONG_FLEET, f"{subject.node!r} is of fleet {subject.fleet!r}, this is {fleet!r}.")
        if not _is_client(certificate):
            raise refusal(
                Reason.WRONG_PURPOSE,
                f"the certificate of {subject.node!r} is not for nodes. Issue one with 'edgewise ca issue'.",
            )
        return subject

    def _judge_validity(self, certificate: x509.Certificate) -> None:
        now = self._now()
        if now > certificate.not_valid_after_utc:
            raise refusal(
                Reason.EXPIRED,
                f"the certificate of {_name(certificate)} expired {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC. "
                "Issue a new one with 'edgewise ca issue'.",
            )
        if now < certificate.not_valid_before_utc:
            raise refusal(
                Reason.NOT_YET_VALID,
                f"the certificate of {_name(certificate)} is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC, "
                f"this node's clock says {now:%Y-%m-%d %H:%M}. Set the clock.",
            )
        self._reload()
        if certificate.serial_number in self._revoked:
            raise refusal(
                Reason.REVOKED,
                f"the certificate of {_name(certificate)} was revoked. Issue a new one if it may return.",
            )

    def _reload(self) -> None:
        if self._list_file is None:
            return
        try:
            stamp = self._list_file.stat().st_mtime_ns
        except FileNotFoundError:
            return
        if stamp == self._list_stamp:
            return
        self._list_stamp = stamp
        try:
            self.revoke(self._list_file.read_bytes())
        except IdentityRefused as error:
            LOG.error("%s is not used, the former list stands: %s", self._list_file, error)

    def _judge_frame(
        self, known: _LearnedKey | None, sender: str, signature: bytes, signed_bytes: bytes, tiers: Collection[Tier]
    ) -> tuple[IdentityRefused | None, str]:
        if not signature:
            return refusal(
                Reason.UNSIGNED, f"a frame claims to be from {sender!r} and is not signed. Frames of this kind are."
            ), ""
        if known is None:
            proven = self._signer(signature, signed_bytes)
            return refusal(
                Reason.MISSING,
                f"no certificate of {sender!r} is known, its frame is signed by {proven or 'nobody known'}. "
                "Have the node show its certificate first.",
            ), proven
        if not _is_signed(known, signature, signed_bytes):
            proven = self._signer(signature, signed_bytes)
            return refusal(
                Reason.FORGED,
                f"a frame claims to be from {sender!r} and is signed by {proven or 'nobody known'}. It was refused.",
            ), proven
        try:
            self._judge_validity(known.certificate)
        except IdentityRefused as error:
            return error, sender
        if known.subject.tier not in tiers:
            allowed = ", ".join(sorted(tiers))
            return refusal(
                Reason.WRONG_TIER,
                f"{sender!r} is of tier {known.subject.tier.value}, frames of this kind come from {allowed}.",
            ), sender
        return None, sender

    def _take(self, sender: str, generation: int, sequence: int) -> IdentityRefused | None:
        if (ahead := future_refusal(sender, generation, self._now())) is not None:
            return ahead
        with self._lock:
            window = self._windows.get(sender, ReplayWindow())
            taken = window.take(generation, sequence)
            if isinstance(taken, ReplayWindow):
                self._windows[sender] = taken
                return None
        return refusal(
            Reason(taken),
            f"frame {sequence} of {sender!r}, generation {generation}, is {taken.replace('_', ' ')}: the newest taken is "
            f"{window.newest} of generation {window.generation}. Send it again under a new number.",
            newest_generation=window.generation,
        )

    def _signer(self, signature: bytes, signed_bytes: bytes) -> str:
        with self._lock:
            suspects = list(reversed(self._known.values()))[:_MAX_SUSPECTS]
        return next((k.subject.node for k in suspects if _is_signed(k, signature, signed_bytes)), "")

    def _count(self, claimed: str, proven: str, error: IdentityRefused) -> None:
        key = (claimed, proven, str(error.fields["reason"]))
        with self._lock:
            if key not in self._refused and len(self._refused) >= _MAX_COUNTED:
                key = ("…", "…", key[2])
            self._refused[key] += 1
            times = self._refused[key]
        error.fields.update(claimed=claimed, proven=proven)
        if times & (times - 1) == 0:  # 1st, 2nd, 4th, … : a flood does not fill the disk
            LOG.warning("refused %s: claimed %r, proven %r, %d times: %s", key[2], claimed, proven, times, error)


def _is_signed(known: _LearnedKey, signature: bytes, signed_bytes: bytes) -> bool:
    try:
        known.key.verify(signature, signed_bytes, SIGNATURE)
    except InvalidSignature:
        return False
    return True


def _is_client(certificate: x509.Certificate) -> bool:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return ExtendedKeyUsageOID.CLIENT_AUTH in usage and isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)


def _name(certificate: x509.Certificate) -> str:
    try:
        return repr(str(subject_of(certificate).node))
    except InputError:
        return repr(certificate.subject.rfc4514_string())


def _read_certificate(pem: bytes, whose: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except UNPARSED:
        what = "no certificate" if not pem else "something that is not a certificate"
        reason = Reason.UNREADABLE if pem else Reason.MISSING
        raise refusal(reason, f"{whose} showed {what}. Issue one with 'edgewise ca issue'.") from None


def _read_revocations(crl_pem: bytes, ca: x509.Certificate) -> tuple[int, ...]:
    key = ca.public_key()
    try:
        crl = x509.load_pem_x509_crl(crl_pem)
        is_ours = isinstance(key, ec.EllipticCurvePublicKey) and crl.is_signature_valid(key)
        serials = tuple(entry.serial_number for entry in crl) if is_ours else ()
    except UNPARSED as error:
        raise refusal(Reason.UNREADABLE, f"the revocation list is not readable: {error}.") from None
    if not is_ours:
        raise refusal(Reason.WRONG_AUTHORITY, "the revocation list is not signed by this fleet's authority.")
    return serials
