"""A convolutional network with an early exit behind a narrow cut, and the loss that trains all exits at once.

    image ─▶ head (device, ~0.9 MFLOP) ─▶ neck: cut of 128 values ─▶ tail (~9.7 MFLOP) ─▶ last exit
                                             └─▶ exit 0 (2.6 kFLOP)

One multiply-add counts as two operations. No batch norm: clients see few and skewed examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

from torch import Tensor, nn
from torch.nn import functional


class MultiExitNet(nn.Module):  # type: ignore[misc]
    """The demo's model for 1x8x8 images.

    Args:
        channels: Channels of the head's convolutions at full size; behind two, there is a third at half size. One makes
            a head that a very slow device can run.
        cut_channels: Channels of the neck; the cut carries cut_channels x 4 x 4 values.
        tail_channels: Channels of the tail's convolutions.
        tail_depth: Number of 3x3 convolutions in the tail, the first one aside.
        num_classes: Number of labels.

    Reference:
        Teerapittayanon, McDanel & Kung, "BranchyNet: Fast Inference via Early Exiting from Deep Neural Networks",
        ICPR 2016. Differs: one side exit, and a 1x1 convolution in front of it makes the cut narrow.
    """

    def __init__(
        self,
        *,
        channels: Sequence[int] = (16, 32),
        cut_channels: int = 8,
        tail_channels: int = 128,
        tail_depth: int = 2,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        last = channels[-1]
        full = [layer for a, b in pairwise((1, *channels)) for layer in _conv(a, b)]
        half = _conv(last, last) if len(channels) > 1 else []
        self.head = nn.Sequential(*full, nn.MaxPool2d(2), *half, *_conv(last, cut_channels, 1))
        self.exit_0 = nn.Sequential(nn.Flatten(), nn.Linear(cut_channels * 16, num_classes))
        depth = [layer for _ in range(tail_depth) for layer in _conv(tail_channels, tail_channels)]
        self.tail = nn.Sequential(*_conv(cut_channels, tail_channels), *depth, nn.MaxPool2d(2), nn.Flatten())
        self.exit_1 = nn.Linear(tail_channels * 4, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(cast(Tensor, module.bias))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of both exits.

        Args:
            images: float32[n, 1, 8, 8].

        Returns:
            float32[n, num_classes] of exit 0 and of the last exit.
        """
        cut = self.head(images)
        return self.exit_0(cut), self.exit_1(self.tail(cut))


def joint_cross_entropy(outputs: Tensor | Sequence[Tensor], targets: Tensor, weights: Sequence[float] = ()) -> Tensor:
    """Weighted sum of the cross entropies of all exits.

    Args:
        outputs: Logits float32[n, num_classes], of one exit or of each.
        targets: int64[n].
        weights: One per exit; by default 1 each.

    Returns:
        The mean over the batch; a scalar.

    Reference:
        BranchyNet (as above), eq. in section III-B: L = Σ w_n L_n.
    """
    exits = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    scale = list(weights) or [1.0] * len(exits)
    losses = [w * functional.cross_entropy(logits, targets) for w, logits in zip(scale, exits, strict=True)]
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total


def _conv(inputs: int, outputs: int, size: int = 3) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, size, padding=size // 2), nn.ReLU()]
