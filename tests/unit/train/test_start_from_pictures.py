"""A video model that starts from an image model that was trained on pictures."""

import pytest
import torch

from vast.data.augment import normalise
from vast.errors import UserError
from vast.train.job import Place
from vast.train.loop import Run


@pytest.fixture
def trained(tiny_config, recorder, picture_shards):
    """The folder of an AST that has learned to tell pictures apart, and its model."""
    log = recorder("pictures")
    data = {"url": picture_shards, "num_frames": 1, "crop_size": 32, "eval_short_side": 36, "num_readers": 0}
    config = tiny_config(
        model={"name": "ast_micro", "shift_border": "replicate"},
        data={**data, "flip": "none"},  # the classes are directions
        optim={"epochs": 5, "global_batch": 16, "max_micro_batch": 16, "lr": 3e-3},
        eval={"every_epochs": 5},
    )
    run = Run(config, Place(), log, log)
    assert run.fit().score.records == 16
    assert log.figures[20]["eval/top1"] >= 75  # chance is 25
    return str(log.folder / "step-20"), run.model.eval()


@pytest.mark.parametrize("bias_kernel", ["1x3x3", "3x3x3"])
def test_static_clips_have_the_features_of_their_picture(trained, tiny_config, recorder, bias_kernel):
    folder, image_model = trained
    model = {"name": "vast_micro", "shift_border": "replicate", "bias_kernel": bias_kernel}
    log = recorder("clips")
    config = tiny_config(model=model, init_from=folder)
    run = Run(config, Place(), log, log)

    text = run.start(None)

    assert text.startswith(f"weights of ast_micro from {folder}: ")
    assert ("6 inflated" in text) == (bias_kernel == "3x3x3")
    assert "2 reinitialised (head.weight, head.bias)" in text
    assert "missing" not in text
    assert "unexpected" not in text
    pixels_BCTHW = torch.randint(0, 256, (2, 3, 1, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    picture_BCTHW = normalise(pixels_BCTHW, config.data.mean, config.data.std)
    with torch.no_grad():
        wanted = image_model.forward_features(picture_BCTHW).expand(-1, 5, -1, -1, -1)
        found = run.model.eval().forward_features(picture_BCTHW.expand(-1, -1, 5, -1, -1))
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_another_size_is_refused_by_name(trained, tiny_config, recorder):
    folder, _ = trained
    log = recorder("clips")
    run = Run(tiny_config(model={"name": "vast_ti"}, init_from=folder), Place(), log, log)
    with pytest.raises(UserError, match=r"init_from: the weights are those of ast_micro, but model\.name is vast_ti"):
        run.start(None)
