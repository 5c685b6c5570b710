from __future__ import annotations

import msgspec
import pytest

from edgewise.core.errors import PolicyViolation
from edgewise.core.ids import Tier
from edgewise.security.data_policy import AuditEntry, DataPolicy, EgressAudit

RAW = frozenset({"raw"})


@pytest.mark.parametrize("target", list(Tier))
def test_by_default_raw_data_goes_nowhere(target: Tier) -> None:
    with pytest.raises(PolicyViolation, match="data of class 'raw' may not leave its device") as caught:
        DataPolicy().allow(RAW, target)
    assert caught.value.fields == {"data_class": "raw", "tier": target, "limit": "device"}


def test_a_grant_reaches_its_tier_and_no_further() -> None:
    policy = DataPolicy(raw=Tier.EDGE)
    policy.allow(RAW, Tier.EDGE)
    with pytest.raises(PolicyViolation, match=r"may not go further than tier edge.*grant it .*\(raw = 'cloud'\)"):
        policy.allow(RAW, Tier.CLOUD)


def test_what_descends_from_nothing_may_go_anywhere() -> None:
    DataPolicy().allow(frozenset(), Tier.CLOUD)


def test_of_several_classes_the_strictest_decides() -> None:
    with pytest.raises(PolicyViolation, match="class 'raw'"):
        DataPolicy().allow(frozenset({"public", "raw"}), Tier.EDGE)


@pytest.mark.parametrize("name", ["medical", "grants", "allow", "__class__"])
def test_an_unknown_class_goes_nowhere(name: str) -> None:
    with pytest.raises(PolicyViolation, match="is not named by the data policy"):
        DataPolicy().allow(frozenset({name}), Tier.DEVICE)


def test_grants_list_the_tiers_of_each_class() -> None:
    grants = DataPolicy(raw=Tier.EDGE, update=Tier.DEVICE).grants
    assert grants["raw"] == (Tier.DEVICE, Tier.EDGE)
    assert grants["update"] == ()
    assert grants["answer"] == (Tier.DEVICE, Tier.EDGE, Tier.CLOUD)


def test_a_policy_is_read_from_words() -> None:
    assert msgspec.convert({"raw": "edge"}, DataPolicy) == DataPolicy(raw=Tier.EDGE)
    with pytest.raises(msgspec.ValidationError, match="unknown field `rwa`"):
        msgspec.convert({"rwa": "edge"}, DataPolicy)


def test_the_audit_counts_what_left_and_what_was_refused() -> None:
    audit = EgressAudit(DataPolicy(raw=Tier.EDGE))
    audit.allow(RAW, Tier.EDGE, 64)
    audit.allow(RAW, Tier.EDGE, 36)
    with pytest.raises(PolicyViolation, match="raw"):
        audit.allow(RAW, Tier.CLOUD, 64)
    assert audit.entries == (
        AuditEntry(data_class="raw", tier=Tier.CLOUD, granted=False, num_frames=1, size_bytes=0),
        AuditEntry(data_class="raw", tier=Tier.EDGE, granted=True, num_frames=2, size_bytes=100),
    )
