import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from edgewise.models.zoo.early_exits import MultiExitNet, joint_cross_entropy

LOGITS = (torch.randn(5, 10), torch.randn(5, 10))
LABELS = torch.arange(5)


def _flops(module, example):
    with FlopCounterMode(display=False) as counter:
        module(example)
    return counter.get_total_flops()


def test_the_demos_model_is_10_to_20_mflop_with_a_cheap_head_and_a_narrow_cut():
    net, image = MultiExitNet(), torch.rand(1, 1, 8, 8)
    assert 10e6 <= _flops(net, image) <= 20e6
    assert _flops(net.head, image) <= 2e6
    assert net.head(image).numel() == 128


def test_the_joint_loss_is_the_weighted_sum_of_the_exits():
    wanted = 0.5 * functional.cross_entropy(LOGITS[0], LABELS) + functional.cross_entropy(LOGITS[1], LABELS)
    assert float(joint_cross_entropy(LOGITS, LABELS, (0.5, 1.0))) == pytest.approx(float(wanted))


def test_one_exit_without_weights_is_plain_cross_entropy():
    assert torch.equal(joint_cross_entropy(LOGITS[0], LABELS), functional.cross_entropy(LOGITS[0], LABELS))


def test_a_weight_per_exit_is_needed():
    with pytest.raises(ValueError, match="zip"):
        joint_cross_entropy(LOGITS, LABELS, (1.0,))
