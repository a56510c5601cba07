"""Qwen2.5-VL (transformers' Qwen2_5_VLForConditionalGeneration): windows in the tower, and time in seconds.

https://github.com/huggingface/transformers/tree/main/src/transformers/models/qwen2_5_vl
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.qwen2_vision import Qwen2VisionConfig
from mmjax.interop.huggingface import qwen2_vl
from mmjax.interop.huggingface.qwen2_vl import QwenVLFamily, sizes_to_hf, tower_sizes
from mmjax.interop.huggingface.spelling import Json, activation_from_hf

TEXT = dataclasses.replace(qwen2_vl.TEXT, kind="qwen2_5_vl_text", architecture="Qwen2_5_VLTextModel")


def _read(hf: Mapping[str, Any]) -> tuple[Qwen2VisionConfig, int, float]:
    sizes = tower_sizes(hf)
    # Windows are whole squares of the merger: what is left over of `window_size` has never counted.
    square = sizes["merge_size"] * sizes["patch_size"]
    tower = Qwen2VisionConfig(
        width=hf.get("hidden_size", 3584),
        mlp_width=hf.get("intermediate_size", 3420),
        activation=activation_from_hf(hf, "hidden_act", "silu"),
        gated=True,
        norm="rms",
        window=hf.get("window_size", 112) // square * sizes["merge_size"],
        full_layers=tuple(hf.get("fullatt_block_indexes", (7, 15, 23, 31))),
        **sizes,
    )
    return tower, hf.get("out_hidden_size", 3584), float(hf.get("tokens_per_second", 4))


def _write(tower: Qwen2VisionConfig, width: int, per_second: float | None) -> Json:
    if not tower.gated or tower.norm != "rms" or tower.window is None or per_second is None or per_second % 1:
        raise ConfigError(
            "transformers' Qwen2_5_VL has a tower with RMS norms, gates and windows, and a whole number of "
            f"positions_per_second; this has norm={tower.norm!r}, gated={tower.gated}, window={tower.window}, "
            f"positions_per_second={per_second}"
        )
    return {
        **sizes_to_hf(tower),
        "model_type": "qwen2_5_vl_vision",
        "hidden_size": tower.width,
        "out_hidden_size": width,
        "intermediate_size": tower.mlp_width,
        "window_size": tower.window * tower.patch_size,
        "fullatt_block_indexes": list(tower.full_layers),
        "tokens_per_second": int(per_second),
    }


FAMILY = QwenVLFamily("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", TEXT, _read, _write)
