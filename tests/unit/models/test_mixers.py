"""The peers' mixers against their definitions, what they cost, and which switches go with them."""

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from vast.errors import UserError
from vast.models import SIZES, ModelConfig, create_model
from vast.models.cost import count_macs, count_params
from vast.models.mixers import HEAD_DIM, average_neighbours, make_mixer, positions_like
from vast.models.vast import init_weights

MIXERS = get_args(ModelConfig.model_fields["mixer"].annotation)
DIM = 64


def make(mixer: str, index: int = 0, name: str = "vast_micro", **switches) -> torch.nn.Module:
    torch.manual_seed(0)
    return make_mixer(DIM, ModelConfig(name=name, mixer=mixer, **switches), index).apply(init_weights).double()


def attend(attention: torch.nn.Module, x: Tensor, where: Tensor, allowed: Tensor) -> Tensor:
    """Softmax attention over all tokens of each clip, written out; `allowed` [N, N] is true where a row may look."""
    flat, flat_where = x.flatten(1, 3), where.flatten(1, 3)
    query, key = (flat_where @ attention.query_key.weight.T + attention.query_key.bias).split(DIM, -1)
    value = flat @ attention.value.weight.T + attention.value.bias
    heads = []
    for channels in torch.arange(DIM).split(HEAD_DIM):
        scores = query[..., channels] @ key[..., channels].transpose(1, 2) / HEAD_DIM**0.5
        exps = (scores - scores.amax(-1, keepdim=True)).exp() * allowed
        heads.append(exps / exps.sum(-1, keepdim=True) @ value[..., channels])
    return (torch.cat(heads, -1) @ attention.output.weight.T + attention.output.bias).view_as(x)


def same(grid: tuple[int, int, int], *keys) -> Tensor:
    """[N, N]: tokens whose keys, functions of (t, h, w), all agree."""
    where = torch.cartesian_prod(*(torch.arange(length) for length in grid)).T
    return torch.stack([(key(*where)[:, None] == key(*where)[None]) for key in keys]).all(0)


@pytest.mark.parametrize(
    "mixer", ["joint_attention", "divided_attention", "window_attention", "window_attention moved"]
)
def test_attention_equals_its_definition(mixer):
    grid, window = (5, 4, 7), (2, 4, 3)
    moved = (1, 0, 1) if "moved" in mixer else (0, 0, 0)  # half a window, where the grid is larger than the window
    mixer = mixer.split()[0]
    module = make(mixer, index=int(any(moved)), **({"window_size": window} if mixer == "window_attention" else {}))
    x = torch.randn(2, *grid, DIM, dtype=torch.float64, requires_grad=True)
    where = x + positions_like(x)
    if mixer == "joint_attention":
        wanted = attend(module.attention, x, where, torch.ones(140, 140))
    elif mixer == "divided_attention":
        time = attend(module.time, x, where, same(grid, lambda t, h, w: h, lambda t, h, w: w))
        normed = F.layer_norm(x + time, (DIM,), module.norm.weight, module.norm.bias, eps=1e-6)
        space = attend(module.space, normed, normed + positions_like(x), same(grid, lambda t, h, w: t))
        wanted = time + space
    else:
        keys = [
            lambda t, h, w, i=i: torch.div((t, h, w)[i] - moved[i], window[i], rounding_mode="floor") for i in range(3)
        ]
        wanted = attend(module.attention, x, where, same(grid, *keys))
    ours = module(x)
    torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-9)
    inputs, seed = [x, *module.parameters()], torch.randn_like(x)
    for mine, theirs in zip(*(torch.autograd.grad(y, inputs, seed) for y in (ours, wanted)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-9)


def test_a_window_is_cut_to_a_small_clip():
    module = make("window_attention", index=1)
    x = torch.randn(1, 2, 3, 4, DIM, dtype=torch.float64)
    wanted = attend(module.attention, x, x + positions_like(x), torch.ones(24, 24))
    torch.testing.assert_close(module(x), wanted, rtol=1e-9, atol=1e-9)


def test_local_mixers_equal_their_definitions():
    x = torch.randn(2, 4, 3, 5, DIM, dtype=torch.float64)
    for mixer in ("tsm", "pooling", "conv3d"):
        module = make(mixer)
        v = x @ module.value.weight.T + module.value.bias
        picture = v.permute(0, 4, 1, 2, 3)
        if mixer == "tsm":
            y, width = v.clone(), DIM // 8
            y[..., :width] = torch.cat([v[:, 1:, ..., :width], torch.zeros_like(v[:, :1, ..., :width])], 1)
            second = slice(width, 2 * width)
            y[..., second] = torch.cat([torch.zeros_like(v[:, :1, ..., second]), v[:, :-1, ..., second]], 1)
        elif mixer == "pooling":
            y = (F.avg_pool3d(picture, 3, 1, 1, count_include_pad=False) - picture).permute(0, 2, 3, 4, 1)
        else:
            convolved = F.conv3d(picture, module.conv.weight, module.conv.bias, padding=1, groups=DIM)
            y = convolved.permute(0, 2, 3, 4, 1)
        wanted = y @ module.output.weight.T + module.output.bias
        torch.testing.assert_close(
            module(x), wanted, rtol=1e-9, atol=1e-9, msg=lambda text, name=mixer: f"{name}: {text}"
        )


def test_neighbours_outside_the_clip_do_not_count():
    torch.testing.assert_close(average_neighbours(torch.full((1, 3, 2, 2, 4), 7.0)), torch.full((1, 3, 2, 2, 4), 7.0))


def test_every_position_is_told_apart():
    table = positions_like(torch.empty(1, 8, 14, 14, DIM)).flatten(0, 2)
    assert torch.cdist(table, table).fill_diagonal_(9).min() > 0.05


@pytest.mark.parametrize("mixer", MIXERS)
def test_frames_have_an_order_where_the_mixer_can_see_one(mixer):
    torch.manual_seed(0)
    model = create_model("vast_micro", 5, mixer=mixer).double().eval()
    clip = torch.randn(1, 3, 5, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        difference = (model(clip.flip(2)) - model(clip)).norm() / model(clip).norm()
    # Averages of neighbours are the same in both directions of time.
    assert difference < 1e-9 if mixer == "pooling" else difference > 1e-4


@pytest.mark.parametrize(
    ("mixer", "params", "macs"),
    [
        ("joint_attention", 4 * DIM * DIM + 4 * DIM, lambda n: 4 * n * DIM * DIM + 2 * n * n * DIM),
        ("divided_attention", 8 * DIM * DIM + 10 * DIM, lambda n: 8 * n * DIM * DIM + 2 * n * DIM * (8 + n // 8)),
        ("window_attention", 4 * DIM * DIM + 4 * DIM, lambda n: 4 * n * DIM * DIM + 2 * n * DIM * 8 * 49),
        ("tsm", 2 * DIM * DIM + 2 * DIM, lambda n: 2 * n * DIM * DIM),
        ("pooling", 2 * DIM * DIM + 2 * DIM, lambda n: 2 * n * DIM * DIM),
        # The two end frames lack one neighbour each.
        ("conv3d", 2 * DIM * DIM + 30 * DIM, lambda n: 2 * n * DIM * DIM + 27 * n * DIM - 2 * 9 * (n // 8) * DIM),
    ],
)
def test_cost_equals_the_formula(mixer, params, macs):
    module = make(mixer).float()
    assert count_params(module) == params
    assert count_macs(module, (1, 8, 14, 14, DIM)) == macs(8 * 14 * 14)


def test_switches_of_another_mixer_are_refused():
    with pytest.raises(ValidationError, match=r"no effect with model\.mixer=tsm, so remove it: model\.scale=False"):
        ModelConfig(name="vast_micro", mixer="tsm", scale=False)
    with pytest.raises(UserError, match=r"model\.window_size=\(8, 4, 4\)"):
        create_model("vast_micro", 5, window_size=(8, 4, 4))
    with pytest.raises(UserError, match=r"model\.window_size: .*at least 1"):
        create_model("vast_micro", 5, mixer="window_attention", window_size=(8, 0, 4))
    assert ModelConfig(name="vast_micro", mixer="tsm", shift_fraction=0.25, scale=True).shift_fraction == 0.25


def test_heads_divide_every_width():
    assert all(dim % HEAD_DIM == 0 for size in SIZES.values() for dim in size.dims)
