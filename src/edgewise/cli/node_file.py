"""`--config node.toml` of `agent` and `coordinator`: the settings of a node as a file; an option on the command line wins.

tier = "device"
identity = "device-1"                    # paths are relative to the file
connect = ["tls/10.0.0.5:7447"]
task = "digits"
task_settings = { clients = 2 }
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from edgewise.core.errors import ConfigError, nearest

FILES = ("tokens", "http_certificate", "http_key")
PATHS = ("identity", "state", "capture", "task", "holdout", "judge", *FILES)
NEEDED = {"name": "node", "tier": "device", "identity": "node", "state": "node"}
"""Stand in, while a file is checked, for what an option may give."""
FOR_OTHERS = {
    "coordinator": "the verb says it: `edgewise coordinator` decides, `edgewise agent` does not",
    **dict.fromkeys(("holdout", "judge"), "only a coordinator has held-out data"),
    **dict.fromkeys(("task", "task_settings", "client", "engine"), "only an agent trains"),
    **dict.fromkeys(("http", "model_name", "buffer_bytes"), "only an agent answers requests"),
}
"""Settings that one of the two verbs does not have, and why."""


def read_node_file(path: Path, verb: str, known: Collection[str]) -> dict[str, Any]:
    """Reads a node's settings.

    Args:
        path: TOML.
        verb: `agent` or `coordinator`.
        known: Settings that the verb has.

    Returns:
        Value by setting, for those that the file has; paths as this process reaches them.

    Raises:
        ConfigError: If the file is missing or no TOML, has a key that the verb does not know, a value of another type or out of
            range, or names what is not there. It names file, line and key, and the nearest key.
    """
    from edgewise.core.config import convert, read_table
    from edgewise.fleet.node.settings import AgentSettings

    table, lines = read_table(path)
    for key in table:
        if key not in known:
            why = f"of {verb}: {FOR_OTHERS[key]}. Take it out." if key in FOR_OTHERS else f".{nearest(key, known)}"
            text = f"{path}:{lines.get(key, 1)} {key} is not a setting{'' if why[0] == '.' else ' '}{why}"
            raise ConfigError(text, file=str(path), key=key)
    settings = convert({**NEEDED, **table}, AgentSettings, source=str(path), lines=lines)
    found = {key: getattr(settings, key) for key in table}
    for key in (key for key in PATHS if found.get(key)):
        found[key] = _beside(path.parent, key, found[key], f"{path}:{lines[key]} {key}")
    return found


def _beside(folder: Path, key: str, text: str, place: str) -> str:
    """A path that the file names, from where this process stands; what must be there already is looked for."""
    from edgewise.training.job import BUILT_IN_TASKS

    if key in ("task", "judge") and text in BUILT_IN_TASKS:
        return text
    if key == "holdout":
        parts = (part.rpartition("=") for part in text.split(","))
        return ",".join(f"{model}{equals}{_beside(folder, 'file', name, place)}" for model, equals, name in parts)
    found = folder / text
    try:
        found.stat()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # no name that a file could have
        raise ConfigError(f"{place}: {text[:80]!r} cannot be a path: {error}. Correct it.") from None
    if key == "identity" and not found.is_dir():
        raise ConfigError(f"{place}: there is no folder {str(found)!r}. Paths are relative to the file; correct it.")
    if key in ("task", "judge", "file", *FILES) and not found.is_file():
        raise ConfigError(f"{place}: there is no file {str(found)!r}. Paths are relative to the file; correct it.")
    return str(found)
