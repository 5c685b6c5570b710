"""Defines the settings that start a node, for the command line, its `--config` file, `fleet.toml` and tests."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from edgewise.core.ids import Tier

_Count = Annotated[int, msgspec.Meta(ge=0)]


class AgentSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Holds the settings of one node.

    Attributes:
        name: Node name, as in its certificate.
        tier: Where it stands.
        identity: Folder with `ca.pem`, `node.pem`, `node.key`.
        state: Folder for blobs, logs and the registry.
        fleet: Name of the fleet.
        connect: Endpoints of its parents: the primary one first, then standbys.
        listen: Endpoints it listens on (edge, cloud).
        coordinator: Whether it decides for the fleet.
        task: Task file installed on this node, or `digits`; "" trains nothing.
        task_settings: Passed to the task.
        client: Which client's data it holds; "" means its own name.
        holdout: npz with calibration_x, calibration_y, gate_x, gate_y (`gate_x/NAME` where there are several), for evidence and gate
            (coordinator); `MODEL=FILE` for one model, several with commas between.
        judge: Task file whose own metrics are told of held-out data (coordinator); "" for none.
        dilation: Factor by which inference compute is stretched.
        active_power_w: Modelled power while computing.
        http: Host:port, or a port of loopback, of the inference endpoint, which has /metrics too; "" for none, port 0 picks
            a free one.
        tokens: File of `edgewise token`: clients of the endpoint need one; "" asks for none. Needed off loopback.
        http_certificate: PEM, for TLS at the endpoint; "" takes the node's own where there are tokens, but on a device.
        http_key: PEM, of that certificate.
        model_name: Another name of its only model at the inference endpoint; each is known by its own.
        engine: Local engine, or "" to choose by a short timing.
        buffer_bytes: Bound of each model's hard-example buffer.
        max_models: Models it serves at once; one more is refused.
        models_bytes: Bound of what all its models take; 0 for half of the machine's memory.
        keep_bytes: What its blobs on disk may take before older versions and ended runs go; 0 for a tenth of the disk. What is needed
            stays whatever it takes.
        raw_may_reach: Outermost tier raw data of this node may reach.
        scout: Whether to look for other nodes by multicast and gossip.
        insecure: Whether to go without TLS, and without tokens, on a non-loopback address.
        capture: Folder for a plaintext copy of every frame sent (tests and audits); "" for none.
        wait: How long a starting node waits for a parent before it ends with the cause, e.g. `30 s`; "" for as long as it takes.
        take_over: Whether a process that runs under this name, or on this state, is told to stop; else this one is refused.
        crash_after: Kill this process right after its n-th logged event (tests only).
    """

    name: str
    tier: Tier
    identity: str
    state: str
    fleet: str = "main"
    connect: tuple[str, ...] = ()
    listen: tuple[str, ...] = ()
    coordinator: bool = False
    task: str = ""
    task_settings: dict[str, Any] = {}
    client: str = ""
    holdout: str = ""
    judge: str = ""
    dilation: Annotated[float, msgspec.Meta(ge=1)] = 1.0
    active_power_w: Annotated[float, msgspec.Meta(ge=0)] = 3.0
    http: str = ""
    tokens: str = ""
    http_certificate: str = ""
    http_key: str = ""
    model_name: str = "model"
    engine: str = ""
    buffer_bytes: _Count = 4 * 2**20
    max_models: Annotated[int, msgspec.Meta(ge=1)] = 8
    models_bytes: _Count = 0
    keep_bytes: _Count = 0
    raw_may_reach: Tier = Tier.DEVICE
    scout: bool = False
    insecure: bool = False
    capture: str = ""
    wait: str = ""
    take_over: bool = False
    crash_after: int | None = None
