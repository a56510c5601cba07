"""What a family of vision tower, projector and LLM is: names of weights and of options, walked in both directions.

The tower and the LLM are families of their own (`towers.VISION`, `decoders.TEXT`), each under a prefix; a file of a
family says what lies between them. As for plain LLMs, which family a model is written as is found by asking.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from mmjax.config import ConfigError
from mmjax.encoders.frames import FramesConfig
from mmjax.encoders.vit import ViTConfig
from mmjax.interop.huggingface.decoders import TEXT
from mmjax.interop.huggingface.spelling import Json, fresh
from mmjax.interop.huggingface.text import TextFamily, settle_head, text_family
from mmjax.interop.huggingface.towers import VISION, tower_family
from mmjax.interop.table import Rewrite, Row
from mmjax.interop.tensors import Tensors
from mmjax.model import MultimodalLMConfig

PORT = "image"
# The image tower of LLaVA's kind of config.json that holds none: CLIP ViT-L/14 at 336 pixels.
CLIP_LARGE = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}


@dataclasses.dataclass(frozen=True, eq=False)
class VisionTextFamily:
    """One family.

    Attributes:
        kind, architecture: `model_type`, and the class that loads it.
        read: (config.json, tower, LLM's width) -> options of MultimodalLMConfig beside the backbone.
        write: our config -> their keys beside those of the tower and the LLM.
        rows: our config -> rows of what is neither tower nor LLM, with the names that the hub uses.
        pieces: the names that begin those rows.
        text: `model_type` of the LLM where config.json is silent.
        vision: config of the tower where config.json is silent; with `tower`, of what it leaves out.
        tied: whether the output layer is the embedding where config.json is silent.
        text_keys: keys of the LLM's config that say how the system uses it, and their only values.
        window_pairs: whether windows of the LLM also hold between tokens that see each other both ways.
        towers: port -> prefix of its tower's names; all towers have one config.
        tower: family of the tower where it is the system's own kind, not one that config.json chooses; its CONFIG is
            the encoder's class where that is not ViTConfig.
        language: what begins the names of the LLM.
        root: what begins the names of everything but the output layer where the hub's files have them as they are in
            memory (Idefics2); "" where they are those of whole models side by side (LLaVA).
    """

    kind: str
    architecture: str
    read: Callable[[Mapping[str, Any], ViTConfig, int], dict[str, Any]]
    write: Callable[[MultimodalLMConfig], Json]
    rows: Callable[[MultimodalLMConfig], list[Row]]
    pieces: tuple[str, ...] = ("multi_modal_projector",)
    text: str = "llama"
    vision: Mapping[str, Any] = dataclasses.field(default_factory=lambda: CLIP_LARGE)
    tied: bool = False
    text_keys: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    window_pairs: bool = True
    towers: Mapping[str, str] = dataclasses.field(default_factory=lambda: {PORT: "vision_tower.vision_model."})
    tower: ModuleType | None = None
    language: str = "language_model"
    root: str = ""

    IGNORE = TextFamily.IGNORE

    def config_from_hf(self, hf: Mapping[str, Any]) -> MultimodalLMConfig:
        """config.json -> our config.

        Raises:
            ConfigError: parts or options that are not supported.
        """
        text_part, text = _part(hf, "text_config", TEXT, {"model_type": self.text})
        if self.tower is None:
            vision_part, vision = _part(hf, "vision_config", VISION, self.vision)
        else:
            vision_part, vision = self.tower, {**self.vision, **(hf.get("vision_config") or {})}
        tied = hf.get("tie_word_embeddings", self.tied) or text.get("tie_word_embeddings", False)
        for key, value in self.text_keys.items():
            if text.get(key) not in (None, value):
                raise ConfigError(f"config.json: text_config.{key} {text[key]!r} is not supported, only {value!r}")
        text = {key: value for key, value in text.items() if key not in self.text_keys}
        backbone = text_part.decoder_from_hf({**text, "tie_word_embeddings": tied})
        if backbone.sliding_window is not None:
            backbone = dataclasses.replace(backbone, window_pairs=self.window_pairs)
        return MultimodalLMConfig(backbone, **self.read(hf, vision_part.vision_from_hf(vision), backbone.width))

    def config_to_hf(self, config: MultimodalLMConfig, template: Mapping[str, Any] | None = None) -> Json:
        """Our config -> config.json, over the other keys of `template`.

        Raises:
            ConfigError: the model is not one that the family can express.
        """
        own = self.write(config)
        out = fresh(template)
        text = text_family(config.backbone, TEXT, (out.get("text_config") or {}).get("model_type"))
        vision = self._tower(config, PORT)
        keys = vision.vision_to_hf(image_tower(config, PORT))
        if self.tower is not None:
            keys.setdefault("model_type", f"{self.kind}_vision")
        return {
            **out,
            "model_type": self.kind,
            "architectures": [self.architecture],
            "text_config": {**text.decoder_to_hf(config.backbone, out.get("text_config")), **self.text_keys},
            "vision_config": {**fresh(out.get("vision_config")), **keys},
            "tie_word_embeddings": config.backbone.tie_embeddings,
            **own,
        }

    def _tower(self, config: MultimodalLMConfig, port: str) -> ModuleType:
        """The family of the tower of a port."""
        tower = image_tower(config, port)
        wanted = getattr(self.tower, "CONFIG", ViTConfig)
        if not isinstance(tower, wanted):
            raise ConfigError(
                f"transformers' {self.architecture} has a {wanted.kind} encoder at the port {port!r}; this model has "
                f"{ {port: type(part).__name__ for port, part in config.encoders.items()} }"
            )
        return self.tower or tower_family(tower)

    def _language(self, text: TextFamily) -> tuple[str, str]:
        """The prefix of the LLM's names, and the name of its output layer."""
        if self.root:
            return f"{self.root}{self.language}.", text.head
        return f"{self.language}.{text.model}", f"{self.language}.{text.head}"

    def rewrites(self, config: MultimodalLMConfig) -> list[Rewrite]:
        """Brings the spellings of memory, disk and hub to the hub's, such as `vision_tower.vision_model.`."""
        text = text_family(config.backbone, TEXT)
        towers = [prefix.removeprefix(self.root).split(".", 1) for prefix in self.towers.values()]
        parts = "|".join((*(top for top, _ in towers), self.language, *self.pieces))
        if self.root:
            return [(rf"^(?:{re.escape(self.root)})?({parts})\b", rf"{self.root}\1")]
        tops = "|".join(sorted({name.split(".")[0] for name in text.names.values()}))
        head = text.head.removesuffix(".weight")
        return [
            (rf"^model\.({parts})\b", r"\1"),
            (rf"^{head}\.", f"{self.language}.{head}."),
            (rf"^{self.language}\.({tops})\.", rf"{self.language}.{text.model}\1."),
            *((rf"^{top}\.(?!{re.escape(rest)})", f"{top}.{rest}") for top, rest in towers if rest),
        ]

    def table(self, config: MultimodalLMConfig) -> list[Row]:
        """The rows of the whole model, with the names that the hub uses."""
        text = text_family(config.backbone, TEXT)
        rows = text.rows(config.backbone, *self._language(text))
        for port, prefix in self.towers.items():
            ours = f"encoders/{port}/frame/" if isinstance(config.encoders[port], FramesConfig) else f"encoders/{port}/"
            rows += self._tower(config, port).tower_rows(image_tower(config, port), ours, prefix)
        return rows + self.rows(config)

    def settle(self, config: MultimodalLMConfig, tensors: Tensors) -> tuple[MultimodalLMConfig, dict[str, Any]]:
        """Lets the tensors correct what the config says about a tied output layer, see `settle_head`."""
        text = text_family(config.backbone, TEXT)
        prefix, head = self._language(text)
        backbone, tensors = settle_head(config.backbone, tensors, f"{prefix}{text.names['embed']}.weight", head)
        return dataclasses.replace(config, backbone=backbone), tensors


def image_tower(config: MultimodalLMConfig, port: str) -> Any:
    """The encoder of a port; where it takes videos frame by frame, that of its frames. None: no such port."""
    encoder = config.encoders.get(port)
    return encoder.encoder if isinstance(encoder, FramesConfig) else encoder


def system_family(config: MultimodalLMConfig, families: Mapping[str, Any], preferred: str | None = None) -> Any:
    """The first of `families`, `preferred` before all, that can say all of a model but its LoRA.

    Raises:
        ConfigError: none can; the message is that of the first asked.
    """
    plain = config
    if config.backbone.lora is not None:
        plain = dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, lora=None))
    errors = []
    for kind in sorted(families, key=lambda kind: kind != preferred):
        try:
            back = families[kind].config_from_hf(families[kind].config_to_hf(plain))
        except ConfigError as error:
            errors.append(error)
            continue
        if back == plain:
            return families[kind]
        errors.append(ConfigError(f"transformers' {families[kind].architecture} would lose {_lost(plain, back)}"))
    raise errors[0]


def _lost(config: MultimodalLMConfig, back: MultimodalLMConfig) -> str:
    """The options that differ, in one line."""

    def walk(a, b, where):
        if type(a) is not type(b) or not (dataclasses.is_dataclass(a) or isinstance(a, dict)):
            return [] if a == b else [f"{where} {a!r}"]
        pairs = a.items() if isinstance(a, dict) else ((f.name, getattr(a, f.name)) for f in dataclasses.fields(a))
        get = b.get if isinstance(b, dict) else lambda name: getattr(b, name)
        return [said for name, value in pairs for said in walk(value, get(name), f"{where}.{name}".lstrip("."))]

    return ", ".join(walk(config, back, ""))


def selected(hf: Mapping[str, Any], tower: ViTConfig) -> ViTConfig:
    """The tower with the features that `vision_feature_layer` and `vision_feature_select_strategy` say.

    Raises:
        ConfigError: an unknown strategy.
    """
    layers = hf.get("vision_feature_layer", -2)
    strategy = hf.get("vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):
        raise ConfigError(
            f"config.json: vision_feature_select_strategy {strategy!r} is neither 'default' nor 'full'"
        )
    # "default" drops the first token whatever it is: in a tower without class token, the first patch.
    dropped = "patches" if tower.class_token else "no_first"
    return dataclasses.replace(
        tower,
        feature_layers=tuple(layers) if isinstance(layers, list | tuple) else (layers,),
        feature_strategy=dropped if strategy == "default" else "full",
    )


def selection_to_hf(tower: ViTConfig) -> Json:
    """What `selected` reads."""
    layers = tower.feature_layers
    return {
        "vision_feature_layer": layers[0] if len(layers) == 1 else list(layers),
        "vision_feature_select_strategy": "full" if tower.feature_strategy == "full" else "default",
    }


def _part(hf: Mapping[str, Any], key: str, families: Mapping[str, Any], default: Mapping[str, Any]) -> tuple:
    part = hf.get(key) or default
    kind = part.get("model_type", default["model_type"])
    if kind not in families:
        raise ConfigError(
            f"config.json: {key}.model_type {kind!r} is not supported; supported are {', '.join(families)}"
        )
    return families[kind], part
