"""Human activity from a phone's motion sensors, one client per person: a federated split that nature made.

    EDGEWISE_DATA=FOLDER edgewise simulate examples/human_activity.toml

FOLDER/uci_har/uci_har_raw.npz holds x [n, 128, 9], y [n] in 0..5 and subject [n] (UCI HAR, raw inertial signals).
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from edgewise.datasets.found import load_uci_har
from edgewise.datasets.split import by_subject
from edgewise.models.task import Examples, Task

UNSEEN = (2, 4, 9, 10, 12, 13, 18, 20, 24)  # the data set's own test people


class Statistics(nn.Module):
    def forward(self, windows):  # float32[n, 9, 128] -> five numbers per channel
        jumps = (windows[:, :, 1:] - windows[:, :, :-1]).abs().mean(2)
        spread = (windows - windows.mean(2, keepdim=True)).abs().mean(2)
        found = torch.cat([windows.mean(2), windows.amax(2), windows.amin(2), spread, jumps], dim=1)
        return found.sign() * torch.log1p(20 * found.abs())  # their scales differ a hundredfold


class HumanActivity(Task):
    name = "human-activity"
    input_shape = (9, 128)
    num_classes = 6

    def __init__(self, unseen=UNSEEN, **settings):
        super().__init__(**settings)
        self.arrays, subjects = load_uci_har()
        self.people = by_subject(subjects)
        self.unseen = [person for person in unseen if person in self.people]

    def model(self):
        return nn.Sequential(Statistics(), nn.Linear(45, 64), nn.ReLU(), nn.Linear(64, 6))

    def loss(self, outputs, targets):
        return functional.cross_entropy(outputs, targets)

    def clients(self):
        return tuple(f"person-{person}" for person in self.people if person not in self.unseen)

    def data(self, client):
        return self._of([int(client.removeprefix("person-"))])

    def test_data(self):
        return self._of(self.unseen)

    def _of(self, people):
        held = self.arrays.take(np.concatenate([self.people[person] for person in people]))
        return Examples.of(held.inputs, held.targets)
