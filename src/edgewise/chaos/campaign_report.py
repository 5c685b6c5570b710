"""What a campaign came to: what was broken, how the run ended, a digest of all that happened."""

from __future__ import annotations

import msgspec


class CampaignReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a campaign came to.

    Attributes:
        seed: Its seed.
        broken: Sentences about invariants that did not hold.
        state: How the run ended.
        trace: Digest of everything that happened, in order.
        virtual_s: Virtual seconds.
        num_steps: Callbacks.
        cells: How often each fault met each place (`cells.py`): `client/working/kill`.
        model: Digest of the run's last model.
        rounds: Who took part in each round.
        files: How many blobs each node keeps on its disk.
        flipped: Blobs that were flipped on disk, `device-a/kept/DIGEST`.
    """

    seed: int
    broken: tuple[str, ...]
    state: str = ""
    trace: str = ""
    virtual_s: float = 0.0
    num_steps: int = 0
    cells: dict[str, int] = {}
    model: str = ""
    rounds: tuple[tuple[str, ...], ...] = ()
    files: dict[str, int] = {}
    flipped: tuple[str, ...] = ()
