"""Certificates, requests, revocation lists and keys: PEM as text, DER inside it byte by byte, real signatures at times."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from edgewise.core.ids import Tier
from edgewise.security import Identity, create_authority
from edgewise.security.authority import Authority, make_request
from edgewise.security.verifier import Verifier
from tests.fuzz.mutate import mutated_bytes, overwritten
from tests.fuzz.target import Check, Target


@cache
def _made() -> dict[str, Any]:
    """An authority with a node, a request and a revocation; in memory."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        authority = create_authority(folder / "ca", "fuzz")
        files = authority.issue("device-1", Tier.DEVICE, folder=folder / "device-1")
        other = authority.issue("edge-1", Tier.EDGE)
        authority.revoke("edge-1")
        request = make_request(folder / "device-2", "device-2", Tier.DEVICE)
        return {
            "ca": {path.name: path.read_bytes() for path in (folder / "ca").glob("*.*")},
            "node": {path.name: path.read_bytes() for path in (folder / "device-1").glob("*.*")},
            "certificates": [files.certificate, other.certificate, files.ca],
            "requests": [request, make_request(folder / "edge-2", "edge-2", Tier.EDGE)],
            "lists": [(folder / "ca" / "revoked.crl").read_bytes()],
        }


def mutated_pem(rng: Random, seeds: Sequence[bytes]) -> bytes:
    """PEM with its DER changed (mostly of the same length, so that it is parsed on), or its text."""
    if rng.random() < 0.3:
        return mutated_bytes(rng, seeds)
    head, *lines, tail = rng.choice(seeds).strip().split(b"\n")
    data = base64.b64decode(b"".join(lines))
    data = overwritten(rng, data) if rng.random() < 0.7 else mutated_bytes(rng, [data])
    return b"\n".join((head, base64.b64encode(data), tail, b""))


def _verifying(ask: Callable[[Verifier, bytes], object]) -> Callable[[], Any]:
    @contextmanager
    def opened() -> Iterator[Check]:
        verifier = Verifier(_made()["ca"]["ca.pem"])

        def check(data: bytes) -> str:
            ask(verifier, data)
            return "taken"

        yield check

    return opened


@contextmanager
def _signing() -> Iterator[Check]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, data in _made()["ca"].items():
            (folder / file).write_bytes(data)
        (folder / "issued").mkdir(exist_ok=True)
        authority = Authority.load(folder)

        def check(data: bytes) -> str:
            authority.sign_request(data)
            return "signed"

        yield check


@contextmanager
def _loading() -> Iterator[Check]:
    """The node's folder, one of whose files is the input; the first byte says which."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def check(data: bytes) -> str:
            whole = _made()["node"]
            for file, content in whole.items():
                (folder / file).write_bytes(content)
            (folder / sorted(whole)[(data[0] if data else 0) % len(whole)]).write_bytes(data[1:])
            Identity.load(folder)
            return "loaded"

        yield check


def _files() -> list[bytes]:
    return [bytes((n,)) + content for n, (_, content) in enumerate(sorted(_made()["node"].items()))]


def mutated_file(rng: Random, seeds: Sequence[bytes]) -> bytes:
    """One of the files changed."""
    seed = rng.choice(seeds)
    return seed[:1] + mutated_pem(rng, [seed[1:]])


TARGETS = (
    Target("certificates", 1, lambda: _made()["certificates"], _verifying(lambda v, data: v.learn(data)), mutated_pem),
    Target("revocation lists", 1, lambda: _made()["lists"], _verifying(lambda v, data: v.revoke(data)), mutated_pem),
    Target("requests", 0.5, lambda: _made()["requests"], _signing, mutated_pem),
    Target("identities", 0.5, _files, _loading, mutated_file),
)
