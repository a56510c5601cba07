"""Which parts a model is composed of, by port, and what a processor must know of them."""

import dataclasses
import functools
import math
from typing import Any, ClassVar

import numpy as np

from mmjax.backbones import BackboneConfig
from mmjax.backbones.encoder_decoder import EncoderDecoderConfig
from mmjax.config import ConfigError, check_choice
from mmjax.data.bidirectional import KINDS
from mmjax.data.inside import SEES
from mmjax.data.items import Layout
from mmjax.encoders import EncoderConfig
from mmjax.encoders.dual import TextConfig
from mmjax.generators import GeneratorConfig
from mmjax.generators.image_codes import ImageCodesConfig
from mmjax.output_projectors import OutputProjectorConfig
from mmjax.projectors import ProjectorConfig
from mmjax.projectors.perceiver import PerceiverConfig
from mmjax.projectors.qformer import QFormerConfig
from mmjax.projectors.tiles import TilesConfig
from mmjax.region_ports import check_regions
from mmjax.signals import check_generators


@dataclasses.dataclass(frozen=True)
class MultimodalLMConfig:
    """Which parts, by port.

    Attributes:
        backbone: the LLM.
        encoders: port -> encoder, in the order in which their tokens are numbered.
        projectors: port -> projector; the same ports as `encoders`. Ports that are read inside the backbone may do
            without: their features are read as they come.
        media_tokens: port -> token id that stands in `tokens` wherever a media token stands (never looked up).
        shared: port -> port whose encoder's and projector's parameters it uses, e.g. {"video": "image"}. Their
            configs may differ in what has no parameters.
        positions_per_second: how far positions on the axis of time go on in a second of video; None: one a frame.
        frames_apart: whether the frames of a video stand apart in the text, each behind its own time (Qwen3-VL).
        bidirectional: which tokens of a prompt also see later ones: "none", the whole "prefix" before the first
            target (PaliGemma), or the tokens of one media item those of the same "item" (Gemma 3).
        inside: ports whose tokens do not stand in the text but are read inside the backbone by its fusion
            (Flamingo's gated cross-attention, LLaMA-Adapter's prompts). In a prompt an item of such a port stands
            as its one media token, or as nothing where the port has none.
        inside_sees: which items of those ports a token sees, see `mmjax.data.inside`.
        shared_projectors: port -> port whose projector's parameters it uses, behind an encoder of its own
            (Video-LLaVA).
        regions: port whose items are regions -> port of the images whose features its projector reads.
        views: port -> port whose items it sees too, with an encoder of its own (CogAgent's large images).
        generators: port -> generator of what the LLM asks for with the signal of that port.
        output_projectors: port -> what makes the generator's condition of hidden states; the same ports.
        signal_tokens: port -> the token ids that, one after the other, are its signal (LISA's one [SEG]).
        generator_encoders: port -> encoder of its generator's own: of the image that it reads (LISA's SAM), or of the
            texts that it was trained with (Stable Diffusion's).
        signal_states: which hidden states a signal is: those "at" its tokens, which have read them, or those one
            "before", which said them (LISA as published).
        codes: how the LLM writes images as it writes words, a code a token; None: it does not.
    """

    backbone: BackboneConfig
    encoders: dict[str, EncoderConfig] = dataclasses.field(default_factory=dict)
    projectors: dict[str, ProjectorConfig] = dataclasses.field(default_factory=dict)
    media_tokens: dict[str, int] = dataclasses.field(default_factory=dict)
    shared: dict[str, str] = dataclasses.field(default_factory=dict)
    positions_per_second: float | None = None
    frames_apart: bool = False
    bidirectional: str = "none"
    inside: tuple[str, ...] = ()
    inside_sees: str = "all"
    shared_projectors: dict[str, str] = dataclasses.field(default_factory=dict)
    regions: dict[str, str] = dataclasses.field(default_factory=dict)
    views: dict[str, str] = dataclasses.field(default_factory=dict)
    generators: dict[str, GeneratorConfig] = dataclasses.field(default_factory=dict)
    output_projectors: dict[str, OutputProjectorConfig] = dataclasses.field(default_factory=dict)
    signal_tokens: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    generator_encoders: dict[str, EncoderConfig | TextConfig] = dataclasses.field(default_factory=dict)
    signal_states: str = "at"
    codes: ImageCodesConfig | None = None

    kind: ClassVar[str] = "multimodal_lm"

    def __post_init__(self):
        fusion = getattr(self.backbone, "fusion", None)
        reads = hasattr(fusion, "memory_width")
        for port in self.inside:
            check_choice("inside", port, tuple(self.encoders))
            if not reads:
                raise ConfigError(f"inside: {port!r} needs a backbone whose fusion reads media")
        for name in ("projectors", "media_tokens"):
            ports = {*getattr(self, name), *self.inside}
            if ports != set(self.encoders):
                raise ConfigError(f"{name} has ports {sorted(ports)}, encoders has {sorted(self.encoders)}")
        check_choice("bidirectional", self.bidirectional, KINDS)
        check_choice("inside_sees", self.inside_sees, SEES)
        for port, other in self.shared.items():
            if port not in self.encoders or other not in self.encoders or other in self.shared:
                raise ConfigError(
                    f"shared: {port!r} cannot use the parameters of {other!r}; ports with parameters are "
                    f"{[name for name in self.encoders if name not in self.shared]}"
                )
        for port, other in self.shared_projectors.items():
            borrowed = {*self.shared, *self.shared_projectors}
            if port not in self.encoders or port in self.shared or other not in self.encoders or other in borrowed:
                raise ConfigError(
                    f"shared_projectors: {port!r} cannot use the projector of {other!r}; ports with projectors are "
                    f"{[name for name in self.encoders if name not in borrowed]}"
                )
        check_regions(self)
        check_generators(self)
        self._check_codes()
        for port, viewed in self.views.items():
            if port not in self.encoders or viewed not in self.encoders or viewed in self.views:
                raise ConfigError(
                    f"views: {port!r} cannot see the items of {viewed!r}; ports with items are "
                    f"{[name for name in self.encoders if name not in self.views]}"
                )
        for port, encoder in self.encoders.items():
            projector, features = self.projectors.get(port), encoder.feature_width
            if projector is not None and projector.in_width != features:
                raise ConfigError(
                    f"projectors.{port}.in_width is {projector.in_width}; its encoder gives {features}"
                )
            width, where = self.backbone.width, "the backbone's"
            if port in self.inside:
                width, where = fusion.memory_width(self.backbone.block), "what its fusion reads"
            if projector is None and features != width:
                raise ConfigError(f"encoders.{port} gives {features} channels without a projector; {where} is {width}")
            if projector is not None and projector.width != width:
                raise ConfigError(f"projectors.{port}.width is {projector.width}; {where} is {width}")

    def _check_codes(self) -> None:
        codes, vocab = self.codes, self.backbone.vocab_size
        if codes is None:
            return
        if codes.port in (*self.encoders, *self.generators):
            raise ConfigError(f"codes.port: {codes.port!r} is the port of an encoder or generator too")
        if codes.width != self.backbone.width:
            raise ConfigError(f"codes.width is {codes.width}; the backbone's is {self.backbone.width}")
        if codes.own and codes.first != vocab:
            raise ConfigError(f"codes.first is {codes.first}; its own codes begin behind the vocabulary of {vocab}")
        named = (codes.begin, codes.row_end, codes.placeholder, *codes.tail, *(() if codes.own else codes.tokens()))
        outside = [int(token) for token in named if token is not None and not 0 <= token < vocab]
        if outside:
            raise ConfigError(f"codes: token {outside[0]} is outside the vocabulary of {vocab}")

    @property
    def words(self) -> int:
        """How many tokens the LLM may write: its vocabulary, and behind it codes with an embedding of their own."""
        own = self.codes is not None and self.codes.own
        return self.backbone.vocab_size + (self.codes.maps.codes if own else 0)

    @property
    def unmarked(self) -> tuple[str, ...]:
        """The ports that are read inside the backbone and whose items leave no token in the text."""
        return tuple(port for port in self.inside if port not in self.media_tokens)

    @property
    def streams(self) -> tuple[str, ...]:
        """The text streams of a batch: that which is written last, before it the one that is only read."""
        return ("query", "decoder") if isinstance(self.backbone, EncoderDecoderConfig) else ("text",)

    def num_tokens(self, port: str, grid=None, original_size=None) -> int:
        """How many LLM tokens one item of `port` becomes; plain Python, before any array exists.

        Args:
            port: name of the input.
            grid: (time, height, width) of the item in patches, where the encoder keeps native resolution.
            original_size: (height, width) in pixels, where the count depends on it.
        """
        check_choice("port", port, tuple(self.encoders))
        arranged = self.arrangement(port, grid, original_size)
        if arranged is not None:
            return len(arranged[0])
        features = self.encoders[port].num_tokens(grid, original_size)
        return self.projectors[port].num_tokens(features, grid) if port in self.projectors else features

    def arrangement(self, port: str, grid=None, original_size=None) -> tuple[np.ndarray, np.ndarray | None] | None:
        """Which of an item's projected tokens its LLM tokens are made of, see `TilesConfig.arrangement`.

        None where they are the projector's tokens as they come.
        """
        projector = self.projectors.get(port)
        return projector.arrangement(grid, original_size) if isinstance(projector, TilesConfig) else None

    def layout(self, port: str) -> Layout:
        """How the items of a port lie in a batch."""
        encoder, projector = self.encoders[port], self.projectors.get(port)
        if isinstance(projector, TilesConfig):
            each = projector.num_tokens(encoder.num_tokens())
            return Layout(
                encoder.item_shape,
                tokens=lambda entries: projector.leading + entries * each,
                entries=projector.num_entries,
                arrange=projector.arrangement,
                leading=projector.leading,
            )
        if getattr(encoder, "packed", False):
            latents = projector.num_latents if isinstance(projector, PerceiverConfig) else None
            return Layout(
                encoder.item_shape[1:],
                tokens=projector.num_tokens if projector else lambda patches: patches,
                entries=lambda grid, original_size: math.prod(grid),
                packed=True,
                axes=functools.partial(self._axes, port) if latents is None else None,
                each=latents,
            )
        each = lambda entries: entries * self.num_tokens(port)
        return Layout(encoder.item_shape, tokens=each, parent=self.regions.get(port))

    @property
    def layouts(self) -> dict[str, Layout]:
        """`layout` of every port."""
        return {port: self.layout(port) for port in self.encoders}

    @property
    def plan_options(self) -> dict[str, Any]:
        """What a token plan must know of the model beside its counts: fields of `TokenPlan`."""
        return {
            "layouts": self.layouts,
            "axes": bool(getattr(self.backbone, "rope_sections", ())),
            "bidirectional": self.bidirectional,
            "inside": dict.fromkeys(self.inside, self.inside_sees),
            "start_token": getattr(self.backbone, "start_token", None),
            "instructed": {
                port: projector.max_positions
                for port, projector in self.projectors.items()
                if isinstance(projector, QFormerConfig) and projector.vocab_size is not None
            },
        }

    @property
    def processor_options(self) -> dict[str, Any]:
        """What a processor must know of the model: `plan_options`, and fields that are the processor's own."""
        codes = None if self.codes is None else self.codes.layout
        return {**self.plan_options, "views": self.views, "signals": self.signal_tokens, "codes": codes}

    def _axes(self, port: str, grid: tuple[int, int, int], seconds: float | None) -> tuple[tuple[int, int, int], float]:
        """(time, height, width) of a packed item in LLM tokens, and its positions a unit of time."""
        factor = getattr(self.projectors.get(port), "factor", 1)
        step = 1.0
        if self.positions_per_second is not None and port == "video":
            step = self.positions_per_second * (1.0 if seconds is None else seconds)
        return (grid[0], grid[1] // factor, grid[2] // factor), step
