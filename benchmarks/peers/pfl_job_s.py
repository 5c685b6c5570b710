"""Job S in pfl-research, run by the interpreter of its own environment: python pfl_job_s.py CLIENTS.npz ROUNDS

Reads the same clients as ours (arrays x_0, y_0, x_1, …) and prints one JSON line: seconds, CPU seconds, clients, accuracy.
"""

from __future__ import annotations

import json
import random
import sys
import time

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel

COHORT = 20
NEVER = 10**9


class Mlp(torch.nn.Module):
    """64-64-10, with the two methods pfl asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def loss(self, x: torch.Tensor, y: torch.Tensor, is_eval: bool = False) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self(x), y)

    def metrics(self, x: torch.Tensor, y: torch.Tensor, is_eval: bool = False) -> dict[str, float]:
        return {}


class Clock(TrainingProcessCallback):
    """Notes when each round has ended."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        self.times.append((time.perf_counter(), time.process_time()))
        return False, Metrics()


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    arrays, rounds = np.load(sys.argv[1]), int(sys.argv[2])
    clients = [str(i) for i in range(sum(name.startswith("x_") for name in arrays.files))]
    data = {c: [torch.from_numpy(arrays[f"x_{c}"]), torch.from_numpy(arrays[f"y_{c}"])] for c in clients}
    users = FederatedDataset(lambda c: Dataset(raw_data=data[c], user_id=c), get_user_sampler("random", clients))
    net = Mlp()
    model = PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0))
    clock = Clock()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=rounds, evaluation_frequency=NEVER, train_cohort_size=COHORT, val_cohort_size=None
        ),
        backend=SimulatedBackend(training_data=users, val_data=None, postprocessors=[WeightByDatapoints()]),
        model=model,
        model_train_params=NNTrainHyperParams(local_num_epochs=1, local_learning_rate=0.1, local_batch_size=16),
        callbacks=[clock],
    )
    with torch.no_grad():
        scores = model.pytorch_model(torch.from_numpy(arrays["test_x"])).argmax(1).numpy()
    seconds, cpu_seconds = (end - start for start, end in zip(clock.times[0], clock.times[-1], strict=True))
    accuracy = float((scores == arrays["test_y"]).mean())
    print(
        json.dumps(
            {"seconds": seconds, "cpu_seconds": cpu_seconds, "clients": COHORT * (rounds - 1), "accuracy": accuracy}
        )
    )


if __name__ == "__main__":
    main()
