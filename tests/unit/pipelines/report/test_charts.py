import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.report.charts.bars import bars, share_bar
from pipelines.report.charts.lines import (
    HEIGHT,
    MOST_LONE_POINTS,
    MOST_POINTS,
    WIDTH,
    Line,
    legend,
    line_chart,
    thinned,
)
from pipelines.report.charts.matrix import confusion_chart
from pipelines.report.charts.parallel import Thread, parallel_chart
from pipelines.search.axes import Axis
from tests.unit.pipelines.report.read_page import EVIL, Page


def marks(drawing, name, *attributes):
    return [tuple(found[a] for a in attributes) for tag, found in Page(drawing).elements if tag == name]


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(-1e6, 1e6) | st.just(math.nan) | st.just(math.inf))))
def test_every_point_lies_inside_the_drawing(points):
    drawing = line_chart([Line("x", sorted(points), dots=True)], x="step", y="loss")
    for left, top in marks(drawing, "circle", "cx", "cy"):
        assert 0 <= float(left) <= WIDTH
        assert 0 <= float(top) <= HEIGHT
    finite = [point for point in points if math.isfinite(point[1])]
    assert len(marks(drawing, "circle", "cx")) == (len(finite) if len(finite) <= 80 else 0)


def test_larger_is_higher_and_later_is_further_right():
    drawing = line_chart([Line("x", [(0, 1.0), (5, 3.0), (10, 2.0)], dots=True)], x="step", y="loss")
    (left0, top0), (left1, top1), (left2, top2) = [tuple(map(float, p)) for p in marks(drawing, "circle", "cx", "cy")]
    assert left0 < left1 < left2
    assert top1 < top2 < top0


def test_a_value_stays_until_the_next_in_a_step_line():
    drawing = line_chart([Line("best", [(0, 1.0), (5, 3.0)], "best", step=True)], x="step", y="top-1")
    ((path,),) = marks(drawing, "path", "d")
    assert re.fullmatch(r"M[\d. ]+H[\d.]+V[\d.]+", path)


def test_many_points_become_means():
    points = [(n, float(n % 2)) for n in range(10 * MOST_POINTS)]
    few = thinned(Line("loss", points))
    assert len(few) <= MOST_POINTS
    assert {value for _, value in few} == {0.5}
    assert thinned(Line("loss", points[:50])) == points[:50]


@pytest.mark.parametrize("look", [{"joined": False}, {"step": True}])
def test_points_that_are_no_curve_are_never_mixed(look):
    points = [(n, float(n % 2)) for n in range(3 * MOST_LONE_POINTS)]
    few = thinned(Line("trials", points, **look))
    assert len(few) <= MOST_LONE_POINTS + 1
    assert set(few) <= set(points)
    assert few[-1] == points[-1]
    assert thinned(Line("none", [], **look)) == []


def test_whole_numbers_have_no_ticks_between_them():
    labels = [text for _, text in Axis.of_numbers("epoch", [1, 2, 4]).ticks()]
    assert labels == ["1", "2", "3", "4"]


def test_a_legend_names_each_look_once():
    lines = [Line("trial 1", (), "stopped"), Line("stopped early", (), "stopped"), Line("best", (), "best")]
    assert Page(legend(lines)).text == "stopped early best"


def test_shares_fill_the_bar():
    widths = [
        float(width)
        for width, height in marks(share_bar({"a": 0.25, "b": 0.75}, "x"), "rect", "width", "height")
        if height == "26"
    ]
    assert widths == pytest.approx([175, 525])


def test_the_matrix_has_a_cell_where_something_was_counted():
    drawing = confusion_chart(np.array([[3, 1], [0, 0]]), ["a", EVIL], "matrix")
    told = Page(drawing).text
    assert "a taken for a: 3 (75.0 %)" in told
    assert len(marks(drawing, "rect", "x")) == 2


def test_names_of_others_stay_text_in_every_chart():
    drawings = [
        line_chart([Line(EVIL, [(0, 1.0)])], x=EVIL, y=EVIL),
        legend([Line(EVIL, (), "best")]),
        share_bar({EVIL: 1.0}, EVIL),
        bars({EVIL: 5.0}, EVIL),
        confusion_chart(np.eye(2, dtype=np.int64), [EVIL, "b"], EVIL),
        parallel_chart([Axis(EVIL, 0, 1, choices=(EVIL,))], [Thread(EVIL, {EVIL: EVIL}, "best")], EVIL),
    ]
    for drawing in drawings:
        assert not {"script", "img"} & {name for name, _ in Page(drawing).elements}
        assert "\x07" not in drawing


def test_a_thread_passes_by_an_axis_that_does_not_apply():
    axes = [Axis("a", 0, 1), Axis("b", 0, 1), Axis("c", 0, 1)]
    ((path,),) = marks(parallel_chart(axes, [Thread("t", {"a": 0, "c": 1}, "best")], "x"), "path", "d")
    assert path.count("L") == 1
