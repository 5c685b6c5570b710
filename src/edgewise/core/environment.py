"""Reads what an operator sets once per machine, by environment variable; a job's settings are in its TOML file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgewise.core.errors import ConfigError, InputError, nearest

Value = str | Path | None


@dataclass(frozen=True, slots=True)
class Setting:
    """Describes one operator setting.

    Attributes:
        name: Short name.
        default: Text that stands if the variable is not set; "" for none.
        unit: `folder`, `file`, or the choices, separated by ` | `.
        help: One sentence.
    """

    name: str
    default: str
    unit: str
    help: str

    @property
    def variable(self) -> str:
        """Returns the name of its environment variable."""
        return f"EDGEWISE_{self.name.upper()}"

    def read(self, text: str) -> Value:
        """Parses the text of the variable.

        Raises:
            ConfigError: If it is none of the choices.
        """
        if self.unit in ("folder", "file"):
            return Path(text).expanduser() if text else None
        choices = self.unit.split(" | ")
        if text.upper() not in choices:
            raise ConfigError(f"{self.variable} is {text!r}.{nearest(text.upper(), choices)}")
        return text.upper()


SETTINGS: Mapping[str, Setting] = {
    made.name: made
    for made in (
        Setting("data", "", "folder", "Larger data sets for examples and tests; nothing is downloaded."),
        Setting("state", "~/.edgewise", "folder", "Where nodes keep blobs, logs and registries, one folder per node."),
        Setting("token_file", "", "file", "The token that `edgewise infer` sends, unless --token-file names another."),
        Setting("log", "INFO", "DEBUG | INFO | WARNING | ERROR", "How much a node writes to its log."),
    )
}


def setting(name: str, environ: Mapping[str, str] | None = None) -> Value:
    """Reads an operator setting.

    Args:
        name: One of `SETTINGS`.
        environ: Environment variables; the process's own by default.

    Returns:
        A path for folders (None if there is none), else text.

    Raises:
        InputError: If there is no such setting.
        ConfigError: If the variable's text cannot be used.

    Example:
        >>> setting("log", {"EDGEWISE_LOG": "debug"})
        'DEBUG'
    """
    if name not in SETTINGS:
        raise InputError(f"there is no setting {name!r}.{nearest(name, SETTINGS)}")
    known = SETTINGS[name]
    return known.read((os.environ if environ is None else environ).get(known.variable) or known.default)


def settings_table() -> str:
    """Formats the settings as a Markdown table, for `--help-settings` and the docs."""
    rows = [
        f"| `{s.variable}` | {s.default or '–'} | {s.unit.replace('|', chr(92) + '|')} | {s.help} |"
        for s in SETTINGS.values()
    ]
    return "\n".join(["| variable | default | unit | what it is |", "|---|---|---|---|", *rows])
