import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vast.data.reader import EvalBatch
from vast.train import evaluate
from vast.train.evaluate import predict, score_batches

ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
CPU = torch.device("cpu")


class Linear(nn.Module):
    """Four classes, linear in the pixels."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3 * 2 * 4 * 4, 4, generator=generator))

    def forward(self, clip_BCTHW):
        return clip_BCTHW.flatten(1) @ self.weight


def batch(samples, views, failed=()):
    generator = torch.Generator().manual_seed(sum(samples) + views)
    clip_BVCTHW = torch.randint(0, 256, (len(samples), views, 3, 2, 4, 4), generator=generator, dtype=torch.uint8)
    return EvalBatch(torch.tensor(samples), clip_BVCTHW, torch.tensor([s % 4 for s in samples]), list(failed))


def in_numpy(model, clip_VCTHW, mean, std):
    """The mean of softmax over the views, in float64 and without torch."""
    scale = np.array(std)[:, None, None, None] * 255
    offset = (np.array(mean) / np.array(std))[:, None, None, None]
    logits_VK = [
        (clip / scale - offset).reshape(-1) @ model.weight.detach().numpy().astype(np.float64)
        for clip in clip_VCTHW.numpy().astype(np.float64)
    ]
    exp_VK = np.exp(np.array(logits_VK) - np.max(logits_VK, axis=1, keepdims=True))
    return (exp_VK / exp_VK.sum(axis=1, keepdims=True)).mean(axis=0)


@pytest.mark.parametrize("most", [1, 4, 1000])
def test_scores_are_means_of_softmax_over_views_whatever_fits_one_forward_pass(monkeypatch, most):
    monkeypatch.setattr(evaluate, "MAX_CLIPS", most)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    model, one = Linear(), batch([4, 5, 9], 3)
    (scored,) = score_batches(model, [one], mean=mean, std=std, device=CPU)
    expected_BK = np.stack([in_numpy(model, clip_VCTHW, mean, std) for clip_VCTHW in one.clip_BVCTHW])
    np.testing.assert_allclose(scored.probs_BK, expected_BK, atol=1e-5)


def test_predictions_come_in_the_order_of_the_index_with_the_failures_named():
    batches = [batch([4, 5], 3), batch([0, 1, 2], 3, failed=[(3, "torn")])]
    model = Linear().train()
    found = predict(model, batches, mean=ZERO, std=ONE, device=CPU)
    assert model.training
    assert found.sample_N.tolist() == [0, 1, 2, 4, 5]
    assert found.label_N.tolist() == [0, 1, 2, 0, 1]
    assert found.unreadable == [(3, "torn")]
    by_sample = {s: b.clip_BVCTHW[i] for b in batches for i, s in enumerate(b.sample_B.tolist())}
    for n, sample in enumerate(found.sample_N.tolist()):
        expected_K = in_numpy(model, by_sample[sample], ZERO, ONE)
        assert found.top_NJ[n, 0] == expected_K.argmax()
        assert found.prob_NJ[n, 0] == pytest.approx(expected_K.max(), abs=1e-5)


def test_a_batch_in_which_everything_failed_is_no_crash():
    nothing = EvalBatch(torch.zeros(0).long(), torch.zeros(0, 1, 3, 2, 4, 4).byte(), torch.zeros(0).long(), [(7, "x")])
    found = predict(Linear(), [nothing], mean=ZERO, std=ONE, device=CPU)
    assert len(found.sample_N) == 0
    assert found.unreadable == [(7, "x")]


@pytest.mark.slow
def test_every_rank_gets_what_one_rank_would_have_found(tmp_path):
    program = Path(__file__).with_name("evaluate_rank.py")
    commands = [[sys.executable, str(program), str(rank), "3", str(tmp_path)] for rank in range(3)]
    processes = [subprocess.Popen(command) for command in commands]
    assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    spec = importlib.util.spec_from_file_location("evaluate_rank", program)
    ranks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ranks)
    alone = ranks.predicted(ranks.SHARES)
    assert alone.sample_N.tolist() == [0, 1, 3, 4, 6]
    assert alone.unreadable == [(2, "torn\nhere"), (5, "Größe 0")]
    for rank in range(3):
        found = pickle.loads((tmp_path / str(rank)).read_bytes())
        for name, expected in vars(alone).items():
            np.testing.assert_array_equal(getattr(found, name), expected, err_msg=f"rank {rank}: {name}")


def test_a_recipe_whose_protocol_is_for_other_models_is_refused_before_it_runs(tiny_config):
    assert tiny_config(eval={"protocol": "ssv2-1x3"}).eval.protocol == "ssv2-1x3"
    with pytest.raises(ValueError, match=r"eval\.protocol: k400-1x3 is for models with data\.sampling=dense"):
        tiny_config(eval={"protocol": "k400-1x3"})
