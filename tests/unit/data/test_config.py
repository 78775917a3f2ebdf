import pytest
from pydantic import ValidationError

from vast.data.config import DataConfig


def test_every_field_is_described() -> None:
    undescribed = [name for name, field in DataConfig.model_fields.items() if not field.description]
    assert undescribed == []


def test_all_contradictions_are_told_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        DataConfig(url="x", crop_size=224, eval_short_side=200, crop_area=(0.5, 0.2), train_short_side=(320, 256))
    text = str(caught.value)
    assert "eval_short_side: 200 is below crop_size 224" in text
    assert "crop_area: 0.5 is above 0.2" in text
    assert "train_short_side: 320 is above 256" in text


def test_jittered_crop_needs_a_short_side_of_its_size() -> None:
    with pytest.raises(ValidationError, match="train_short_side: 200 is below crop_size 224"):
        DataConfig(url="x", train_crop="jittered", train_short_side=(200, 256))
    assert DataConfig(url="x", train_crop="resized", train_short_side=(200, 256)).crop_size == 224


@pytest.mark.parametrize(
    "wrong", [{"flipp": "none"}, {"num_frames": 0}, {"std": (0.2, 0.2, 0.0)}, {"url": ""}, {"flip": "always"}]
)
def test_wrong_values_and_unknown_fields_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DataConfig.model_validate({"url": "x", **wrong})


def test_evaluation_reads_the_training_data_set_unless_told_otherwise() -> None:
    assert DataConfig(url="a").resolved_eval_url == "a"
    assert DataConfig(url="a", eval_url="b").resolved_eval_url == "b"
