"""Fuzzing, briefly: every door takes or refuses some hundred inputs; and what fuzzing is to find, it finds."""

from __future__ import annotations

import io
import tarfile
import zipfile
from random import Random
from typing import Any

import numpy as np
import pytest

from edgewise.core.errors import InputError
from edgewise.transport.frame import encode_frame, make_frame
from edgewise.transport.remote import ErrorMessage
from tests.fuzz.campaign import TARGETS, Campaign
from tests.fuzz.of_frames import sealed
from tests.fuzz.target import ServerFault, Target, input_of, plainly
from tests.fuzz.worker import outcome_of, run_block


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_every_input_is_taken_or_refused(name: str) -> None:
    target = TARGETS[name]
    tally = run_block(target, 0, 0, len(target.seeds()) + 60)
    assert not tally.failures, {what: failure.data[:200] for what, failure in tally.failures.items()}
    assert tally.num == sum(tally.outcomes.values()) > 60


def _sealed(*shape: int) -> bytes:
    header = ["chunk", "bulk", "", 0, 0, None, "", 0, [["x", "float32", list(shape), []]]]
    return sealed(header, b"", b"", signed=False, rng=Random(0))


def _zipped(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x", data)
    return file.getvalue()


def _tarred(**of: Any) -> bytes:
    file, member = io.BytesIO(), tarfile.TarInfo("registry.db")
    for name, value in of.items():
        setattr(member, name, value)
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        archive.addfile(member)
    return file.getvalue()


def _with_fields(**fields: object) -> bytes:
    return encode_frame(make_frame("error", ErrorMessage("transport", "refused.", fields)))


FOUND = {
    "an axis of 0 beside one that no array has": ("replies", _sealed(2**62, 0), "FrameRefused"),
    "an error with a field called as its text": ("replies", _with_fields(message=1), "RemoteError"),
    "tables in tables": ("job files", b"x = " + b"[" * 5000, "ConfigError"),
    "dotted tables": ("policies", b"a" + b".a" * 5000 + b" = 1", "ConfigError"),
    "text for a number": ("job changes", b"training.algorithm.local.learning_rate=fast", "ConfigError"),
    "a truth for a codec": ("job changes", b'training.algorithm.uplink={name="chain", codecs=[true]}', "ConfigError"),
    "a part without what it needs": ("specs", b"error_feedback()", "InputError"),
    "a name that no file has": ("node files", b'name="a"\ntier="edge"\nidentity="' + b"a" * 300 + b'"', "ConfigError"),
    "objects in objects": ("reports", b'{"a":' * 5000 + b"1", "InputError"),
    "text that is no UTF-8": ("profiles", b'{"tier":"\xff"}', "DataError"),
    "an archive of what is no array": ("array files", _zipped(b"no array"), "DataError"),
    "a file of a time that no clock has": ("backups", _tarred(mtime=2**63), "InputError"),
    "a time longer than any number": (
        "json bodies",
        b'{"inputs":[],"parameters":{"timeout":1%s}}' % (b"0" * 400),
        "InputError",
    ),
    "a host with a port that is none": ("http", b"GET /\nHost::a\r\n\r\n", "404"),
    "a header that goes on": ("array files", b"\x93NUMPY\x01\x00\x10\x00{'descr': ((((  \n", "DataError"),
}
"""What fuzzing found, made small: the target, the input, how it is refused now."""


@pytest.mark.parametrize("what", sorted(FOUND))
def test_what_was_found_is_refused(what: str) -> None:
    name, data, refusal = FOUND[what]
    with TARGETS[name].check() as check:
        assert outcome_of(TARGETS[name], check, data) == refusal


def _planted(data: bytes) -> str:
    """Five faults, each behind a byte."""
    if b"k" in data:
        return {}[data]
    if b"h" in data:
        while True:
            pass
    if b"m" in data:
        return str(np.empty(2**34, np.uint8)[0])
    if b"5" in data:
        raise ServerFault("500")
    if b"r" in data:
        raise InputError("refused.")
    return "taken"


def test_what_is_planted_is_found_made_small_and_told_apart() -> None:
    seeds = [b"--------", b"--k--kk-", b"---5----", b"--m-----", b"h-------", b"----r---"]
    target = Target("planted", 1, lambda: seeds, plainly(_planted), seconds=0.2, memory_bytes=2**30)
    tally = run_block(target, 0, 0, len(seeds))
    found = {failure.kind: failure.data for failure in tally.failures.values()}
    assert found == {"uncaught": b"k", "5xx": b"5", "memory": b"m", "hang": b"h-------"}
    assert tally.outcomes == {"taken": 1, "InputError": 1}


def test_an_input_depends_on_seed_and_number_alone() -> None:
    target = TARGETS["frames"]
    seeds = target.seeds()
    again = [input_of(target, seeds, 3, 1000 + n) for n in range(20)]
    assert again == [input_of(target, target.seeds(), 3, 1000 + n) for n in range(20)]
    assert len(set(again)) > 15
    assert again[0] != input_of(target, seeds, 4, 1000)


def test_a_campaign_goes_on_where_it_was(tmp_path) -> None:
    def campaign() -> Campaign:
        return Campaign(seed=1, num_inputs=400, folder=tmp_path, names=("specs",), workers=1)

    first, again = campaign(), campaign()
    first.run()
    again.workers = 0  # nobody to do anything
    again.run()
    assert first.tallies["specs"].num == again.tallies["specs"].num == 400
    assert again.tallies["specs"].outcomes == first.tallies["specs"].outcomes
    assert not list(tmp_path.glob("*.input"))
