"""All families of plain encoder-decoder LLMs, by their `model_type`."""

import dataclasses
from types import ModuleType

from mmjax.backbones.encoder_decoder import EncoderDecoderConfig
from mmjax.config import ConfigError
from mmjax.interop.huggingface import bart, t5

# In the order in which they are asked whether a backbone can be written as one of them.
ENCODER_DECODERS: dict[str, ModuleType] = {"t5": t5, "bart": bart}


def encoder_decoder_family(config: EncoderDecoderConfig) -> ModuleType:
    """The family whose config.json says every option of a backbone.

    Raises:
        ConfigError: none does; the message names what each would lose.
    """
    said = []
    for kind, family in ENCODER_DECODERS.items():
        try:
            back = family.backbone_from_hf(family.backbone_to_hf(config))
        except ConfigError as error:
            said.append(f"{kind}: {error}")
            continue
        if back == config:
            return family
        names = [field.name for field in dataclasses.fields(config)]
        lost = [name for name in names if getattr(back, name) != getattr(config, name)]
        said.append(f"{kind} would lose " + ", ".join(f"backbone.{name} {getattr(config, name)!r}" for name in lost))
    raise ConfigError("no encoder-decoder that transformers has can be written with this:\n  " + "\n  ".join(said))
