"""Reading and writing a report's folder: `report.json` and `index.html`."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from edgewise.core.errors import InputError
from edgewise.core.unreadable import UNREADABLE
from edgewise.service.report.schema import Report, explained

JSON_NAME = "report.json"
PAGE_NAME = "index.html"


def write_report(report: Report, folder: Path | str) -> Path:
    """Writes `report.json` and a page that needs nothing else.

    Null numbers without a reason get "not measured in this run". Each file appears whole or not at all.

    Args:
        report: What to write.
        folder: Made if it is not there.

    Returns:
        The page's path.
    """
    from edgewise.service.report.page import render_page

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    report = explained(report, {})
    _replace(folder / JSON_NAME, msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    _replace(folder / PAGE_NAME, render_page(report).encode())
    return folder / PAGE_NAME


def read_report(folder: Path | str) -> Report:
    """Reads a report back.

    Args:
        folder: The folder, or its `report.json`.

    Returns:
        The same value that was written.

    Raises:
        InputError: If there is no report, or it is not one.
    """
    path = Path(folder)
    path = path / JSON_NAME if path.is_dir() or path.suffix != ".json" else path
    try:
        return msgspec.json.decode(path.read_bytes(), type=Report)
    except FileNotFoundError:
        raise InputError(f"no report at {str(path)!r}. Run `edgewise demo`, or give the folder it wrote.") from None
    except UNREADABLE as error:
        raise InputError(f"{str(path)!r} is not a report: {error}. Write it again with `edgewise demo`.") from error


def _replace(path: Path, data: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(data)
    os.replace(partial, path)
