"""Dense stacks: linear, ReLU, linear, …"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(sizes: Sequence[int] = (64, 64, 10)) -> nn.Sequential:
    """A multi-layer perceptron on flattened inputs; the default is the model of Job S (4,810 parameters).

    Args:
        sizes: Inputs, hidden layers, outputs.

    Returns:
        Flatten, then linear layers with ReLU between them.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for index, (inputs, outputs) in enumerate(pairwise(sizes)):
        layers += ([nn.ReLU()] if index else []) + [nn.Linear(inputs, outputs)]
    return nn.Sequential(*layers)
