"""Which model is meant where a fleet or a device serves several, and what one may be called."""

from __future__ import annotations

from collections.abc import Collection

from edgewise.core.errors import InputError, nearest


def choose_model(names: Collection[str], wanted: str = "", *, are: str = "in force") -> str:
    """Chooses a model by name; without one, the only model there is.

    Args:
        names: Those there are.
        wanted: As said; "" if nothing was said.
        are: What they are, for the error's text.

    Returns:
        The name.

    Raises:
        InputError: If there is no such model, or none is named and there are several; it lists them.
    """
    if wanted in names:
        return wanted
    if not names:
        raise InputError(f"no model is {are} on this fleet. Train one, or put one there with `edgewise plan --deploy`.")
    if wanted:
        raise InputError(f"no model {wanted!r} is {are} here.{nearest(wanted, names)}")
    if len(names) > 1:
        raise InputError(f"several models are {are}: {', '.join(sorted(names))}. Say which, with --model NAME.")
    return next(iter(names))


MOST_CHARACTERS = 128
_TAKEN = {"", ".", "..", "stats"}
"""No name, or another thing at the endpoint."""


def check_model_name(name: str) -> None:
    """Refuses names that the endpoint, a file or a table could not hold.

    Args:
        name: What a model is to be called.

    Raises:
        InputError: If it is empty or long, has a slash or a character that cannot be seen, or is a word of the protocol.
    """
    if name in _TAKEN or len(name) > MOST_CHARACTERS or "/" in name or not name.isprintable() or name != name.strip():
        raise InputError(
            f"{name[:MOST_CHARACTERS]!r} cannot be a model's name: it is a part of its address. Give it one of 1 to "
            f"{MOST_CHARACTERS} visible characters without '/', e.g. --name digits; {sorted(_TAKEN)} are taken."
        )


def model_name_of(file_stem: str) -> str:
    """What a model is called after its file, whatever that is called.

    Args:
        file_stem: The file's name without its ending.

    Returns:
        A name that `check_model_name` takes: what cannot be seen is `_`, what is too long is cut, a word of the protocol
        ends in `_`.
    """
    seen = "".join(c if c.isprintable() and c != "/" else "_" for c in file_stem).strip()[:MOST_CHARACTERS].strip()
    return f"{seen}_" if seen in _TAKEN else seen
