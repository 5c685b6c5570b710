import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from edgewise.core.errors import TaskError
from edgewise.core.seeds import Seeds
from edgewise.models.export import export_template
from edgewise.models.flat import initial_vector, load_vector
from edgewise.models.graph.weights import weights_of, with_weights
from edgewise.models.task import Task
from edgewise.models.zoo.branched import InceptionToy, ResidualToy
from edgewise.models.zoo.dense_stack import mlp
from edgewise.models.zoo.early_exits import MultiExitNet


def normed():
    """Batch norm after a convolution, which exporters like to fold, and after a linear layer."""
    convolved = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    return nn.Sequential(convolved, nn.Linear(256, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))


ZOO = {"exits": MultiExitNet, "mlp": mlp, "normed": normed, "inception": InceptionToy, "residual": ResidualToy}
IMAGES = np.random.default_rng(0).random((7, 1, 8, 8), np.float32)


class ModelTask(Task):
    name = "model"
    input_shape = (1, 8, 8)

    def model(self):
        return self.settings["build"]()

    def loss(self, outputs, targets):
        raise NotImplementedError

    def clients(self):
        return []

    def data(self, client):
        raise NotImplementedError


@pytest.fixture(params=sorted(ZOO))
def task(request):
    return ModelTask(build=ZOO[request.param])


def test_an_exported_model_with_its_weights_gives_torchs_outputs(task):
    template, layout = export_template(task)
    vector = initial_vector(task, Seeds(3))
    session = onnxruntime.InferenceSession(with_weights(template, layout, vector), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        wanted = load_vector(task.model(), vector).eval()(torch.from_numpy(IMAGES))
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    for found, exit_ in zip(session.run(None, {"input": IMAGES}), wanted, strict=True):
        assert np.abs(found - exit_.numpy()).max() <= 1e-5


def test_exits_are_named_outputs_and_the_batch_is_dynamic(task):
    graph = onnx.load_from_string(export_template(task)[0])
    outputs = [output.name for output in graph.graph.output]
    assert outputs == [f"exit_{i}" for i in range(len(outputs))]
    assert [d.dim_param or d.dim_value for d in graph.graph.input[0].type.tensor_type.shape.dim] == ["batch", 1, 8, 8]
    assert graph.opset_import[0].version >= 17


def test_initializers_are_the_slots_of_the_layout(task):
    template, layout = export_template(task)
    initializers = onnx.load_from_string(template).graph.initializer
    assert {(t.name, tuple(t.dims)) for t in initializers} == {(s.name, s.shape) for s in layout.slots}


def test_exporting_twice_gives_the_same_bytes(task):
    assert export_template(task) == export_template(task)


def test_a_parameter_that_leaves_torch_in_forward_is_refused():
    class Rounded(nn.Linear):
        def forward(self, x):
            return x.flatten(1) @ torch.from_numpy(self.weight.detach().numpy().round(2)).t() + self.bias

    with pytest.raises(
        TaskError, match=r"parameter 'weight' .* is not in the exported graph under its name.*--weights"
    ):
        export_template(ModelTask(build=lambda: Rounded(64, 64)))


def test_a_parameter_that_forward_does_not_use_is_exported_too():
    template, layout = export_template(
        ModelTask(build=lambda: _with_unused(nn.Sequential(nn.Flatten(), nn.Linear(64, 4))))
    )
    assert "extra" in {tensor.name for tensor in onnx.load_from_string(template).graph.initializer}
    vector = np.arange(layout.size, dtype=np.float32)
    assert (weights_of(with_weights(template, layout, vector), layout) == vector).all()


class Branching(nn.Linear):
    """Takes another way where the mean is above 0: a trace keeps only the one it saw."""

    def forward(self, x):
        out = super().forward(x.flatten(1))
        return out if len(x) == 2 else -out


class Sized(nn.Linear):
    def forward(self, x):
        return super().forward(x.reshape(2, 64))


@pytest.mark.parametrize("build", [lambda: Branching(64, 4), lambda: Sized(64, 4)])
def test_a_model_that_a_trace_loses_is_refused_before_anything_is_trained(build):
    with pytest.raises(
        TaskError, match=r"gives another 'exit_0' than the model|does not take inputs|cannot run on 3 examples"
    ):
        export_template(ModelTask(build=build))


def test_a_model_that_cannot_be_exported_is_refused():
    class Odd(nn.Linear):
        def forward(self, x):
            return torch.linalg.eigvals(super().forward(x.flatten(1))[:, :4].reshape(-1, 2, 2)).real

    with pytest.raises(
        TaskError, match=r"cannot be exported to ONNX: .* Use operations that torch.onnx.export supports"
    ):
        export_template(ModelTask(build=lambda: Odd(64, 4)))


def _with_unused(module):
    module.extra = nn.Parameter(torch.zeros(3))
    return module
