"""Named protocols: what they resize to, what their crops see, and whom they are for."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vast.data.config import DataConfig
from vast.data.crop import view_box
from vast.data.dataset import ShardDataset
from vast.data.loader import EvalLoader
from vast.data.protocols import NAMED, check_protocol, resolve_protocol
from vast.data.sampling import Views, views
from vast.errors import UserError


def model(**changes: object) -> DataConfig:
    return DataConfig.model_validate({"url": "anywhere", **changes})


@pytest.mark.parametrize("name", NAMED)
def test_a_name_says_its_views_and_an_untouched_crop_never_needs_more_than_the_short_side(name: str) -> None:
    one = NAMED[name]
    assert name.split("-")[1] == str(one.views)
    assert {"k400": "dense", "ssv2": "uniform"}[name.split("-")[0]] == one.sampling
    assert one.crop <= one.short_side
    resolved = resolve_protocol(name, model(sampling=one.sampling))
    assert (resolved.short_side, resolved.crop_size) == (one.short_side, one.crop)
    # its config must be one that could have been written
    DataConfig.model_validate(resolved.applied_to(model(sampling=one.sampling)).model_dump())


@pytest.mark.parametrize(("height", "width"), [(256, 341), (341, 256), (256, 256), (240, 426)])
def test_three_crops_of_the_slowfast_family_are_full_squares_from_end_to_end(height: int, width: int) -> None:
    protocol = resolve_protocol("k400-4x3", model())
    boxes = [view_box(height, width, protocol.crop_size, protocol.short_side, view, 3) for view in range(3)]
    side = min(height, width)
    assert {(box.height, box.width) for box in boxes} == {(side, side)}
    along = [max(box.top, box.left) for box in boxes]
    assert along == [0, (max(height, width) - side) // 2, max(height, width) - side]


@pytest.mark.parametrize(("height", "width"), [(256, 341), (512, 384)])
def test_one_crop_of_the_slowfast_family_is_the_central_224_of_256(height: int, width: int) -> None:
    protocol = resolve_protocol("k400-10x1", model())
    box = view_box(height, width, protocol.crop_size, protocol.short_side)
    assert box.height == box.width == min(height, width) * 224 // 256
    assert abs(2 * box.top + box.height - height) <= 1
    assert abs(2 * box.left + box.width - width) <= 1


def test_sides_scale_with_the_model_and_full_resolution_is_all_of_the_short_side() -> None:
    small = model(crop_size=112, eval_short_side=112, sampling="uniform")
    assert resolve_protocol("ssv2-1x1", small).short_side == 128
    full = resolve_protocol("ssv2-2x3-fullres", small)
    assert (full.crop_size, full.short_side) == (128, 128)


def test_a_bare_protocol_takes_the_recipes_sides() -> None:
    resolved = resolve_protocol("4x3", model(crop_size=160, eval_short_side=170))
    assert (resolved.views, resolved.crop_size, resolved.short_side) == (Views(4, 3), 160, 170)


def test_a_protocol_spells_everything_out() -> None:
    assert str(resolve_protocol("k400-10x3", model())) == (
        "10 temporal clips x 3 spatial crops = 30 views; short side 224, crop 224 (as k400-10x3); "
        "mean of softmax over the views"
    )
    assert str(resolve_protocol("1x1", model())).startswith("1 temporal clip x 1 spatial crop = 1 view; short side 256")


def test_a_name_is_refused_for_a_model_that_draws_its_frames_otherwise() -> None:
    with pytest.raises(UserError, match=r"ssv2-1x3 is for models with data\.sampling=uniform, this one has dense.*1x3"):
        resolve_protocol("ssv2-1x3", model())


@pytest.mark.parametrize("text", ["4x2", "k400-7x3", "", "0x1", "x"])
def test_an_unknown_protocol_is_refused_with_what_there_is(text: str) -> None:
    for action in (check_protocol, lambda asked: resolve_protocol(asked, model())):
        with pytest.raises(UserError, match=r"as in 4x3, or one of: k400-1x1, .*ssv2-2x3-fullres"):
            action(text)


@given(st.sampled_from(sorted(NAMED)), st.integers(1, 64), st.integers(1, 64))
def test_a_batch_holds_no_more_clips_than_allowed_unless_one_video_does(name: str, videos: int, clips: int) -> None:
    protocol = resolve_protocol(name, model(sampling=NAMED[name].sampling))
    batch = protocol.batch_videos(videos, clips)
    assert 1 <= batch <= videos
    assert batch == 1 or batch * len(protocol.views) <= clips
    assert batch == videos or (batch + 1) * len(protocol.views) > clips


def test_the_loader_reads_what_the_protocol_says(data_url: str, config: DataConfig) -> None:
    dataset = ShardDataset(data_url, "val")
    uniform = config.model_copy(update={"sampling": "uniform", "eval_short_side": 72})
    (named,) = EvalLoader(dataset, uniform, "ssv2-1x3", batch_size=7)
    spanning = uniform.model_copy(update={"eval_short_side": uniform.crop_size})
    (bare,) = EvalLoader(dataset, spanning, str(views("1x3")), batch_size=7)
    (other,) = EvalLoader(dataset, uniform, "1x3", batch_size=7)
    assert torch.equal(named.clip_BVCTHW, bare.clip_BVCTHW)
    assert not torch.equal(named.clip_BVCTHW, other.clip_BVCTHW)


def test_the_loader_reads_the_samples_it_is_told(data_url: str, config: DataConfig) -> None:
    loader = EvalLoader(ShardDataset(data_url, "val"), config, "1x1", batch_size=2, samples=[5, 1, 6])
    assert len(loader) == 2
    found = [batch.sample_B.tolist() for batch in loader]
    assert np.concatenate(found).tolist() == [5, 1, 6]
