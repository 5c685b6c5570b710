"""Finds data sets in the folder of `EDGEWISE_DATA` and checks their digests; none are shipped.

Nothing is fetched unless the user gives the address and the sha256.
"""

from __future__ import annotations

import hashlib
import os
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from edgewise.core.array_file import read_arrays
from edgewise.core.errors import DataError
from edgewise.datasets.arrays import Arrays

VARIABLE = "EDGEWISE_DATA"
UCI_HAR = "uci_har/uci_har_raw.npz"
CHUNK_BYTES = 1 << 20


def find(relative: str, *, folder: str | Path | None = None, sha256: str = "") -> Path:
    """Finds a data file.

    Args:
        relative: Its path inside the data folder.
        folder: The data folder; by default what `EDGEWISE_DATA` names.
        sha256: Checked if given.

    Returns:
        The path.

    Raises:
        DataError: If no folder is named, the file is missing, or its digest differs.
    """
    named = folder or os.environ.get(VARIABLE, "")
    if not named:
        raise DataError(
            f"{relative!r} was looked for, but {VARIABLE} names no data folder. "
            f"Set {VARIABLE} to the folder that holds {relative}, "
            "or fetch it with edgewise.datasets.found.fetch(url, sha256, folder)."
        )
    path = Path(named) / relative
    if not path.is_file():
        raise DataError(
            f"data file {str(path)!r} does not exist. Put it there, point {VARIABLE} elsewhere, "
            "or fetch it with edgewise.datasets.found.fetch(url, sha256, folder)."
        )
    if sha256:
        _check(path, sha256)
    return path


def fetch(url: str, sha256: str, folder: str | Path, *, name: str = "", timeout_s: float = 30.0) -> Path:
    """Downloads one file from an address the user gives; stored only if its digest matches.

    Args:
        url: http, https or file.
        sha256: The digest the file must have.
        folder: Where it goes; made if missing.
        name: Its name there, with sub-folders; by default the last part of the address.
        timeout_s: Longest silence of the other side.

    Returns:
        The path; a file that is already there with the right digest is not fetched again.

    Raises:
        DataError: If the address cannot be read or the digest differs.
    """
    scheme = urlsplit(url).scheme
    if scheme not in ("http", "https", "file"):
        raise DataError(f"address {url!r} cannot be fetched: its scheme is {scheme!r}. Give http, https or file.")
    path = Path(folder) / (name or Path(urlsplit(url).path).name)
    if path.is_file() and digest_of_file(path) == sha256.lower():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as source, partial.open("wb") as target:
            while chunk := source.read(CHUNK_BYTES):
                target.write(chunk)
        _check(partial, sha256)
        partial.replace(path)
    except OSError as error:
        raise DataError(f"{url} could not be fetched: {error}. Check the address and the network.") from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def digest_of_file(path: str | Path) -> str:
    """Returns the sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def load_uci_har(folder: str | Path | None = None, *, sha256: str = "") -> tuple[Arrays, NDArray[np.int64]]:
    """Loads human activity data: 2.56 s windows of accelerometer and gyroscope, by person.

    Args:
        folder: The data folder; by default what `EDGEWISE_DATA` names.
        sha256: Checked if given.

    Returns:
        Inputs float32[n, 9, 128] (channels first) with targets int64[n] in 0..5, and the person int64[n].

    Raises:
        DataError: If the file is missing or is not in the expected form.

    Reference:
        Anguita et al., "A Public Domain Dataset for Human Activity Recognition Using Smartphones", ESANN 2013.
    """
    arrays = _read_npz(find(UCI_HAR, folder=folder, sha256=sha256), ("x", "y", "subject"))
    x = arrays["x"]
    if x.ndim != 3 or x.shape[2] != 9:
        raise DataError(f"{UCI_HAR} holds x of shape {x.shape}, needed is (n, steps, 9). Use the raw inertial signals.")
    inputs = np.ascontiguousarray(x.astype(np.float32).transpose(0, 2, 1))
    return Arrays.of(inputs, arrays["y"].astype(np.int64)), arrays["subject"].astype(np.int64)


def _read_npz(path: Path, keys: tuple[str, ...]) -> Mapping[str, NDArray[np.generic]]:
    try:
        arrays = read_arrays(path)
    except (OSError, DataError) as error:
        raise DataError(f"{str(path)!r} is not a readable npz archive: {error}. Fetch it again.") from error
    missing = [key for key in keys if key not in arrays]
    if missing:
        raise DataError(
            f"{str(path)!r} has no array {missing[0]!r}, found {sorted(arrays)[:10]}. Needed are {', '.join(keys)}."
        )
    return {key: arrays[key] for key in keys}


def _check(path: Path, sha256: str) -> None:
    found = digest_of_file(path)
    if found != sha256.lower():
        raise DataError(
            f"{str(path)!r} has sha256 {found}, needed is {sha256.lower()}. "
            "The file is damaged or another version; fetch it again."
        )
