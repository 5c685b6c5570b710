"""What a user writes or brings in a file: jobs, nodes, fleets and policies in TOML, profiles and reports in JSON, arrays, backups."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np

from edgewise.api.source import read_source
from edgewise.api.tier_profiles import links_of, read_profiles
from edgewise.cli.node_file import read_node_file
from edgewise.codecs.codec import Codec
from edgewise.core.array_file import read_arrays
from edgewise.core.config import load_toml
from edgewise.core.ids import digest_of
from edgewise.core.unreadable import UNREADABLE
from edgewise.fleet.node.settings import AgentSettings
from edgewise.fleet.store.backup import MANIFEST, Manifest, restore
from edgewise.models.graph.graph import PlainTensor
from edgewise.planning.policy import Policy
from edgewise.planning.profile import Profile
from edgewise.service.report import Report
from edgewise.service.report.report_files import read_report
from edgewise.simulation.emulated.fleet_file import FleetFile
from edgewise.simulation.links.link_control import read_specs
from edgewise.training.job import JobFile, check_job
from tests.fuzz.examples_of_types import example_of
from tests.fuzz.mutate import deep, mutated_bytes, mutated_json, mutated_tree
from tests.fuzz.target import Check, Target

JOBS = (
    '[task]\nfile = "digits"\nsettings = { num_clients = 5, alpha = 0.5 }\n\n[training]\nalgorithm = { name = "fed_avg", '
    'local = { name = "sgd", learning_rate = 0.1, epochs = 2 }, uplink = "int8" }\nrounds = 8\nprotocol = "hierarchical"\n',
    '[task]\nfile = "digits.py"\n[training]\nalgorithm = "scaffold"\nprotocol = { name = "buffered", concurrency = 4, '
    'buffer_size = 2 }\nedges = { e = ["a", "b"] }\nround_deadline = "30 s"\n[virtual]\nuplink = "20 Mbit/s"\n'
    'step_time = "10 ms"\ndropout_fraction = 0.1\n',
    '[task]\nfile = "digits"\n[training]\nclients_per_round = 3\nalgorithm.name = "fed_prox"\nalgorithm.mu = 0.01\n'
    'algorithm.uplink = { name = "chain", codecs = [{ name = "top_k", fraction = 0.1 }, "cast", "zstd"] }\n'
    'algorithm.server = { name = "adam", learning_rate = 0.01 }\nprotocol = "gossip"\n',
)
NODES = ('name = "device-1"\ntier = "device"\nidentity = "."\nstate = "state"\nconnect = ["tls/127.0.0.1:7447"]\n',)
POLICIES = (
    'objective = "latency_p95"\nraw_may_reach = "edge"\nmin_accuracy = 0.9\nmax_latency_s = 0.1\nallowed_tiers = ["edge"]',
)
FLEETS = (
    'name = "small"\n[edges]\ncount = 1\nlink = { rate = "50 Mbit/s", rtt = "20 ms" }\n[devices]\nper_edge = 2\n'
    'dilation = 3.0\nspeed = "200 MFLOP/s"\nlink = { rate = "20 Mbit/s", rtt = "5 ms" }\n',
)


def _encoded(*texts: str) -> Callable[[], list[bytes]]:
    return lambda: [text.encode() for text in texts]


def as_toml(table: Any) -> str:
    """A table as TOML, a line for each of its keys."""
    return "".join(f"{_word(str(key))} = {_value(value)}\n" for key, value in dict(table).items())


def _word(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_word(str(k))} = {_value(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, float):
        return str(value) if "e" not in str(value) or "." in str(value) else f"{value:.1e}"
    if isinstance(value, (bool, int)):
        return str(value).lower()
    return json.dumps(value if isinstance(value, str) else repr(value))


def mutated_toml(rng: Random, seeds: Sequence[bytes]) -> bytes:
    """A file with its values or its text changed."""
    if rng.random() < 0.35:
        return mutated_bytes(rng, seeds)
    if rng.random() < 0.01:
        return b"x = " + (deep(rng, b"[", b"") if rng.random() < 0.5 else deep(rng, b"{a=", b"1"))
    tables = [tomllib.loads(seed.decode()) for seed in rng.sample(list(seeds), min(2, len(seeds)))]
    changed = mutated_tree(rng, tables[0], tables)
    try:
        return as_toml(changed).encode(errors="surrogatepass")
    except (RecursionError, ValueError, TypeError):  # what is not a table, or too deep to be written
        return b"x = " + b"[" * 3000


def in_a_file(name: str, read: Callable[[Path], object]) -> Callable[[], Any]:
    """A check that writes the input to a file, beside which nothing else is.

    Args:
        name: The file's.
        read: Takes its path.
    """

    @contextmanager
    def opened() -> Iterator[Check]:
        folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        file = folder / name

        def check(data: bytes) -> str:
            file.write_bytes(data)
            read(file)
            return "read"

        try:
            yield check
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return opened


def _job(file: Path) -> None:
    check_job(load_toml(file, JobFile))


def _changed_job(file: Path) -> None:
    """As `--set`: the first line of the input is the change, the file is a whole one."""
    change = file.read_bytes().split(b"\n")[0].decode(errors="replace")
    file.write_bytes(JOBS[0].encode())
    check_job(load_toml(file, JobFile, [change]))


CHANGES = (b"training.rounds=5", b"training.algorithm.local.learning_rate=0.1", b"task.settings={a=[1]}", b"virtual=1")


def _node(file: Path) -> None:
    read_node_file(file, "agent", set(AgentSettings.__struct_fields__))


def _fleet(file: Path) -> None:
    links_of(load_toml(file, FleetFile))


def _in_json(kind: Any) -> Callable[[], list[bytes]]:
    return lambda: [msgspec.json.encode(example_of(kind, full=full)) for full in (True, False)]


def arrays() -> list[bytes]:
    """Files of numpy."""
    plain, many, texts = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(plain, np.zeros((4, 3), np.float32))
    np.savez_compressed(many, x=np.zeros((4, 3), np.float32), y=np.arange(4))
    np.savez(texts, x=np.zeros((4, 3), np.float32), y=np.array(["a", "b", "c", "dd"]))
    return [file.getvalue() for file in (plain, many, texts)]


def examples_of_a_plan() -> list[bytes]:
    """What goes to a node with a plan, that its model runs on."""
    file = io.BytesIO()
    np.savez_compressed(file, names=np.array(["x", "words"]), input_0=np.zeros((1, 3)), input_1=np.array([["a", "b"]]))
    return [file.getvalue()]


def _arrays(file: Path) -> None:
    read_arrays(file)
    read_source(file, (PlainTensor("x", (1, 3), "float32", True),))


def backups() -> list[bytes]:
    """A backup, and archives that would write elsewhere."""
    content = {"registry.db": b"not looked at here", "blobs/" + "0" * 64: b"graph"}
    digests = {name: digest_of(data) for name, data in content.items()}
    manifest = msgspec.json.encode(Manifest(format=1, edgewise="0", made_s=1.0, versions=1, files=digests))
    whole = {**content, MANIFEST: manifest}
    wrong = [{**whole, name: b"outside"} for name in ("../outside", "/tmp/outside", "blobs/../../outside")]
    return [_tar(whole), *map(_tar, wrong), _tar(whole, link="../../outside"), _tar({MANIFEST: manifest})]


def _tar(content: dict[str, bytes], link: str = "") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        if link:
            entry = tarfile.TarInfo("blobs/link")
            entry.type, entry.linkname = tarfile.SYMTYPE, link
            tar.addfile(entry)
    return file.getvalue()


def mutated_tar(rng: Random, seeds: Sequence[bytes]) -> bytes:
    """An archive with its bytes changed, and the checksum of its first header mostly right again."""
    data = bytearray(mutated_bytes(rng, seeds))
    if len(data) >= 512 and rng.random() < 0.7:
        data[148:156] = b" " * 8
        data[148:156] = b"%06o\0 " % sum(data[:512])
    return bytes(data)


@contextmanager
def _restored() -> Iterator[Check]:
    around = Path(tempfile.mkdtemp())
    (around / "inside").mkdir()

    def check(data: bytes) -> str:
        file, state = around / "inside" / "backup", around / "inside" / "state"
        file.write_bytes(data)
        try:
            restore(file, state)
        finally:
            shutil.rmtree(state, ignore_errors=True)
            left = {path.name for path in around.rglob("*")} - {"inside", "backup"}
            if left:
                raise AssertionError(f"restoring left {sorted(left)} outside the state folder")
        return "restored"

    try:
        yield check
    finally:
        shutil.rmtree(around, ignore_errors=True)


def _hints(file: Path) -> None:
    from edgewise.models.graph.input_hints import _unpacked

    _unpacked(file.read_bytes())


def _codec_words(file: Path) -> None:
    from edgewise.codecs import make_codec

    made = make_codec(file.read_bytes().decode(errors="replace"))
    assert isinstance(made, Codec)


WORDS = (b"int8", b"top_k(fraction=0.1)", b"chain(codecs=[top_k(fraction=0.25), int8(rounding='nearest'), zstd()])")
WORDS += (b"error_feedback(codec=top_k(fraction=0.5))", b"png(low=0.0, high=1.0, num_levels=17)")


def _links(file: Path) -> None:
    from edgewise.core.errors import InputError

    try:
        value = msgspec.json.decode(file.read_bytes())
    except UNREADABLE as error:
        raise InputError("the harness reads JSON.") from error
    read_specs(value)


TARGETS = (
    Target("job files", 3, _encoded(*JOBS), in_a_file("job.toml", _job), mutated_toml),
    Target("job changes", 1, lambda: list(CHANGES), in_a_file("job.toml", _changed_job)),
    Target("node files", 2, _encoded(*NODES), in_a_file("node.toml", _node), mutated_toml),
    Target("policies", 2, _encoded(*POLICIES), in_a_file("policy.toml", lambda f: load_toml(f, Policy)), mutated_toml),
    Target("fleet files", 2, _encoded(*FLEETS), in_a_file("fleet.toml", _fleet), mutated_toml),
    Target("specs", 2, lambda: list(WORDS), in_a_file("spec.txt", _codec_words)),
    Target("profiles", 2, _in_json(Profile), in_a_file("p.json", lambda f: read_profiles([f])), mutated_json),
    Target("reports", 2, _in_json(Report), in_a_file("report.json", read_report), mutated_json),
    Target("link specs", 1, lambda: [b'[{"name":"a","target":"127.0.0.1:1","shape":{}}]'],
           in_a_file("links.json", _links), mutated_json),
    Target("array files", 1, arrays, in_a_file("x.npz", _arrays)),
    Target("examples of a plan", 0.5, examples_of_a_plan, in_a_file("x.npz", _hints)),
    Target("backups", 0.3, backups, _restored, mutated_tar),
)  # fmt: skip
