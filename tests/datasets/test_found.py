import hashlib

import numpy as np
import pytest

from edgewise.core.errors import DataError
from edgewise.core.provenance import origins_of
from edgewise.datasets.found import VARIABLE, fetch, find, load_uci_har


def _write_har(folder, **arrays):
    (folder / "uci_har").mkdir(exist_ok=True)
    x = np.arange(4 * 128 * 9, dtype=np.float16).reshape(4, 128, 9)
    whole = {"x": x, "y": np.array([0, 1, 2, 5], np.uint8), "subject": np.array([1, 1, 2, 2], np.uint8)} | arrays
    np.savez(folder / "uci_har/uci_har_raw.npz", **{k: v for k, v in whole.items() if v is not None})
    return x


def test_no_data_folder_says_what_to_do(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(
        DataError, match=r"EDGEWISE_DATA names no data folder.*fetch it with edgewise.datasets.found.fetch"
    ):
        find("a.npz")


def test_a_missing_file_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(DataError, match=r"does not exist. Put it there, point EDGEWISE_DATA elsewhere"):
        find("a.npz")


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"changed")
    with pytest.raises(DataError, match=r"has sha256 .*, needed is 00.*damaged or another version"):
        find("a", folder=tmp_path, sha256="00")


def test_fetch_keeps_a_file_with_the_right_digest_only(tmp_path):
    (tmp_path / "source").write_bytes(b"digits")
    url, digest = (tmp_path / "source").as_uri(), hashlib.sha256(b"digits").hexdigest()
    assert fetch(url, digest, tmp_path / "data", name="x/digits.bin").read_bytes() == b"digits"
    with pytest.raises(DataError, match="damaged or another version"):
        fetch(url, "0" * 64, tmp_path / "data", name="bad")
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["x"]


def test_fetch_does_not_fetch_what_is_there(tmp_path):
    (tmp_path / "a").write_bytes(b"digits")
    digest = hashlib.sha256(b"digits").hexdigest()
    assert fetch("file:///nowhere/a", digest, tmp_path) == tmp_path / "a"


def test_an_address_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"could not be fetched: .* Check the address"):
        fetch((tmp_path / "missing").as_uri(), "00", tmp_path)


def test_an_unknown_scheme_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"its scheme is 'ftp'. Give http, https or file"):
        fetch("ftp://example.org/a", "00", tmp_path)


def test_uci_har_comes_channels_first_and_traced(monkeypatch, tmp_path):
    x = _write_har(tmp_path)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    arrays, subjects = load_uci_har()
    assert arrays.inputs.shape == (4, 9, 128)
    assert np.array_equal(arrays.inputs[1, :, 3], x[1, 3].astype(np.float32))
    assert arrays.targets.dtype == subjects.dtype == np.int64
    assert subjects.tolist() == [1, 1, 2, 2]
    assert origins_of(arrays.inputs) == {"raw"}


def test_an_archive_without_a_key_is_refused(tmp_path):
    _write_har(tmp_path, subject=None)
    with pytest.raises(DataError, match=r"has no array 'subject', found .*Needed are x, y, subject"):
        load_uci_har(tmp_path)


def test_windows_of_another_form_are_refused(tmp_path):
    _write_har(tmp_path, x=np.zeros((4, 561), np.float16))
    with pytest.raises(DataError, match=r"x of shape \(4, 561\), needed is \(n, steps, 9\)"):
        load_uci_har(tmp_path)


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    (tmp_path / "uci_har").mkdir()
    (tmp_path / "uci_har/uci_har_raw.npz").write_bytes(b"not a zip")
    with pytest.raises(DataError, match="is not a readable npz archive"):
        load_uci_har(tmp_path)
