import itertools

from hypothesis import given
from hypothesis import strategies as st

from pipelines.predict.windows import starts


@given(st.floats(0.1, 500), st.floats(0.5, 30), st.floats(0.1, 1.0))
def test_windows_leave_nothing_out_and_stay_inside(duration_s, window_s, share):
    hop_s = window_s * share
    found = starts(duration_s, window_s, hop_s)
    assert found[0] == 0
    assert found == sorted(found)
    if duration_s > window_s + 0.05:
        assert all(start + window_s <= duration_s + 1e-6 for start in found)
        assert found[-1] + window_s >= duration_s - 0.051
        assert all(later - earlier <= hop_s + 1e-6 for earlier, later in itertools.pairwise(found))
    else:
        assert found == [0.0]
