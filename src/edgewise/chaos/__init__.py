"""Tries a fleet by campaigns of faults: each is drawn from a seed, judged by invariants, and can be done again.

    seed ─▶ campaign (fleet, job, faults) ─▶ run in a `VirtualLoop` ─▶ invariants ─▶ finding ─▶ shrunk campaign

In virtual time the real roles, logs, blobs and signatures run in one deterministic thread: a seed says which callback runs
next, how long a frame is under way, what the disk of a node that lost its power has kept. Begin with `run_campaign.py`; the
faults are in `faults.py`, what must hold after them in `invariants.py`. Campaigns of real processes are in `live/`.
"""
