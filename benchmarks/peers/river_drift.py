"""river's drift detectors on stable streams, run by the interpreter of its own environment: python river_drift.py STREAMS.npz

Reads losses bool[streams, n] and unsure float32[streams, n], and prints one JSON line: per detector the share of streams with an alarm.
Each has the settings it comes with.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
from river import drift


def alarms(detector: Any, values: Iterable[float]) -> bool:
    """Whether a detector alarms on a stream."""
    for value in values:
        detector.update(value)
        if detector.drift_detected:
            return True
    return False


def main() -> None:
    """Runs all three."""
    with np.load(sys.argv[1]) as file:
        losses, unsure = file["losses"].astype(float), file["unsure"].astype(float)
    makers = {
        "ADWIN": (drift.ADWIN, losses),
        "Page-Hinkley": (drift.PageHinkley, losses),
        "KSWIN": (lambda: drift.KSWIN(seed=0), unsure),
    }
    print(
        json.dumps(
            {
                name: float(np.mean([alarms(make(), row.tolist()) for row in rows]))
                for name, (make, rows) in makers.items()
            }
        )
    )


if __name__ == "__main__":
    main()
