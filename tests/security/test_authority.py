from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgewise.core.errors import IdentityRefused, InputError
from edgewise.core.ids import Tier
from edgewise.security import Authority, Identity, create_authority, make_request
from edgewise.security.certificates import Subject, hosts_of, subject_of, tier_of


def test_a_node_folder_holds_three_files_and_a_private_key(device: Identity) -> None:
    assert sorted(path.name for path in device.folder.iterdir()) == ["ca.pem", "node.key", "node.pem"]
    assert stat.S_IMODE((device.folder / "node.key").stat().st_mode) == 0o600


def test_the_authoritys_key_is_private(authority: Authority) -> None:
    assert stat.S_IMODE((authority.folder / "ca.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(authority.folder.stat().st_mode) == 0o700


def test_a_certificate_names_tier_and_node(device: Identity) -> None:
    common = device.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    assert (common, subject_of(device.certificate)) == ("device", Subject("main", Tier.DEVICE, device.node))


def test_only_nodes_that_listen_may_be_tls_servers(device: Identity, edge: Identity) -> None:
    def serves(identity: Identity) -> bool:
        usage = identity.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        return ExtendedKeyUsageOID.SERVER_AUTH in usage

    assert (serves(device), serves(edge)) == (False, True)
    assert hosts_of(edge.certificate) == ("127.0.0.1", "::1", "localhost")
    assert hosts_of(device.certificate) == ()


def test_copied_folders_work_where_they_are_copied_to(device: Identity, tmp_path: Path) -> None:
    copied = shutil.copytree(device.folder, tmp_path / "elsewhere")
    assert Identity.load(copied).node == "device-1"


def test_an_authority_is_not_overwritten(authority: Authority) -> None:
    with pytest.raises(InputError, match="already holds an authority; a second one would lock every node out"):
        create_authority(authority.folder, "main")


def test_a_missing_authority_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no usable certificate authority .* Make one with 'edgewise ca init'"):
        Authority.load(tmp_path)


def test_an_authority_with_a_foreign_key_is_refused(authority: Authority, tmp_path: Path) -> None:
    create_authority(tmp_path / "ca", "other")
    shutil.copy(authority.folder / "ca.key", tmp_path / "ca" / "ca.key")
    with pytest.raises(InputError, match=r"do not belong together. Restore both files"):
        Authority.load(tmp_path / "ca")


def test_a_node_name_must_fit_in_keys(authority: Authority) -> None:
    with pytest.raises(InputError, match="is not usable in keys and certificates"):
        authority.issue("Device 1", Tier.DEVICE)


def test_a_key_born_on_the_node_never_reaches_the_authority(authority: Authority, tmp_path: Path) -> None:
    request = make_request(tmp_path / "node", "device-9", Tier.DEVICE)
    signed = authority.sign_request(request)
    assert (signed.key, signed.subject.node) == (b"", "device-9")
    assert Identity.load(signed.write(tmp_path / "node")).fleet == "main"
    assert stat.S_IMODE((tmp_path / "node" / "node.key").stat().st_mode) == 0o600


def test_a_request_does_not_overwrite_a_key(device: Identity) -> None:
    with pytest.raises(InputError, match="already holds a node's key"):
        make_request(device.folder, "device-1", Tier.DEVICE)


def test_a_request_for_foreign_hosts_needs_the_operators_word(authority: Authority, tmp_path: Path) -> None:
    request = make_request(tmp_path / "node", "edge-7", Tier.EDGE, hosts=("10.0.0.7",))
    with pytest.raises(IdentityRefused, match=r"asks for hosts \['10.0.0.7'\].*name them when signing"):
        authority.sign_request(request)
    signed = authority.sign_request(request, allow_hosts=("10.0.0.7",))
    assert hosts_of(x509.load_pem_x509_certificate(signed.certificate)) == ("10.0.0.7",)


def test_a_request_of_another_fleet_is_refused(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is for fleet 'other', this authority is of 'main'"):
        authority.sign_request(make_request(tmp_path, "device-9", Tier.DEVICE, fleet="other"))


def test_bytes_that_are_no_request_are_refused(authority: Authority) -> None:
    with pytest.raises(InputError, match="not a certificate request"):
        authority.sign_request(b"hello")


def test_revoking_lists_every_certificate_of_the_name(authority: Authority) -> None:
    authority.issue("device-5", Tier.DEVICE)
    authority.issue("device-5", Tier.DEVICE)
    assert authority.revoke("device-5") == 2
    assert authority.revoke("device-5") == 0
    assert {c.serial_number for c in authority.issued("device-5")} <= set(authority.revoked())


def test_revoking_an_unknown_name_is_an_error(authority: Authority) -> None:
    with pytest.raises(InputError, match="no certificate was issued to 'nobody'"):
        authority.revoke("nobody")


def test_a_uri_that_names_no_node_is_refused() -> None:
    with pytest.raises(InputError, match="does not name a node"):
        Subject.of_uri("https://main/device/device-1")


def test_a_misspelt_tier_gets_a_suggestion() -> None:
    assert tier_of("edge") is Tier.EDGE
    with pytest.raises(InputError, match=r"'devise' is not a tier. Did you mean 'device'"):
        tier_of("devise")


@pytest.mark.parametrize("days", [-1.0, 0.0, float("nan"), float("inf"), 1e12])
def test_a_certificate_that_is_never_valid_is_not_made(days: float, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"valid for more than 0 and at most 36,525 days, asked were "):
        create_authority(tmp_path / "ca", "main", days=days)
    assert not (tmp_path / "ca/ca.key").exists()
