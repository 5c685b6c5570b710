from __future__ import annotations

import datetime as dt
import logging
import shutil
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from edgewise.core.errors import IdentityRefused, InputError
from edgewise.core.ids import Tier
from edgewise.security import Authority, Identity, Reason, Verifier, create_authority
from edgewise.security.certificates import (
    alternative_names,
    certificate_builder,
    certificate_pem,
    key_usage,
    utc_now,
)


def later(days: float) -> dt.datetime:
    return utc_now() + dt.timedelta(days=days)


@pytest.fixture
def verifier(authority: Authority, device: Identity, edge: Identity) -> Verifier:
    made = Verifier(authority.ca_pem)
    made.learn(device.certificate_pem)
    made.learn(edge.certificate_pem)
    return made


def test_a_signed_frame_is_accepted_once(verifier: Verifier, device: Identity) -> None:
    signature = device.sign(b"frame")
    assert 64 <= len(signature) <= 72
    assert verifier.check("device-1", 1, 0, signature, b"frame") == ("device-1", Tier.DEVICE)
    with pytest.raises(IdentityRefused, match="frame 0 of 'device-1', generation 1, is replayed") as caught:
        verifier.check("device-1", 1, 0, signature, b"frame")
    assert caught.value.fields["reason"] == "replayed"


def test_an_older_epoch_is_refused(verifier: Verifier, device: Identity) -> None:
    verifier.check("device-1", 2, 0, device.sign(b"b"), b"b")
    with pytest.raises(IdentityRefused, match="is stale generation: the newest taken is 0 of generation 2"):
        verifier.check("device-1", 1, 7, device.sign(b"a"), b"a")


def test_a_restarted_verifier_takes_no_frame_twice(authority: Authority, verifier: Verifier, device: Identity) -> None:
    verifier.check("device-1", 1, 0, device.sign(b"a"), b"a")
    restarted = Verifier(authority.ca_pem, windows=verifier.windows)
    restarted.learn(device.certificate_pem)
    with pytest.raises(IdentityRefused, match="replayed"):
        restarted.check("device-1", 1, 0, device.sign(b"a"), b"a")


def test_a_forged_name_is_counted_and_logged_with_both_names(
    verifier: Verifier, edge: Identity, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        caplog.at_level(logging.WARNING, "edgewise.security"),
        pytest.raises(IdentityRefused, match="claims to be from 'device-1' and is signed by edge-1") as caught,
    ):
        verifier.check("device-1", 1, 0, edge.sign(b"x"), b"x", link="edge-1")
    assert (caught.value.fields["claimed"], caught.value.fields["proven"]) == ("device-1", "edge-1")
    assert verifier.refused == {("device-1", "edge-1", "forged"): 1}
    assert "claimed 'device-1', proven 'edge-1'" in caplog.text


def test_a_forged_frame_does_not_use_up_the_true_senders_number(
    verifier: Verifier, device: Identity, edge: Identity
) -> None:
    with pytest.raises(IdentityRefused, match="signed by edge-1"):
        verifier.check("device-1", 9, 9, edge.sign(b"x"), b"x")
    assert verifier.check("device-1", 1, 0, device.sign(b"y"), b"y") == ("device-1", Tier.DEVICE)


def test_a_changed_frame_is_refused(verifier: Verifier, device: Identity) -> None:
    with pytest.raises(IdentityRefused, match="signed by nobody known"):
        verifier.check("device-1", 1, 0, device.sign(b"frame"), b"fromage", link="edge-1")
    assert verifier.refused == {("device-1", "edge-1", "forged"): 1}


def test_an_unsigned_frame_is_refused(verifier: Verifier) -> None:
    with pytest.raises(IdentityRefused, match="claims to be from 'device-1' and is not signed"):
        verifier.check("device-1", 1, 0, b"", b"frame")


def test_a_sender_without_known_certificate_is_refused(verifier: Verifier, device: Identity) -> None:
    with pytest.raises(IdentityRefused, match="no certificate of 'device-2' is known, its frame is signed by device-1"):
        verifier.check("device-2", 1, 0, device.sign(b"x"), b"x")


def test_a_tier_that_may_not_send_this_kind_is_refused(verifier: Verifier, device: Identity) -> None:
    with pytest.raises(
        IdentityRefused, match="'device-1' is of tier device, frames of this kind come from cloud, edge"
    ):
        verifier.check("device-1", 1, 0, device.sign(b"x"), b"x", tiers=(Tier.EDGE, Tier.CLOUD))


def test_a_flood_is_counted_and_logged_at_powers_of_two(
    verifier: Verifier, edge: Identity, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "edgewise.security"):
        for _ in range(20):
            with pytest.raises(IdentityRefused, match="signed by edge-1"):
                verifier.check("device-1", 1, 0, edge.sign(b"x"), b"x")
    assert verifier.refused[("device-1", "edge-1", "forged")] == 20
    assert len(caplog.records) == 5  # 1, 2, 4, 8, 16


def test_invented_names_do_not_grow_the_counters_without_bound(
    verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgewise.security.verifier._MAX_COUNTED", 3)
    for index in range(10):
        with pytest.raises(IdentityRefused, match="not signed"):
            verifier.check(f"invented-{index}", 1, 0, b"", b"x")
    assert verifier.refused[("…", "…", "unsigned")] == 7
    assert sum(verifier.refused.values()) == 10


def test_an_expired_certificate_is_refused(authority: Authority) -> None:
    expired = authority.issue("device-3", Tier.DEVICE, days=1e-9)
    with pytest.raises(IdentityRefused, match=r"certificate of 'device-3' expired .* Issue a new one"):
        Verifier(authority.ca_pem).learn(expired.certificate)


def test_a_certificate_that_expires_while_known_is_refused_from_then_on(authority: Authority, device: Identity) -> None:
    times = [utc_now()]
    verifier = Verifier(authority.ca_pem, now=lambda: times[0])
    verifier.learn(device.certificate_pem)
    times[0] = later(366)
    with pytest.raises(IdentityRefused, match="expired") as caught:
        verifier.check("device-1", 1, 0, device.sign(b"x"), b"x")
    assert caught.value.fields["reason"] == Reason.EXPIRED


def test_a_clock_behind_the_certificate_is_named(authority: Authority, device: Identity) -> None:
    with pytest.raises(IdentityRefused, match=r"is valid from .*this node's clock says .* Set the clock"):
        Verifier(authority.ca_pem, now=lambda: later(-30)).learn(device.certificate_pem)


def test_another_authoritys_certificate_is_refused(authority: Authority, tmp_path: Path) -> None:
    other = create_authority(tmp_path, "main").issue("device-1", Tier.DEVICE)
    with pytest.raises(IdentityRefused, match="of 'device-1' was not issued by this fleet's authority"):
        Verifier(authority.ca_pem).learn(other.certificate)


def test_another_nodes_certificate_is_refused_with_both_names(authority: Authority, edge: Identity) -> None:
    verifier = Verifier(authority.ca_pem)
    with pytest.raises(IdentityRefused, match="'device-1' showed the certificate of 'edge-1'"):
        verifier.learn(edge.certificate_pem, expected="device-1")
    assert verifier.refused == {("device-1", "edge-1", "wrong_name"): 1}
    assert not verifier.knows("edge-1")


@pytest.mark.parametrize(
    ("shown", "message"),
    [(b"", "'device-1' showed no certificate"), (b"hello", "showed something that is not a certificate")],
)
def test_a_missing_certificate_is_named(authority: Authority, shown: bytes, message: str) -> None:
    with pytest.raises(IdentityRefused, match=message):
        Verifier(authority.ca_pem).learn(shown, expected="device-1")


def test_the_authoritys_own_certificate_is_no_node(authority: Authority) -> None:
    with pytest.raises(IdentityRefused, match="names exactly one node"):
        Verifier(authority.ca_pem).learn(authority.ca_pem)


def test_a_certificate_for_another_purpose_is_refused(authority: Authority, device: Identity) -> None:
    public = device.certificate.public_key()
    builder = certificate_builder(device.subject.distinguished, authority.certificate.subject, public, utc_now(), 1)
    builder = builder.add_extension(alternative_names(device.subject, ()), critical=False)
    odd = builder.add_extension(key_usage(authority=False), critical=True).sign(authority.key, hashes.SHA256())
    with pytest.raises(IdentityRefused, match="certificate of 'device-1' is not for nodes"):
        Verifier(authority.ca_pem).learn(certificate_pem(odd))


def test_a_certificate_naming_another_fleet_is_refused(authority: Authority, device: Identity) -> None:
    foreign = type(device.subject)("other", Tier.DEVICE, device.node)
    signed = authority._sign(foreign, device._key.public_key(), (), 1)
    with pytest.raises(IdentityRefused, match="'device-1' is of fleet 'other', this is 'main'"):
        Verifier(authority.ca_pem).learn(signed.certificate)


def test_a_revoked_node_is_refused_and_a_new_certificate_is_not(tmp_path: Path) -> None:
    authority = create_authority(tmp_path, "main")
    old = authority.issue("device-1", Tier.DEVICE)
    authority.revoke("device-1")
    verifier = Verifier(authority.ca_pem, revoked=(tmp_path / "revoked.crl").read_bytes())
    with pytest.raises(IdentityRefused, match="certificate of 'device-1' was revoked"):
        verifier.learn(old.certificate)
    assert verifier.learn(authority.issue("device-1", Tier.DEVICE).certificate) == ("device-1", Tier.DEVICE)


def test_a_node_revoked_while_known_is_refused_from_then_on(verifier: Verifier, device: Identity) -> None:
    verifier.revoke([device.certificate.serial_number])
    with pytest.raises(IdentityRefused, match="was revoked"):
        verifier.check("device-1", 1, 0, device.sign(b"x"), b"x")


def test_a_list_copied_to_the_node_takes_effect_at_the_next_frame(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = create_authority(tmp_path / "ca", "main")
    device, edge = (
        Identity.load(authority.issue(name, tier).write(tmp_path / name))
        for name, tier in (("device-1", Tier.DEVICE), ("edge-1", Tier.EDGE))
    )
    verifier = edge.verifier()
    verifier.learn(device.certificate_pem)
    verifier.check("device-1", 1, 0, device.sign(b"x"), b"x")
    authority.revoke("device-1")
    shutil.copy(tmp_path / "ca" / "revoked.crl", edge.folder)
    with pytest.raises(IdentityRefused, match="was revoked"):
        verifier.check("device-1", 1, 1, device.sign(b"x"), b"x")
    (edge.folder / "revoked.crl").write_bytes(b"not a list")
    with caplog.at_level(logging.ERROR, "edgewise.security"), pytest.raises(IdentityRefused, match="was revoked"):
        verifier.check("device-1", 1, 2, device.sign(b"x"), b"x")
    assert "is not used, the former list stands" in caplog.text


def test_a_revocation_list_of_another_authority_is_refused(authority: Authority, tmp_path: Path) -> None:
    create_authority(tmp_path, "main")
    with pytest.raises(IdentityRefused, match="revocation list is not signed by this fleet's authority"):
        Verifier(authority.ca_pem, revoked=(tmp_path / "revoked.crl").read_bytes())
    with pytest.raises(IdentityRefused, match="revocation list is not readable"):
        Verifier(authority.ca_pem, revoked=b"hello")


def test_a_folder_without_certificate_says_what_to_copy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no usable certificate in .* Copy ca.pem, node.pem and node.key there"):
        Identity.load(tmp_path)


def test_a_key_of_another_certificate_is_refused(authority: Authority, tmp_path: Path) -> None:
    folder = authority.issue("device-7", Tier.DEVICE).write(tmp_path)
    (folder / "node.pem").write_bytes(authority.issue("device-8", Tier.DEVICE).certificate)
    with pytest.raises(InputError, match=r"node.key and node.pem in .* do not belong together"):
        Identity.load(folder)


def test_an_identity_does_not_load_once_expired(authority: Authority, tmp_path: Path) -> None:
    folder = authority.issue("device-7", Tier.DEVICE).write(tmp_path)
    with pytest.raises(IdentityRefused, match="expired"):
        Identity.load(folder, now=lambda: later(400))


def test_a_private_key_is_never_printed(device: Identity, authority: Authority) -> None:
    issued = authority.issue("device-7", Tier.DEVICE)
    assert "PRIVATE" not in repr(issued)
    assert "_key" not in repr(device)
    assert isinstance(device.certificate, x509.Certificate)


def test_a_signature_alone_is_judged_without_counting(authority: Authority, device: Identity) -> None:
    verifier = device.verifier()
    signature = device.sign(b"frame")
    assert not verifier.is_signed("device-1", signature, b"frame")  # no certificate of that name yet
    verifier.learn(device.certificate_pem)
    assert verifier.is_signed("device-1", signature, b"frame")
    assert not verifier.is_signed("device-1", signature, b"another")
    assert verifier.windows == {}
    assert verifier.refused == {}
