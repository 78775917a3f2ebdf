import torch
from torch.nn.functional import cross_entropy

from vast.train.loss import weighted_losses


def test_hard_targets_of_weight_one_are_cross_entropy():
    logits_BK, label_B = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    found_B = weighted_losses(logits_BK, torch.eye(4)[label_B], torch.ones(6))
    torch.testing.assert_close(found_B, cross_entropy(logits_BK, label_B, reduction="none"))


def test_soft_targets_are_the_expected_negative_log_probability():
    logits_BK, target_BK = torch.randn(5, 3, dtype=torch.float64), torch.rand(5, 3, dtype=torch.float64)
    target_BK /= target_BK.sum(1, keepdim=True)
    wanted_B = -(target_BK * logits_BK.log_softmax(1)).sum(1)
    torch.testing.assert_close(weighted_losses(logits_BK, target_BK.float(), torch.ones(5)), wanted_B.float())


def test_a_clip_without_weight_has_neither_loss_nor_gradient():
    logits_BK = torch.randn(2, 3, requires_grad=True)
    loss_B = weighted_losses(logits_BK, torch.eye(3)[:2], torch.tensor([1.0, 0.0]))
    loss_B.sum().backward()
    assert loss_B[1] == 0
    assert torch.equal(logits_BK.grad[1], torch.zeros(3))
    assert logits_BK.grad[0].abs().sum() > 0


def test_half_precision_logits_are_summed_in_float32():
    logits_BK = torch.tensor([[60000.0, -60000.0]], dtype=torch.float16)
    loss_B = weighted_losses(logits_BK, torch.tensor([[0.0, 1.0]]), torch.ones(1))
    assert loss_B.item() == 120000.0  # beyond what float16 holds
    assert loss_B.dtype == torch.float32
