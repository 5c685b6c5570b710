"""Tokens of HTTP clients: made once and shown once, stored as hashes with their roles, revoked without a restart.

    tokens.json     {"tokens": [{"name": "cam-7", "roles": ["infer"], "digest": "9f86d0…", …}]}, mode 0600

A token is 256 random bits, so its SHA-256 gives nothing to guess. Who checks them (`service/http_access.py`) reads the file
again when it has changed; a file that is gone or cannot be read lets nobody in.

Example:
    >>> import tempfile
    >>> file = TokenFile(Path(tempfile.mkdtemp()) / "tokens.json")
    >>> text = file.create("cam-7", ["infer"])
    >>> tokens = Tokens(file.path)
    >>> tokens.find(text).name
    'cam-7'
    >>> file.revoke("cam-7")
    >>> tokens.find(text) is None
    True
"""

from __future__ import annotations

import datetime as dt
import fcntl
import hashlib
import hmac
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from edgewise.core.errors import InputError, nearest
from edgewise.core.files import write_atomic
from edgewise.core.ids import node_id
from edgewise.security.certificates import utc_now

log = logging.getLogger("edgewise.security")

ROLES = {
    "infer": "ask models",
    "feedback": "say what was right",
    "metrics": "read metrics and statistics",
    "manage": "all of it",
}
"""Role -> what it may do."""
PREFIX = "edgewise_"
TOKEN_DAYS = 365.0
_SECRET_BYTES = 32
_OTHERS_MAY = 0o077


class Token(msgspec.Struct, frozen=True):
    """What is stored of a token.

    Attributes:
        name: Whose it is, unique in its file.
        roles: What it may do, of `ROLES`.
        digest: SHA-256 of its text, hexadecimal.
        created: When it was made.
        expires: Until when it is taken; None for ever.
    """

    name: str
    roles: tuple[str, ...]
    digest: str
    created: dt.datetime
    expires: dt.datetime | None = None

    def may(self, role: str) -> bool:
        """Whether it has a role."""
        return role in self.roles or "manage" in self.roles

    def is_expired(self, now: dt.datetime) -> bool:
        """Whether its time is over."""
        return self.expires is not None and now >= self.expires


class _Stored(msgspec.Struct):
    tokens: list[Token] = []


class TokenFile:
    """The file, as its operator changes it.

    Attributes:
        path: Where it is.
    """

    def __init__(self, path: str | Path, *, now: Callable[[], dt.datetime] = utc_now) -> None:
        self.path, self._now = Path(path), now

    def create(self, name: str, roles: Sequence[str], days: float = TOKEN_DAYS) -> str:
        """Makes a token.

        Args:
            name: Whose it is.
            roles: What it may do.
            days: How long it is taken; 0 for ever.

        Returns:
            Its text, which is nowhere else.

        Raises:
            InputError: If the name is taken or cannot be one, there is no such role, or the file cannot be read.
        """
        wanted = tuple(dict.fromkeys(roles))
        for role in wanted:
            if role not in ROLES:
                raise InputError(f"{role!r} is no role.{nearest(role, ROLES)}")
        if not wanted or days < 0.0:
            raise InputError(f"a token needs a role and days >= 0, given are {list(roles)} and {days:g}.")
        text, now = PREFIX + secrets.token_urlsafe(_SECRET_BYTES), self._now()
        expires = now + dt.timedelta(days=days) if days else None
        with self._changing() as stored:
            if any(token.name == name for token in stored.tokens):
                raise InputError(f"there is a token {name!r} in {str(self.path)!r}. Revoke it first, or choose a name.")
            stored.tokens.append(Token(str(node_id(name)), wanted, digest_of(text), now, expires))
        return text

    def revoke(self, name: str) -> None:
        """Takes a token away; whoever checks by this file refuses it from its next request on.

        Args:
            name: Whose it is.

        Raises:
            InputError: If there is none of that name.
        """
        with self._changing() as stored:
            left = [token for token in stored.tokens if token.name != name]
            if len(left) == len(stored.tokens):
                names = [token.name for token in stored.tokens]
                raise InputError(f"there is no token {name!r} in {str(self.path)!r}.{nearest(name, names)}")
            stored.tokens[:] = left

    def all(self) -> list[Token]:
        """What is stored.

        Raises:
            InputError: If the file is missing or cannot be read.
        """
        return read_tokens(self.path)

    @contextmanager
    def _changing(self) -> Iterator[_Stored]:
        """The content, written when the block ends; two operators go one after the other."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            stored = _Stored(read_tokens(self.path) if self.path.exists() else [])
            yield stored
            write_atomic(self.path, msgspec.json.format(msgspec.json.encode(stored), indent=1) + b"\n", mode=0o600)
        finally:
            os.close(folder)


class Tokens:
    """Finds whose a token is, by a file that may change at any time.

    Attributes:
        path: The file.
    """

    def __init__(self, path: str | Path, *, now: Callable[[], dt.datetime] = utc_now) -> None:
        self.path, self._now = Path(path), now
        self._seen: tuple[int, int, int] | None = None
        self._tokens: list[Token] = []

    def find(self, text: str) -> Token | None:
        """Whose a token is; every stored one is compared, each in constant time.

        Args:
            text: What a client sent.

        Returns:
            It; None if it is none, was revoked, or has expired.
        """
        self._read_again()
        digest, found = digest_of(text), None
        for token in self._tokens:
            if hmac.compare_digest(token.digest, digest):
                found = token
        return None if found is None or found.is_expired(self._now()) else found

    def _read_again(self) -> None:
        try:
            stat = self.path.stat()
            seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if seen == self._seen:
                return
            self._tokens, self._seen = read_tokens(self.path), seen
        except (OSError, InputError) as error:
            if self._seen is not None or self._tokens:
                log.error("no token is taken any more: %s", error)
            self._tokens, self._seen = [], None


def read_tokens(path: Path) -> list[Token]:
    """Reads a file of tokens.

    Args:
        path: As written by `TokenFile`.

    Returns:
        What is stored.

    Raises:
        InputError: If it is missing, open to others, or something else.
    """
    try:
        mode = path.stat().st_mode
        stored = msgspec.json.decode(path.read_bytes(), type=_Stored)
    except OSError as error:
        raise InputError(
            f"no tokens can be read from {str(path)!r}: {error.strerror or error}. Make one: edgewise token create NAME "
            f"--tokens {path}"
        ) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InputError(f"{str(path)!r} is no file of tokens: {error}. Move it away and make new ones.") from error
    if mode & _OTHERS_MAY:
        raise InputError(f"{str(path)!r} is open to others (mode {mode & 0o777:o}). Close it: chmod 600 {path}")
    return stored.tokens


def digest_of(text: str) -> str:
    """SHA-256 of a token's text, hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
