"""Makes a failing campaign small: as few faults as still break an invariant, each as short as it can be.

Delta debugging over the schedule of faults, then over what else a seed has drawn; every candidate is run.

Reference:
    Zeller & Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE TSE 2002.
    Differs: parts are left out one half, then one by one; a schedule has a handful.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from edgewise.chaos.campaign import Campaign
from edgewise.chaos.campaign_report import CampaignReport
from edgewise.chaos.run_campaign import run_campaign

MOST_TRIALS = 80
SHORT_S = 0.01


def shrink(
    campaign: Campaign, *, run: Callable[[Campaign], CampaignReport] = run_campaign, most_trials: int = MOST_TRIALS
) -> tuple[Campaign, CampaignReport]:
    """Looks for the smallest campaign that still breaks an invariant.

    Args:
        campaign: One that does.
        run: Runs a candidate.
        most_trials: Candidates that are run at most.

    Returns:
        The smallest one found, and its report; the campaign itself where it breaks nothing.
    """
    report, trials = run(campaign), 0
    is_smaller = bool(report.broken)
    while is_smaller and trials < most_trials:
        is_smaller = False
        for candidate in _smaller(campaign):
            trials += 1
            found = run(candidate)
            if found.broken:
                campaign, report, is_smaller = candidate, found, True
                break
            if trials >= most_trials:
                break
    return campaign, report


def _smaller(campaign: Campaign) -> Iterator[Campaign]:
    """Candidates that have less in them, the boldest first."""
    replace, faults = msgspec.structs.replace, campaign.faults
    half = len(faults) // 2
    if half > 1:
        yield replace(campaign, faults=faults[:half])
        yield replace(campaign, faults=faults[half:])
    for index in range(len(faults)):
        yield replace(campaign, faults=faults[:index] + faults[index + 1 :])
    if campaign.long_work:
        yield replace(campaign, long_work=False)
    if campaign.quorum:
        yield replace(campaign, quorum=0)
    if campaign.inline_bytes < 65536:
        yield replace(campaign, inline_bytes=65536)
    if campaign.rounds > 1:
        yield replace(campaign, rounds=campaign.rounds - 1)
    for index, fault in enumerate(faults):
        if fault.seconds > SHORT_S:
            shorter = replace(fault, seconds=max(SHORT_S, round(fault.seconds / 4, 3)))
            yield replace(campaign, faults=(*faults[:index], shorter, *faults[index + 1 :]))
