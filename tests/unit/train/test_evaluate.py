import pytest
import torch
from torch import nn

from vast.data.reader import EvalBatch
from vast.train import evaluate
from vast.train.evaluate import predict

ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


class Mean(nn.Module):
    """Two classes; the first one's logit is the clip's mean."""

    def forward(self, clip_BCTHW):
        logit_B = clip_BCTHW.flatten(1).mean(dim=1)
        return torch.stack([logit_B, torch.zeros_like(logit_B)], dim=1)


def batch(samples, views, failed=()):
    generator = torch.Generator().manual_seed(sum(samples) + views)
    clip_BVCTHW = torch.randint(0, 256, (len(samples), views, 3, 2, 4, 4), generator=generator, dtype=torch.uint8)
    return EvalBatch(torch.tensor(samples), clip_BVCTHW, torch.tensor([s % 2 for s in samples]), list(failed))


@pytest.mark.parametrize("most", [1, 4, 1000])
def test_scores_are_means_of_softmax_over_views_whatever_fits_one_forward_pass(monkeypatch, most):
    monkeypatch.setattr(evaluate, "MAX_CLIPS", most)
    batches = [batch([4, 5], 3), batch([0, 1, 2], 3, failed=[(3, "torn")])]
    model = Mean().train()
    found = predict(model, batches, mean=ZERO, std=ONE, device=torch.device("cpu"))
    assert model.training
    assert found.sample_N.tolist() == [0, 1, 2, 4, 5]
    assert found.label_N.tolist() == [0, 1, 0, 0, 1]
    assert found.unreadable == [(3, "torn")]
    by_sample = {s: b.clip_BVCTHW[i] for b in batches for i, s in enumerate(b.sample_B.tolist())}
    for sample, probs_K in zip(found.sample_N.tolist(), found.probs_NK, strict=True):
        views_V = torch.sigmoid(by_sample[sample].float().div(255).flatten(1).mean(dim=1))
        assert probs_K[0] == pytest.approx(views_V.mean().item(), abs=1e-6)


def test_a_batch_in_which_everything_failed_is_no_crash():
    nothing = EvalBatch(torch.zeros(0).long(), torch.zeros(0, 1, 3, 2, 4, 4).byte(), torch.zeros(0).long(), [(7, "x")])
    found = predict(Mean(), [nothing], mean=ZERO, std=ONE, device=torch.device("cpu"))
    assert len(found.sample_N) == 0
    assert found.unreadable == [(7, "x")]
