"""What the drift monitors know, for `/metrics`; they are the coordinator's, and every node that serves a model tells them."""

from __future__ import annotations

from collections.abc import Mapping

from edgewise.fleet.messages import DriftStatus
from edgewise.ledger.metric import Labels, Metric, metric


def drift_metrics(known: Mapping[str, DriftStatus]) -> list[Metric]:
    """Gauges of each model in force: evidence, its threshold, labels held, and what is waited for.

    Args:
        known: What the coordinator knows, by model.

    Returns:
        The metrics; a monitor that has nothing to compare with has no sample.
    """
    statistic, threshold = dict[Labels, float](), dict[Labels, float]()
    labels, harm = dict[Labels, float](), dict[Labels, float]()
    info, needed, risk = dict[Labels, float](), dict[Labels, float](), dict[Labels, float]()
    for name, status in known.items():
        of = ("model", name)
        labels[(of,)], harm[(of,)] = status.num_labels, status.calls_for_training
        for monitor, value in (("harm", status.harm_statistic), ("change", status.change_statistic)):
            if value is not None:
                statistic[of, ("monitor", monitor)] = value
                threshold[of, ("monitor", monitor)] = status.threshold
        about = (("version", str(status.version)), ("found", status.kind or "none"), ("waits_for", status.waits))
        info[of, *about] = 1
        needed |= {(of, ("fall_points", str(points))): labels for points, labels in status.labels_needed}
        for data, share in (("labels", status.risk), ("held out", status.risk_reference)):
            if share is not None:
                risk[of, ("of", data)] = share
    return [
        metric("drift_statistic", "gauge", "Evidence of drift; it alarms at its threshold.", statistic),
        metric("drift_threshold", "gauge", "1/alpha: evidence at which a monitor alarms.", threshold),
        metric("drift_labels", "gauge", "True labels that the monitor of harm holds.", labels),
        metric("drift_labels_needed", "gauge", "Labels that prove a fall of accuracy which begins now.", needed),
        metric("drift_harm", "gauge", "1 while answers are proved to be wrong more often.", harm),
        metric("drift_wrong_ratio", "gauge", "Share of wrong answers.", risk),
        metric("drift_info", "gauge", "What changed, and what is waited for; always 1.", info),
    ]
