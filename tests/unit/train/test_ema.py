import pytest
import torch

from vast.models.variants import create_model
from vast.train.ema import Ema, decay_at


def test_decay_warms_up_to_the_one_asked_for_and_stays():
    assert [decay_at(step, 0.99) for step in (0, 1, 9)] == pytest.approx([1 / 10, 2 / 11, 10 / 19])
    assert decay_at(888, 0.99) < decay_at(889, 0.99) < 0.99  # (1 + s) / (10 + s) reaches 0.99 at s = 890
    assert decay_at(890, 0.99) == decay_at(10**6, 0.99) == 0.99


def test_average_follows_the_formula_and_leaves_the_model_alone():
    model = create_model("vast_micro", 3)
    ema = Ema(model, decay=0.5)
    wanted = {name: p.detach().double() for name, p in model.named_parameters()}
    for step in range(6):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * (step + 1))
        now = {name: p.detach().clone() for name, p in model.named_parameters()}
        ema.update(model, step)
        d = min(0.5, (1 + step) / (10 + step))
        wanted = {name: d * wanted[name] + (1 - d) * p.double() for name, p in now.items()}
        assert all(torch.equal(p, now[name]) for name, p in model.named_parameters())
    for name, average in ema.model.named_parameters():
        torch.testing.assert_close(average.double(), wanted[name], rtol=1e-5, atol=1e-6)
        assert not average.requires_grad


def test_restart_takes_the_weights_as_they_are():
    ema, other = Ema(create_model("vast_micro", 3), 0.9), create_model("vast_micro", 3)
    ema.restart(other)
    assert all(torch.equal(a, b) for a, b in zip(ema.model.parameters(), other.parameters(), strict=True))
