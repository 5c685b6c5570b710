"""Two small graphs whose tensors have several readers, so that planner and session are not fitted to a chain."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class InceptionToy(nn.Module):  # type: ignore[misc]
    """Three branches from one tensor, joined by concatenation, twice.

    Args:
        channels: Channels of each branch.
        num_classes: Number of labels.
    """

    def __init__(self, channels: int = 8, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), nn.ReLU())
        self.first = _Branches(channels, channels)
        self.second = _Branches(3 * channels, channels)
        self.last = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(3 * channels * 4, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32[n, num_classes] of float32[n, 1, 8, 8]."""
        return self.last(self.second(self.first(self.stem(images))))


class ResidualToy(nn.Module):  # type: ignore[misc]
    """Blocks whose input is added to their output; an early exit reads the shared tensor too.

    Args:
        channels: Channels throughout.
        depth: Number of blocks.
        num_classes: Number of labels.
    """

    def __init__(self, channels: int = 16, depth: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.blocks = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(depth))
        self.exit_0 = nn.Sequential(nn.Flatten(), nn.Linear(channels * 16, num_classes))
        self.exit_1 = nn.Sequential(nn.Flatten(), nn.Linear(channels * 16, num_classes))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the exit behind the first block and of the last one, of float32[n, 1, 8, 8]."""
        x = self.stem(images)
        early = x
        for index, block in enumerate(self.blocks):
            x = x + torch.relu(block(x))
            early = x if index == 0 else early
        return self.exit_0(early), self.exit_1(x)


class _Branches(nn.Module):  # type: ignore[misc]
    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(inputs, channels, 1), nn.ReLU())
        self.three = nn.Sequential(nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU())
        self.pool = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), nn.Conv2d(inputs, channels, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.pool(x)], dim=1)
