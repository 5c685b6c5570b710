"""Digits held by a few clients, learned by a network with an early exit.

    edgewise simulate examples/digits.toml

A task is one class: the model, the loss, who the clients are, and the data of each.
"""

import torch
from torch import nn
from torch.nn import functional

from edgewise.core.seeds import Seeds
from edgewise.datasets.digits_data import load_digits
from edgewise.datasets.split import dirichlet
from edgewise.models.task import Examples, Task


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.exit_0 = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
        self.tail = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))

    def forward(self, images):
        features = self.head(images)
        return self.exit_0(features), self.tail(features)  # one tensor of logits per exit


class Digits(Task):
    name = "example-digits"
    input_shape = (1, 8, 8)
    num_classes = 10

    def __init__(self, num_clients=5, alpha=0.5, **settings):
        super().__init__(**settings)
        parts = load_digits(seed=0)
        split = dirichlet(parts.train.targets, num_clients, alpha=alpha, rng=Seeds(0).at("split").rng())
        self.held = {f"client-{i}": parts.train.take(indices) for i, indices in enumerate(split)}
        self.unseen = parts.calibration

    def model(self):
        return Net()

    def loss(self, outputs, targets):
        return torch.stack([functional.cross_entropy(logits, targets) for logits in outputs]).sum()

    def clients(self):
        return tuple(self.held)

    def data(self, client):
        return Examples.of(self.held[client].inputs, self.held[client].targets)

    def test_data(self):
        return Examples.of(self.unseen.inputs, self.unseen.targets)
