import pytest
from pydantic import ValidationError

from vast.data.config import AugmentConfig, DataConfig


@pytest.mark.parametrize("section", [DataConfig, AugmentConfig])
def test_every_field_is_described(section: type[DataConfig] | type[AugmentConfig]) -> None:
    undescribed = [name for name, field in section.model_fields.items() if not field.description]
    assert undescribed == []


@pytest.mark.parametrize(
    ("fields", "mixes"),
    [
        ({}, False),
        ({"mixup_alpha": 0.8}, True),
        ({"cutmix_alpha": 1.0}, True),
        ({"cutmix_alpha": 1.0, "mix_prob": 0.0}, False),
    ],
)
def test_mixing_is_on_when_it_can_happen(fields: dict[str, float], mixes: bool) -> None:
    assert AugmentConfig.model_validate(fields).mixes == mixes


def test_augmentation_is_checked_too() -> None:
    with pytest.raises(ValidationError) as caught:
        AugmentConfig(erase_area=(0.5, 0.2), erase_aspect=(2.0, 1.0))
    assert "erase_area: 0.5 is above 0.2; write the smaller one first; erase_aspect: 2.0 is above" in str(caught.value)
    wrong: list[dict[str, object]] = [{"rand_ops": ()}, {"rand_ops": ("Flip",)}, {"hue": 0.6}, {"rand_magnitude": 11}]
    for fields in wrong:
        with pytest.raises(ValidationError):
            AugmentConfig.model_validate(fields)


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
