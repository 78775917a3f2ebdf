"""Starting from other weights: what is loaded, what is fresh, and what an inflated model computes."""

import pytest
import torch

from vast.errors import UserError
from vast.models import create_model
from vast.models.inflate import inflate, load_weights, start_from


@pytest.mark.parametrize("bias_kernel", ["1x3x3", "3x3x3"])
@pytest.mark.parametrize(
    "changes", [{}, {"affine_input": "s", "scale_pool": "frame", "position_encoding": True}], ids=str
)
def test_static_clip_keeps_the_image_features(bias_kernel, changes):
    torch.manual_seed(0)
    image_model = create_model("ast_micro", 5, shift_border="replicate", **changes)
    video_model = create_model("vast_micro", 5, shift_border="replicate", bias_kernel=bias_kernel, **changes)

    report = inflate(image_model.state_dict(), video_model)

    assert (report.missing, report.unexpected, report.reinitialised) == ((), (), ())
    assert len(report.inflated) == (6 if bias_kernel == "3x3x3" else 0)  # the bias of each block
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        wanted = image_model.forward_features(image).expand(-1, 6, -1, -1, -1)
        ours = video_model.forward_features(image.unsqueeze(2).expand(-1, -1, 6, -1, -1))
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)


def test_zero_border_departs_from_the_image_only_near_the_ends():
    torch.manual_seed(0)
    image_model = create_model("ast_micro", 5, scale=False).double()
    video_model = create_model("vast_micro", 5, scale=False).double()
    inflate(image_model.state_dict(), video_model)
    image = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        difference = video_model.forward_features(image.unsqueeze(2).expand(-1, -1, 15, -1, -1))
        difference = (difference - image_model.forward_features(image)).abs().amax((0, 2, 3, 4))
    assert (difference[6:9] < 1e-12).all()  # six blocks carry the border six frames inwards
    assert (difference[:6] > 1e-9).all()
    assert (difference[9:] > 1e-9).all()


def test_weights_load_completely():
    donor, model = create_model("vast_micro", 5), create_model("vast_micro", 5)
    report = load_weights(model, donor.state_dict())
    assert set(report.loaded) == set(donor.state_dict())
    assert str(report) == f"{len(report.loaded)} loaded"
    assert all(torch.equal(p, donor.state_dict()[name]) for name, p in model.state_dict().items())


def test_head_of_another_class_count_is_fresh():
    donor, model = create_model("vast_micro", 9), create_model("vast_micro", 5)
    torch.nn.init.ones_(model.head.weight)
    report = load_weights(model, donor.state_dict())
    assert report.reinitialised == ("head.weight", "head.bias")
    assert "2 reinitialised (head.weight, head.bias)" in str(report)
    assert model.head.weight.shape == (5, 96)
    assert model.head.weight.abs().max() < 0.2
    assert torch.equal(model.norm.weight, donor.norm.weight)


def test_missing_and_unexpected_are_reported():
    donor = create_model("vast_micro", 5, layer_scale=0.1)
    report = load_weights(create_model("vast_micro", 5, position_encoding=True), donor.state_dict())
    assert {name.rsplit(".", 2)[-2] for name in report.missing} == {"conv"}
    assert {name.rsplit(".", 1)[-1] for name in report.unexpected} == {"gamma"}
    assert "12 missing" in str(report)
    assert "12 unexpected" in str(report)


def test_another_size_is_refused_and_nothing_is_changed():
    donor, model = create_model("vast_micro", 5), create_model("vast_micro", 5)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    wrong = donor.state_dict() | {"norm.weight": torch.zeros(7)}
    with pytest.raises(UserError, match=r"do not fit vast_micro.*\n.*norm\.weight: found \[7\], expected \[96\]"):
        load_weights(model, wrong)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_weights_of_something_else_are_refused():
    with pytest.raises(UserError, match=r"no name .* matches vast_micro; found conv1\.weight, expected stages\.0"):
        load_weights(create_model("vast_micro", 5), {"conv1.weight": torch.zeros(1)})


def test_head_of_other_classes_is_fresh_though_there_are_as_many_and_an_optimizer_keeps_its_parameters():
    donor, model = create_model("vast_micro", 5), create_model("vast_micro", 5)
    before, head = model.head.weight.detach().clone(), model.head.weight
    report = load_weights(model, donor.state_dict(), same_classes=False)
    assert report.reinitialised == ("head.weight", "head.bias")
    assert model.head.weight is head
    assert not torch.equal(head, donor.head.weight)
    assert not torch.equal(head, before)


def started(name, donor, *, same_classes=True, **changes):
    model = create_model(name, 5, **changes)
    return model, start_from(model, donor.state_dict(), donor.config.model_dump(mode="json"), same_classes)


def test_a_start_says_what_was_inflated_and_which_switches_differ():
    donor = create_model("ast_micro", 5, drop_path=0.1)
    model, text = started("vast_micro", donor, same_classes=False, shift_border="replicate", bias_kernel="3x3x3")
    assert "6 inflated (stages.0.blocks.0.mixer.bias.weight" in text
    assert "2 reinitialised (head.weight, head.bias)" in text
    assert "model.shift_border=replicate where ast_micro had zero" in text
    assert "drop_path" not in text
    assert torch.equal(model.norm.weight, donor.norm.weight)


def test_the_kernel_of_an_image_model_is_always_that_of_a_frame():
    """Otherwise a clip would see what an image never trained."""
    assert not any(p.ndim == 5 for p in create_model("ast_micro", 5, bias_kernel="3x3x3").parameters())


@pytest.mark.parametrize(
    ("donor", "name", "message"),
    [
        (
            "ast_ti",
            "vast_micro",
            "the weights are those of ast_ti, but model.name is vast_micro: give weights of ast_micro",
        ),
        (
            "vast_micro",
            "ast_micro",
            "the weights are those of vast_micro, a model of clips, but ast_micro takes single",
        ),
        ("ast_ti", "ast_micro", "give weights of ast_micro, or set model.name to a size of ast_ti"),
    ],
)
def test_weights_of_another_kind_or_size_are_refused(donor, name, message):
    with torch.device("meta"):
        fits = create_model(donor, 5)
    with pytest.raises(UserError, match=message):
        started(name, fits)
