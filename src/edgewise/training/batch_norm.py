"""What becomes of batch norm in a run: the word `batch_norm` of a job's `[training]`."""

from __future__ import annotations

from dataclasses import replace

from edgewise.core.errors import InputError, MisfitError, nearest
from edgewise.core.layout import BATCH_NORM
from edgewise.training.algorithm import Exchange, FederatedAlgorithm
from edgewise.training.local import LocalWork, Rule, frozen, own_patterns, personal, with_each

AVERAGED, LOCAL, FROZEN = "averaged", "local", "frozen"
MODES = (AVERAGED, LOCAL, FROZEN)


def with_batch_norm(algorithm: FederatedAlgorithm, mode: str) -> FederatedAlgorithm:
    """An algorithm whose clients treat batch norm in one of three ways.

    Args:
        algorithm: The parts.
        mode: `averaged` as any other tensor, running statistics plainly; `local`, each client keeps its own (FedBN);
            `frozen`, as it was received, its running statistics used in training, too.

    Returns:
        The algorithm.

    Raises:
        InputError: If there is no such mode.
        MisfitError: If the algorithm keeps tensors on its clients already, or has several rules.

    Reference:
        Li et al., "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization", ICLR 2021, for `local`.
    """
    if mode not in MODES:
        raise InputError(f"batch_norm is one of {', '.join(MODES)}, found {mode!r}.{nearest(mode, MODES)}")
    if mode == AVERAGED:
        return algorithm
    kept = [p for exchange in algorithm.exchanges for p in own_patterns(exchange.local)]
    if kept:
        raise MisfitError(
            f"batch_norm is to be {mode}, and clients keep {', '.join(kept)} to themselves already. "
            f"Leave batch_norm out, or take an algorithm that keeps nothing{_CURE[mode]}."
        )
    rules = [rule.spec.name for exchange in algorithm.exchanges for rule in exchange.local.rules]
    if mode == LOCAL and len(rules) > 1:
        raise MisfitError(
            f"batch_norm stays local where a client trains one model in one exchange; this algorithm's rules are "
            f"{', '.join(rules)}. Take fed_avg, or batch_norm = 'frozen'."
        )
    return replace(algorithm, exchanges=tuple(_normed(exchange, mode) for exchange in algorithm.exchanges))


_CURE = {LOCAL: ": fed_per takes 'batch_norm' among its `own`", FROZEN: ""}


def _normed(exchange: Exchange, mode: str) -> Exchange:
    def wrapped(rule: Rule) -> Rule:
        return personal(rule, (BATCH_NORM,)) if mode == LOCAL else frozen(rule, (BATCH_NORM,))

    work: LocalWork = with_each(exchange.local, wrapped)
    return replace(exchange, local=work)
