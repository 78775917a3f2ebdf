import numpy as np
import pytest
from matplotlib.image import imread

from pipelines.plots import confusion_matrix


@pytest.mark.parametrize("num_classes", [2, 8, 174])
def test_the_diagonal_of_a_perfect_model_is_dark(tmp_path, num_classes):
    path = tmp_path / "confusion.png"
    classes = [f"Moving something number {i} from left to right slowly" for i in range(num_classes)]
    confusion_matrix(path, 5 * np.eye(num_classes, dtype=np.int64), classes, "title")
    perfect = imread(path)[..., :3]
    confusion_matrix(path, np.zeros((num_classes, num_classes), dtype=np.int64), classes, "title")
    empty = imread(path)[..., :3]
    assert min(perfect.shape[:2]) > 300
    assert perfect.mean() < empty.mean()
