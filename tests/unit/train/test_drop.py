import pytest
import torch

from vast.models.variants import create_model
from vast.train.drop import Dropper

CPU = torch.device("cpu")


def dropper(drop_path=0.5, head_dropout=0.25, seed=7):
    return Dropper(create_model("vast_micro", 5, drop_path=drop_path, head_dropout=head_dropout), seed)


def test_a_place_draws_the_same_in_any_company():
    whole = dropper().draw(3, torch.arange(16), CPU)
    for places in ([0], [5, 6], [15, 2, 9]):
        part = dropper().draw(3, torch.tensor(places), CPU)
        assert torch.equal(part.branch_DB, whole.branch_DB[:, places])
        assert torch.equal(part.head_BC, whole.head_BC[places])


def test_seed_and_step_change_the_draws():
    drawn = [dropper(seed=seed).draw(step, torch.arange(8), CPU).head_BC for seed, step in ((7, 3), (7, 4), (8, 3))]
    assert not any(torch.equal(drawn[0], other) for other in drawn[1:])


def test_factors_are_zero_with_the_rate_of_their_branch_and_keep_the_mean():
    model = create_model("vast_micro", 5, drop_path=0.5, head_dropout=0.25)
    keep = Dropper(model, 0).draw(0, torch.arange(4000), CPU)
    for rate, keep_B in zip(model.branch_rates(), keep.branch_DB, strict=True):
        assert keep_B[keep_B != 0].unique().tolist() == pytest.approx([1 / (1 - rate)])
        assert (keep_B == 0).float().mean().item() == pytest.approx(rate, abs=0.03)
    assert keep.head_BC.mean().item() == pytest.approx(1.0, abs=0.01)
    assert keep.branch_DB.dtype == torch.float32


def test_where_nothing_is_dropped_nothing_is_drawn():
    assert dropper(0.0, 0.0).draw(0, torch.arange(2), CPU) is None
    assert dropper(0.1, 0.0).draw(0, torch.arange(2), CPU).head_BC is None
    assert dropper(0.0, 0.1).draw(0, torch.arange(2), CPU).branch_DB is None


def test_the_model_does_with_the_factors_what_they_say():
    model = create_model("vast_micro", 5, drop_path=0.9, head_dropout=0.5).train()
    clip_BCTHW = torch.randn(6, 3, 2, 32, 32)
    keep = Dropper(model, 1).draw(0, torch.arange(6), CPU)
    alone = [model(clip_BCTHW[b : b + 1], Dropper(model, 1).draw(0, torch.tensor([b]), CPU)) for b in range(6)]
    torch.testing.assert_close(model(clip_BCTHW, keep), torch.cat(alone), rtol=1e-4, atol=1e-5)
    # all branches dropped: the blocks are the identity, so the class scores come from the embeddings alone
    none = keep._replace(branch_DB=torch.zeros_like(keep.branch_DB), head_BC=None)
    model.head_dropout.p = 0.0
    before = model(clip_BCTHW, none)
    with torch.no_grad():
        for block in model.blocks()[1:]:  # the first block's rate is 0: it is never dropped
            block.mlp.fc2.weight.add_(1.0)
    assert torch.equal(model(clip_BCTHW, none), before)


def test_each_branch_gets_its_own_factor():
    model = create_model("vast_micro", 5, drop_path=0.5).train()
    clip_BCTHW = torch.randn(2, 3, 2, 32, 32)
    factors_D = torch.arange(1, 1 + len(model.branch_rates())) / 4
    x_BTHWC = clip_BCTHW.permute(0, 2, 3, 4, 1)
    remaining = iter(factors_D)
    for stage in model.stages:
        x_BTHWC = stage.embed(x_BTHWC)
        for block in stage.blocks:
            for branch in (block.branch1, block.branch2):
                branch.factor = next(remaining) if branch.drop_path else 1.0
            x_BTHWC = x_BTHWC + block.branch1.factor * block.mixer(block.norm1(x_BTHWC))
            x_BTHWC = x_BTHWC + block.branch2.factor * block.mlp(block.norm2(x_BTHWC))
            if not block.branch1.drop_path:  # the first block is never dropped, whatever its factors
                next(remaining), next(remaining)
    found_BTHWC = model.forward_features(clip_BCTHW, factors_D[:, None].expand(-1, 2))
    torch.testing.assert_close(found_BTHWC, model.norm(x_BTHWC), rtol=1e-4, atol=1e-4)


def test_recompute_gives_the_same_gradient():
    clip_BCTHW, grads = torch.randn(4, 3, 2, 32, 32), []
    model = create_model("vast_micro", 5, drop_path=0.5).train()
    for enabled in (False, True):
        model.set_recompute(enabled)
        model.zero_grad()
        model(clip_BCTHW, Dropper(model, 2).draw(5, torch.arange(4), CPU)).square().sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert torch.equal(*grads)
