"""What systems share that find images (Koh et al., 2023): CLIP's one vector of each, and the space they lie in."""

from typing import Any

from configs.parts import CLIP_L_224, Part, num_features

# The features end with CLIP's normed class token in the first place.
CLIP_L_CLASS: Part = {**CLIP_L_224, "feature_layers": (-1,), "feature_strategy": "full", "feature_norm": True}


def class_tokens(tower: Part, llm: Part, tokens: int) -> Part:
    """One linear map from an image's one vector to several tokens."""
    return {
        "kind": "class_tokens", "in_width": tower["width"], "width": llm["width"], "tokens": tokens,
        "num_features": num_features(tower),
    }  # fmt: skip


def finder(tower: Part, llm: Part, tiny: bool) -> tuple[Part, Part]:
    """The generator that finds images, and the linear map before it, from the first state of a signal."""
    width = 12 if tiny else 256
    generator = {"kind": "retrieval", "in_width": tower["width"], "width": width, "condition_map": False}
    output = {"kind": "linear_output", "in_width": llm["width"], "width": width, "pooled": "first"}
    return generator, output


def finds(tower: Part, of: str = "image_out") -> dict[str, Any]:
    """The recipe of images that are to be found."""
    return {"target_processor_type": "RetrievalTargets", "of": of, "side": tower["image_size"]}
