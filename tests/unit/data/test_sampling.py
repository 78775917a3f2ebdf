import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vast.data.config import DataConfig
from vast.data.sampling import Views, dense_test, dense_train, uniform_test, uniform_train, views
from vast.errors import UserError

VIDEO_FRAMES = st.integers(1, 400)
CLIP_FRAMES = st.integers(1, 64)
STRIDE = st.integers(1, 16)
SEED = st.integers(0, 2**32)
NUM_VIEWS = st.integers(1, 10)


def check(indices: np.ndarray, num_video_frames: int, num_frames: int) -> None:
    assert indices.shape == (num_frames,)
    assert indices.dtype == np.int64
    assert indices[0] >= 0
    assert indices[-1] < num_video_frames
    assert (np.diff(indices) >= 0).all()


@given(VIDEO_FRAMES, CLIP_FRAMES, SEED)
def test_uniform_train_takes_one_frame_of_each_segment(num_video_frames: int, num_frames: int, seed: int) -> None:
    indices = uniform_train(num_video_frames, num_frames, np.random.default_rng(seed))
    check(indices, num_video_frames, num_frames)
    edges = np.arange(num_frames + 1) * num_video_frames // num_frames
    assert (indices >= edges[:-1]).all()
    if num_video_frames >= num_frames:
        assert (indices < edges[1:]).all()


@given(VIDEO_FRAMES, CLIP_FRAMES, SEED)
def test_a_short_video_repeats_the_same_frames_every_time(num_video_frames: int, num_frames: int, seed: int) -> None:
    num_video_frames = min(num_video_frames, num_frames)
    indices = uniform_train(num_video_frames, num_frames, np.random.default_rng(seed))
    assert np.array_equal(indices, np.arange(num_frames) * num_video_frames // num_frames)
    # Every frame is there, and none more than once more often than another.
    counts = np.bincount(indices, minlength=num_video_frames)
    assert counts.max() - counts.min() <= 1


@given(VIDEO_FRAMES, CLIP_FRAMES, NUM_VIEWS)
def test_uniform_views_stay_in_their_segment_and_interleave(
    num_video_frames: int, num_frames: int, num_views: int
) -> None:
    clips = [uniform_test(num_video_frames, num_frames, view, num_views) for view in range(num_views)]
    for clip in clips:
        check(clip, num_video_frames, num_frames)
    edges = np.arange(num_frames + 1) * num_video_frames / num_frames
    for clip in clips:
        assert (clip >= np.floor(edges[:-1])).all()
        assert (clip < edges[1:]).all()
    # Read view by view within each segment, time never runs back.
    assert (np.diff(np.stack(clips, 1).ravel()) >= 0).all()
    if num_video_frames >= num_frames * num_views:
        assert len(np.unique(clips)) == num_frames * num_views


def test_one_uniform_view_takes_the_middles() -> None:
    assert uniform_test(80, 8).tolist() == [5, 15, 25, 35, 45, 55, 65, 75]


@given(VIDEO_FRAMES, CLIP_FRAMES, STRIDE, SEED)
def test_dense_train_is_one_window(num_video_frames: int, num_frames: int, stride: int, seed: int) -> None:
    indices = dense_train(num_video_frames, num_frames, stride, np.random.default_rng(seed))
    check(indices, num_video_frames, num_frames)
    if num_video_frames > (num_frames - 1) * stride:
        assert (np.diff(indices) == stride).all()
    else:
        assert np.array_equal(indices, np.minimum(np.arange(num_frames) * stride, num_video_frames - 1))


def test_dense_train_reaches_both_ends() -> None:
    rng = np.random.default_rng(0)
    starts = {int(dense_train(20, 4, 4, rng)[0]) for _ in range(300)}
    assert starts == set(range(8))


@given(VIDEO_FRAMES, CLIP_FRAMES, STRIDE, NUM_VIEWS)
def test_dense_views_are_windows_in_order(num_video_frames: int, num_frames: int, stride: int, num_views: int) -> None:
    starts = []
    for view in range(num_views):
        indices = dense_test(num_video_frames, num_frames, stride, view, num_views)
        check(indices, num_video_frames, num_frames)
        if num_video_frames > (num_frames - 1) * stride:
            assert (np.diff(indices) == stride).all()
        starts.append(int(indices[0]))
    num_starts = max(num_video_frames - (num_frames - 1) * stride, 1)
    assert starts == sorted(starts)
    if num_starts >= num_views:
        assert len(set(starts)) == num_views
    # The views lie symmetrically, to within the rounding of one frame.
    assert abs(starts[0] - (num_starts - 1 - starts[-1])) <= 1


def test_one_dense_view_is_in_the_middle() -> None:
    assert dense_test(101, 5, 10).tolist() == [30, 40, 50, 60, 70]


def test_views() -> None:
    assert views("4x3") == Views(4, 3)
    assert len(views("4x3")) == 12
    assert str(views("10x1")) == "10x1"


@pytest.mark.parametrize("protocol", ["", "4", "x3", "4x", "0x3", "4x2", "4X3", " 4x3", "4x3x1", "-1x3", "4x3\n"])
def test_malformed_protocols_are_refused(protocol: str) -> None:
    with pytest.raises(UserError, match=r"protocol: got .*, must be"):
        views(protocol)


@given(st.integers(1, 600), st.integers(1, 32), st.floats(0.2, 12), st.integers(0, 2**32))
def test_a_stride_need_not_be_whole(num_video_frames: int, num_frames: int, stride: float, seed: int) -> None:
    frames = dense_train(num_video_frames, num_frames, stride, np.random.default_rng(seed))
    assert len(frames) == num_frames
    assert 0 <= frames[0] <= frames[-1] < num_video_frames
    inside = frames[frames < num_video_frames - 1]
    # Each frame is where it would be at this distance, rounded down.
    assert np.array_equal(inside - frames[0], np.floor(np.arange(len(inside)) * stride).astype(int))


def test_a_target_rate_makes_clips_of_all_videos_equally_long(config: DataConfig) -> None:
    # SlowFast's 16x4 at 30 frames a second spans 2 s, whatever the video's own rate.
    config = config.model_copy(update={"frame_stride": 4, "target_fps": 30.0})
    for fps in (12.0, 24.0, 25.0, 29.97, 30.0, 50.0, 60.0):
        frames = dense_test(1000, 16, config.source_stride(fps))
        assert abs((frames[-1] - frames[0]) / fps - 15 * 4 / 30) < 1 / fps
    native = config.model_copy(update={"target_fps": 0.0})
    assert native.source_stride(25.0) == 4.0
