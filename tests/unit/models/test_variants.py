"""The size table, the configuration and its messages."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from vast.errors import UserError
from vast.models import SIZES, ModelConfig, create_model


def test_families_share_their_sizes():
    for name, size in SIZES.items():
        assert size == SIZES[name.replace("vast_", "ast_")]
        assert "our choice" in size.source
        assert len(size.dims) == len(size.depths)
        assert size.total_stride == size.patch_size * 2 ** (len(size.dims) - 1)


def test_unknown_name_lists_the_models_and_guesses():
    with pytest.raises(UserError, match=r"no model 'vast_mico'.*Did you mean 'vast_micro'.*ast_ti.*vast_b"):
        create_model("vast_mico", 5)
    with pytest.raises(ValidationError, match=r"no model 'resnet'"):
        ModelConfig(name="resnet")


def test_all_problems_come_at_once_with_the_known_fields():
    with pytest.raises(UserError) as caught:
        create_model("vast_micro", 5, shift_fraction=0.9, scale_pool="video", temporal_shft=False)
    message = str(caught.value)
    for part in ("model.shift_fraction", "model.scale_pool", "model.temporal_shft", "temporal_shift"):
        assert part in message


def test_six_directions_need_a_sixth_of_the_channels_each():
    with pytest.raises(ValidationError, match=r"shift_fraction is 0\.2, .*1/6"):
        ModelConfig(name="vast_micro", shift_fraction=0.2)
    assert ModelConfig(name="vast_micro", shift_fraction=0.2, temporal_shift=False).shift_fraction == 0.2
    assert ModelConfig(name="ast_micro", shift_fraction=0.25).shift_fraction == 0.25


def test_changes_replace_fields_and_are_validated():
    config = ModelConfig(name="vast_micro", drop_path=0.1)
    model = create_model(config, 5, temporal_shift=False)
    assert (model.config.drop_path, model.config.temporal_shift) == (0.1, False)
    with pytest.raises(UserError, match=r"model\.drop_path"):
        create_model(config, 5, drop_path=1.0)


def test_every_field_is_described():
    undescribed = [name for name, field in ModelConfig.model_fields.items() if not field.description]
    assert not undescribed


def test_configuration_needs_no_torch():
    code = "import sys, vast.models; vast.models.ModelConfig(name='vast_ti'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
