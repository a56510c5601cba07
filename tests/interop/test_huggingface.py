"""Which family a config is written as."""

import pytest

from mmjax.config import ConfigError
from mmjax.encoders.frames import FramesConfig
from mmjax.encoders.mixed import MixedEncoderConfig
from mmjax.encoders.point_cloud import PointCloudConfig
from mmjax.encoders.raw_patches import RawPatchesConfig
from mmjax.encoders.vit import ViTConfig
from mmjax.interop.huggingface import family_of, save

TOWER = ViTConfig(12, 4, 12, 1, 2, 16, feature_layers=(-1,), feature_strategy="patches")
ALONE = {
    "frames": FramesConfig(TOWER, 2),
    "mixed": MixedEncoderConfig({"near": TOWER, "far": TOWER}, 12, 4),
    "point_cloud": PointCloudConfig(19, 6, 5, 4, 12, 2, 3, 16, group_width=10, point_widths=(6, 7)),
    "raw_patches": RawPatchesConfig(3),
}


@pytest.mark.parametrize("kind", ALONE)
def test_an_encoder_that_no_class_holds_says_so(kind, tmp_path):
    with pytest.raises(ConfigError, match=f'kind {ALONE[kind].kind!r} alone; .*format="mmjax"'):
        family_of(ALONE[kind])
    with pytest.raises(ConfigError, match="no class"):
        save(tmp_path, ALONE[kind], {})
    assert not list(tmp_path.iterdir())
