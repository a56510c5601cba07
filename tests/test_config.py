"""Strict configs: what does not fit is named, with the nearest right key; what fits comes back unchanged."""

import dataclasses
from typing import ClassVar

import pytest

from mmjax.backbones.decoder import DecoderConfig
from mmjax.config import ConfigError, from_dict, nearest, to_dict
from mmjax.encoders.vit import ViTConfig
from mmjax.model import MultimodalLMConfig
from mmjax.nn.lora import LoRAConfig
from mmjax.projectors.linear import LinearProjectorConfig

BACKBONE = dict(vocab_size=11, width=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, mlp_width=5)
VIT = dict(kind="vit", image_size=16, patch_size=8, width=6, num_layers=2, num_heads=2, mlp_width=7)
MODEL = {
    "backbone": {"kind": "decoder", **BACKBONE, "lora": {"rank": 2, "alpha": 4}},
    "encoders": {"image": VIT},
    "projectors": {"image": {"kind": "linear", "in_width": 6, "width": 8}},
    "media_tokens": {"image": 10},
}


def test_round_trip_builds_nested_parts_by_kind():
    config = from_dict(MultimodalLMConfig, MODEL)
    assert isinstance(config.encoders["image"], ViTConfig)
    assert isinstance(config.projectors["image"], LinearProjectorConfig)
    assert config.backbone.lora == LoRAConfig(2, 4.0) and isinstance(config.backbone.lora.alpha, float)
    assert from_dict(MultimodalLMConfig, to_dict(config)) == config
    assert to_dict(config)["projectors"]["image"]["kind"] == "linear"


def changed(path, value):
    def change(tree, keys):
        head, *rest = keys
        return {**tree, head: change(tree.get(head, {}), rest) if rest else value}

    return change(MODEL, path.split("."))


@pytest.mark.parametrize(
    "path, value, words",
    [
        ("backbone.widht", 8, ["backbone", "'widht'", '"width"']),
        ("backbone.width", "8", ["backbone.width", "expected int", "'8'"]),
        ("backbone.width", True, ["backbone.width", "expected int"]),
        ("backbone.rope_theta", float("nan"), ["backbone.rope_theta", "finite"]),
        ("backbone.activation", "sillu", ["activation", '"silu"']),
        ("backbone.num_kv_heads", 3, ["num_heads 2", "num_kv_heads 3"]),
        ("backbone.lora.rank", 0, ["lora.rank"]),
        ("projectors.image.kind", "liner", ["projectors.image.kind", '"linear"']),
        ("projectors.image.in_width", 7, ["in_width is 7", "gives 6"]),
        ("encoders.image.feature_layers", [5], ["feature_layers", "5", "3 hidden states"]),
        ("encoders.image.feature_layers", -2, ["feature_layers", "sequence"]),
        ("encoders.image.pool", "cls", ["pool", "'class'"]),
        ("encoders", [], ["encoders", "mapping"]),
        ("media_tokens", {}, ["media_tokens", "image"]),
    ],
)
def test_what_does_not_fit_is_named(path, value, words):
    with pytest.raises(ConfigError) as error:
        from_dict(MultimodalLMConfig, changed(path, value))
    for word in words:
        assert word in str(error.value)


def test_missing_keys_and_kinds_are_named():
    with pytest.raises(ConfigError, match="missing key.*'backbone'"):
        from_dict(MultimodalLMConfig, {})
    projectors = {"image": {"in_width": 6, "width": 8}}
    with pytest.raises(ConfigError, match="projectors.image: needs the key 'kind'"):
        from_dict(MultimodalLMConfig, {**MODEL, "projectors": projectors})
    with pytest.raises(ConfigError, match="'vit' does not fit DecoderConfig"):
        from_dict(DecoderConfig, {**BACKBONE, "kind": "vit"})


def test_sequences_optional_values_and_unions():
    @dataclasses.dataclass(frozen=True)
    class Inner:
        size: int
        kind: ClassVar[str] = "inner"

    @dataclasses.dataclass(frozen=True)
    class Outer:
        pair: tuple[int, float]
        names: tuple[str, ...] = ()
        inner: Inner | None = None
        number: int | str = 0

    # Annotations of local classes cannot be looked up by name, so they are resolved here.
    Outer.__annotations__.update(inner=Inner | None)
    built = from_dict(
        Outer, {"pair": [1, 2], "names": ["a"], "inner": {"kind": "inner", "size": 3}, "number": "x"}
    )
    assert built == Outer((1, 2.0), ("a",), Inner(3), "x")
    assert to_dict(built) == {
        "pair": [1, 2.0],
        "names": ["a"],
        "inner": {"kind": "inner", "size": 3},
        "number": "x",
    }
    with pytest.raises(ConfigError, match="expected 2 items"):
        from_dict(Outer, {"pair": [1]})
    with pytest.raises(ConfigError, match=r"names\[1\]"):
        from_dict(Outer, {"pair": [1, 2], "names": ["a", 2]})
    assert nearest("zzz", ["abc"]) == "" and nearest("widht", ["width"]) == ' Did you mean "width"?'
