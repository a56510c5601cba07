"""From a conversation to a planned sample: tokens from the tokenizer, pixels from the image recipes."""

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmjax.data.answers import without_targets
from mmjax.data.chat_template import (
    Shown,
    TextSpan,
    encode_branches,
    encode_conversation,
    encode_plain,
)
from mmjax.data.code_images import CodeImages, CodeLayout, as_codes
from mmjax.data.conversation import Conversation, MediaPart, TextPart, parse_record
from mmjax.data.items import Layout, MediaSize, TokenPlanError
from mmjax.data.merged_ports import counted, gathered
from mmjax.data.recipes import Recipe, recipe_from_hf, source_of
from mmjax.data.region_places import image_numbers, placement
from mmjax.data.region_processor import RegionProcessor
from mmjax.data.samples import Sample
from mmjax.data.targets import as_signals, with_outputs
from mmjax.data.token_plan import TokenPlan
from mmjax.data.tokenizer import Tokenizer, load_tokenizer
from mmjax.data.views import with_views
from mmjax.data.wording import WORDINGS, Piece, Source, Wording

OWN_FILE = "mmjax_processor.json"
# The folder of the tokenizer of a Q-Former that reads an instruction.
READER = "qformer_tokenizer"
_PLAN_FIELDS = ("lengths", "items", "targets", "too_long", "grouped", "entries")


@dataclasses.dataclass(frozen=True)
class Processor:
    """All that stands between a conversation and the model's input, for one checkpoint.

    Attributes:
        tokenizer: text to ids and back.
        images: port -> how its images become arrays. A port without one takes float arrays as they are,
            for instance features [N, D] that were encoded beforehand.
        template: jinja source of the chat template; None takes the tokenizer's own.
        placeholders: port -> what the chat template prints where an item stands, for instance "<image>".
        media_tokens: port -> the id that stands for the port's media, all ports in the config's order.
        count: (port, grid, original_size) -> tokens of an item; the model's `num_tokens`.
        lengths, items, targets, too_long, grouped, layouts, entries, axes, bidirectional, inside, start_token: see
            `TokenPlan`; the model's config has the layouts and says whether positions have axes, what sees each other
            both ways, what is read inside the backbone, and what a decoder of its own starts with.
        signals: port of a generator -> the ids that stand for what it is to draw; the recipe of such a port in `images`
            is a `MaskTargets`.
        codes: how images stand in texts as codes, whose port's recipe in `images` is a `CodeImages`; the model's config
            says it. None: they do not.
        wording: which of `mmjax.data.wording.WORDINGS` says what stands around and between the tokens of an item;
            None: nothing does.
        names: what transformers' processor says of itself: tokens by the names that the wording calls them, and numbers
            that matter there alone, which an export keeps.
        instructed: see `TokenPlan`.
        reader: tokenizer of what a projector reads beside the media, which is the text of the users; None: none does.
        views: port -> port whose items it sees too, see `with_views`; the model's config says it.
    """

    tokenizer: Tokenizer
    images: Mapping[str, Recipe]
    template: str | None
    placeholders: Mapping[str, str]
    media_tokens: Mapping[str, int]
    count: Callable[[str, Any, Any], int]
    lengths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048, 4096)
    items: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    targets: tuple[int, ...] = ()
    too_long: Literal["error", "skip", "truncate"] = "error"
    grouped: bool = False
    layouts: Mapping[str, Layout] = dataclasses.field(default_factory=dict)
    entries: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    axes: bool = False
    bidirectional: Literal["none", "prefix", "item"] = "none"
    inside: Mapping[str, str] = dataclasses.field(default_factory=dict)
    start_token: int | None = None
    wording: str | None = None
    names: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    instructed: Mapping[str, int] = dataclasses.field(default_factory=dict)
    reader: Tokenizer | None = None
    views: Mapping[str, str] = dataclasses.field(default_factory=dict)
    signals: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    codes: CodeLayout | None = None

    def __post_init__(self):
        for port in (*self.images, *self.placeholders):
            if port not in (*self.ports, *self.made, *self.merged):
                raise ValueError(f"port {port!r} has no media token; ports: {list(self.ports)}")

    @property
    def ports(self) -> tuple[str, ...]:
        """All ports of the model."""
        return (*self.media_tokens, *(port for port in self.inside if port not in self.media_tokens))

    @property
    def made(self) -> tuple[str, ...]:
        """The ports of what the model makes: whose items stand in the text as signals, or as codes."""
        return (*self.signals, *(() if self._code_images is None else (self.codes.port,)))

    @property
    def merged(self) -> dict[str, str]:
        """Ports of conversations whose sources become items of one of the model's, see `Wording.becomes`."""
        ports = {*self.ports}
        return {port: own for port, own in self.said.becomes.items() if port not in ports and own in ports}

    @property
    def _code_images(self) -> CodeImages | None:
        """The recipe of images as codes. Without one there are none, whatever the model could do."""
        recipe = None if self.codes is None else self.images.get(self.codes.port)
        return recipe if isinstance(recipe, CodeImages) else None

    @functools.cached_property
    def code_run(self) -> TextSpan | None:
        """An image as codes, see `CodeImages.run`; None where there are no such images."""
        recipe = self._code_images
        return None if recipe is None else recipe.run(self.codes, self.tokenizer)

    @property
    def plan(self) -> TokenPlan:
        """The token plan that samples are made with; hand the same one to `collate` and the pipeline."""
        apart = {*self.made, *self.merged}
        shapes = {port: recipe.item_shape for port, recipe in self.images.items() if port not in apart}
        return TokenPlan(
            count=self.count,
            media_tokens=self.media_tokens,
            item_shapes={port: shape for port, shape in shapes.items() if shape is not None},
            drawn={port: self.images[port].specs for port in self.made if port in self.images},
            layouts=self.layouts,
            axes=self.axes,
            bidirectional=self.bidirectional,
            inside=self.inside,
            start_token=self.start_token,
            instructed=self.instructed,
            **{name: getattr(self, name) for name in _PLAN_FIELDS},
        )

    def sample(
        self,
        conversation: Conversation,
        add_generation_prompt: bool = False,
        mode: Literal["chat", "plain"] = "chat",
    ) -> Sample:
        """Tokenises a conversation, opens and processes its media, and plans the two together.

        Branches are merged into one sample that shares their prefix (`TokenPlan.share_prefix`).

        Args:
            conversation: its `name` is what messages call the sample.
            add_generation_prompt: end with the words that open an assistant's answer.
            mode: "chat" renders the chat template; "plain" puts the parts one after the other, as caption
                pre-training does.

        Raises:
            ValueError: a conversation that the template refuses, an image that cannot be read
                (`ImageError`), or text and media that do not fit (`TokenPlanError`, `SampleTooLong`).
            FileNotFoundError: naming the sample and the path of an image.
        """
        plan, name = self.plan, conversation.name
        conversation = with_views(with_outputs(conversation, self.made), self.views)
        parts = {port: conversation.media(port) for port in {*plan.ports, *conversation.ports} - {*self.made}}
        regional = [port for port in parts if isinstance(self.images.get(port), RegionProcessor)]
        opened = {
            port: [self._open(part, i, name) for i, part in enumerate(p)]
            for port, p in parts.items()
            if port not in regional
        }
        opened |= {port: self._open_regions(conversation, port, opened) for port in regional}
        shown = {
            port: [self._pieces(plan, port, said, name) for _, said in opened.get(port, ())]
            for port in (*plan.ports, *self.merged)
        }
        branches = self._encode(conversation, add_generation_prompt, mode, shown)
        if add_generation_prompt and self.start_token is not None:
            # The answer is yet to come: an encoder-decoder reads earlier ones like all the rest.
            branches = [without_targets(branch) for branch in branches]
        stop = self.tokenizer.eos_id
        branches = [as_signals(branch, conversation, self.signals, stop) for branch in branches]
        if self.code_run is not None:
            run = self.codes.port, self.code_run, stop
            branches = [as_codes(branch, conversation, *run) for branch in branches]
        opened, places = gathered(conversation, opened, self.merged)
        branches = [counted(branch, opened, places) for branch in branches]
        sizes = {port: [size for _, said in media for size in said.sizes] for port, media in opened.items()}
        if conversation.branches:
            planned = [plan.plan_sample(branch, sizes, name, branch=True) for branch in branches]
            sample = plan.share_prefix(planned)
        else:
            sample = plan.plan_sample(branches[0], sizes, name)
        media = {}
        for port, counts in sample.item_tokens.items():
            process = self.images.get(port, _unchanged)
            if port in regional:
                process = functools.partial(process, name=f"{name}: {port}")
            arrays: list[np.ndarray] = []
            recipes = places.recipes.get(port, (port,) * len(opened[port]))
            for (source, _), own in zip(opened[port], recipes, strict=True):
                if len(arrays) < len(counts):
                    made = process(source) if own == port else self.images[own](source)
                    arrays += made if isinstance(made, list) else [made]
            media[port] = arrays
        if any(media.get(port) for port in self.instructed):
            sample = dataclasses.replace(sample, instruction=self._instruction(conversation))
        sample = dataclasses.replace(sample.with_media(media), targets=self._targets(conversation, opened))
        if sample.targets:
            plan.check(sample)
        return sample

    def _targets(
        self, conversation: Conversation, opened: Mapping[str, Sequence[tuple[Any, Source]]]
    ) -> dict[str, Any]:
        """What generators are to draw, see `mmjax.data.targets`; a port without a recipe has none."""
        images = {port: [image for image, _ in media] for port, media in opened.items()}
        found = {
            port: self.images[port].targets(conversation, port, images)
            for port in self.made
            if port in self.images
        }
        return {port: arrays for port, arrays in found.items() if arrays is not None}

    def from_record(
        self,
        record: Mapping[str, Any],
        name: str,
        image_root: str | None = None,
        mode: Literal["chat", "plain"] = "chat",
    ) -> Sample:
        """`parse_record`, then `sample`: with functools.partial, the `to_sample` of a pipeline."""
        return self.sample(parse_record(record, name, image_root), mode=mode)

    def save(self, directory: str | os.PathLike) -> None:
        """Writes tokenizer files, preprocessor_config.json, chat_template.jinja and mmjax_processor.json.

        transformers reads all but the last. `count` is the model's and is not saved.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(directory))
        if self.reader is not None:
            self.reader.save(str(directory / READER))
        template = self.template or self.tokenizer.chat_template
        if template is not None:
            (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
        recipes = {port: images.to_hf() for port, images in self.images.items()}
        if "video" in recipes:
            _write_json(directory / "video_preprocessor_config.json", recipes["video"])
        others = [recipe for port, recipe in recipes.items() if port != "video"]
        if others:
            first = {**(recipes.get("image") or others[0]), **self.said.image}
            if self.said.count_key is not None:
                first[self.said.count_key] = self.count("image", None, None)
            _write_json(directory / "preprocessor_config.json", first)
        about = {**({} if self.wording is None else {"processor_class": self.wording}), **self.names}
        if about:
            _write_json(directory / "processor_config.json", about)
        own = {
            "images": recipes,
            "placeholders": dict(self.placeholders),
            "media_tokens": dict(self.media_tokens),
            "wording": self.wording,
            "names": dict(self.names),
        }
        own |= {name: getattr(self, name) for name in _PLAN_FIELDS}
        for name in ("items", "entries"):
            own[name] = {port: list(ladder) for port, ladder in getattr(self, name).items()}
        _write_json(directory / OWN_FILE, own)

    def _instruction(self, conversation: Conversation) -> np.ndarray:
        """What the users say, a line a message, in the tokens of `reader`."""
        if self.reader is None:
            raise TokenPlanError(
                f"{conversation.name}: the projector reads an instruction beside the media, and the checkpoint has no "
                f"tokenizer for it ({READER}/)"
            )
        if conversation.branches:
            raise TokenPlanError(
                f"{conversation.name}: its branches cannot share their media: the projector reads the text of each"
            )
        users = [message for message in conversation.messages if message.role == "user"]
        texts = ("".join(part.text for part in user.parts if isinstance(part, TextPart)) for user in users)
        before, behind = self.reader.frame
        return np.array([*before, *self.reader.encode("\n".join(filter(None, texts))), *behind], np.int32)

    @property
    def said(self) -> Wording:
        """What stands around and between the tokens of an item."""
        return WORDINGS.get(self.wording or "", Wording())

    def _pieces(self, plan: TokenPlan, port: str, source: Source, name: str) -> tuple[Piece, ...]:
        tokens = [plan.tokens_of(self.merged.get(port, port), size, name) for size in source.sizes]
        names = {**self.said.names, **self.tokenizer.named_tokens, **self.names}
        return self.said.of(port, source._replace(tokens=tokens), names)

    def _encode(self, conversation: Conversation, add_generation_prompt: bool, mode: str, shown: Shown) -> Sequence:
        if mode == "plain":
            if conversation.branches:
                raise TokenPlanError(f'{conversation.name}: a conversation with branches needs mode "chat"')
            return [encode_plain(conversation, self.tokenizer, shown)]
        if mode != "chat":
            raise ValueError(f'mode is {mode!r}; wanted "chat" or "plain"')
        encode = encode_branches if conversation.branches else encode_conversation
        template = next((self.said.templates[p] for p in conversation.ports if p in self.said.templates), self.template)
        spans = encode(conversation, self.tokenizer, template, self.placeholders, add_generation_prompt, shown)
        return spans if conversation.branches else [spans]

    def _open_regions(
        self, conversation: Conversation, port: str, opened: Mapping[str, Sequence[tuple[Any, Source]]]
    ) -> list[tuple[Any, Source]]:
        """The regions of a port, each with the size of its image and its number."""
        recipe, out = self.images[port], []
        images, rule = opened.get(recipe.images, ()), self.images.get(recipe.images)
        numbers = image_numbers(conversation, port, recipe.images)
        for item, (part, number) in enumerate(zip(conversation.media(port), numbers, strict=True)):
            image, said = images[number - 1]
            place = placement(rule, said.sizes[0].original_size or np.shape(image)[:2])
            region = recipe.open(part.source, f"{conversation.name}: {port} {item}", place)
            out.append((region, Source([MediaSize(*recipe.size_of(region), parent=number)], ())))
        return out

    def _open(self, part: MediaPart, item: int, name: str) -> tuple[Any, Source]:
        label = f"{name}: {part.port} {item}"
        if part.port in self.images:
            opened = self.images[part.port].open(part.source, label)
            return opened, source_of(self.images[part.port], opened)
        if part.port not in self.ports:
            raise TokenPlanError(f"{label}: the model has no port {part.port!r}, only {list(self.ports)}")
        if not isinstance(part.source, np.ndarray) or not np.issubdtype(part.source.dtype, np.floating):
            raise TokenPlanError(
                f"{label}: port {part.port!r} has no image processor and so takes float arrays as they are, "
                f"got {type(part.source).__name__}"
            )
        return part.source, Source([MediaSize()], ())


def load_processor(
    directory: str | os.PathLike,
    count: Callable[[str, Any, Any], int],
    tokenizer: Tokenizer | None = None,
    media_tokens: Mapping[str, int] | None = None,
    placeholders: Mapping[str, str] | None = None,
    template: str | None = None,
    **plan_options: Any,
) -> Processor:
    """Reads what `Processor.save` wrote, or the processor files of a checkpoint in transformers layout.

    Args:
        directory: holds tokenizer files and, for a model that sees, preprocessor_config.json or
            processor_config.json.
        count: (port, grid, original_size) -> tokens of an item; the model's `num_tokens`.
        tokenizer, media_tokens, placeholders, template: used instead of what the directory says. A
            transformers directory says the placeholder in `image_token`, else it is "<image>", and its id is
            the media token.
        plan_options: fields of `TokenPlan`.

    Raises:
        FileNotFoundError: no such directory, or no tokenizer in it.
        ValueError: naming the file that cannot be understood, or the placeholder that has no id.
    """
    directory = Path(directory)
    tokenizer = tokenizer or load_tokenizer(str(directory))
    if tokenizer is None:
        raise FileNotFoundError(f"{directory}: no tokenizer.json and no tokenizer.model")
    own, whole = _read_json(directory / OWN_FILE), _read_json(directory / "processor_config.json")
    wording = own.get("wording") if own else _wording_in(directory)
    said = WORDINGS.get(wording or "", Wording())
    tokenizer = tokenizer.with_controls(said.controls) if said.controls else tokenizer
    recipes = own["images"] if own else _recipes_in(directory, said)
    layouts = plan_options.get("layouts", {})
    if media_tokens is not None:
        ports = {*media_tokens, *plan_options.get("inside", ()), *plan_options.get("signals", ())}
        ports |= {port for port, own in said.becomes.items() if own in ports}
        codes = plan_options.get("codes")
        recipes = {
            port: recipe
            for port, recipe in recipes.items()
            if port in ports or (codes is not None and port == codes.port and "code_processor_type" in recipe)
        }
    try:
        images = {port: recipe_from_hf(recipe, port, layouts.get(port)) for port, recipe in recipes.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{directory}: {error}") from error
    names = own.get("names", {}) if own else {
        name: value for name, value in whole.items() if isinstance(value, (str, int, float)) and value != ""
    }
    known = {**said.names, **tokenizer.named_tokens, **names}
    if placeholders is None:
        placeholders = own["placeholders"] if own else {
            port: said.placeholder[port].format(**known) if port in said.placeholder else known.get(
                f"{port}_token", f"<{port}>"
            )
            for port in images
        }  # fmt: skip
    if media_tokens is None:
        media_tokens = own["media_tokens"] if own else _token_ids(
            {port: text for port, text in placeholders.items() if port not in said.becomes}, tokenizer, directory
        )
    options = {name: _tuples(own[name]) for name in _PLAN_FIELDS if name in own}
    if template is None and tokenizer.chat_template is None and (directory / "chat_template.jinja").exists():
        template = (directory / "chat_template.jinja").read_text(encoding="utf-8")
    if template is None and tokenizer.chat_template is None:
        template = said.template
    # An image in tiles is many items.
    many = {
        port: (0, 1, 2, 4, 8, 16, 32, 64)
        for port, recipe in images.items()
        if hasattr(recipe, "source_of") and port in media_tokens
    }
    options["items"] = {**many, **options.get("items", {})}
    options |= {"wording": wording if wording in WORDINGS else None, "names": names}
    if (directory / READER).is_dir():
        options["reader"] = load_tokenizer(str(directory / READER))
    return Processor(
        tokenizer, images, template, placeholders, media_tokens, count, **{**options, **plan_options}
    )


def _wording_in(directory: Path) -> str | None:
    """The class of the processor, as one of the files says that transformers writes."""
    names = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
    return next((kind for name in names if (kind := _read_json(directory / name).get("processor_class"))), None)


def _recipes_in(directory: Path, said: Wording) -> dict[str, Any]:
    """port -> what says its recipe, in the files that transformers' processors write."""
    whole = _read_json(directory / "processor_config.json")
    alone = _read_json(directory / "preprocessor_config.json")
    sound = "sampling_rate" in alone
    found = {
        "image": {} if sound else alone,
        "video": _read_json(directory / "video_preprocessor_config.json") or (alone if _of_videos(alone) else {}),
        "audio": alone if sound else {},
    }
    for port, key in (("image", "image_processor"), ("video", "video_processor"), ("audio", "feature_extractor")):
        found[port] = found[port] or whole.get(key) or {}
    if found["image"]:
        shared = {key: whole[key] for key in said.shared if key in whole}
        found["image"] = {**found["image"], **said.recipe, **shared}
    return {port: config for port, config in found.items() if config}


def _of_videos(config: Mapping[str, Any]) -> bool:
    """Whether an image processor was, in earlier files, the one of videos."""
    return str(config.get("image_processor_type", "")).startswith("InstructBlipVideo")


def _token_ids(placeholders: Mapping[str, str], tokenizer: Tokenizer, directory: Path) -> dict[str, int]:
    ids = {}
    for port, printed in placeholders.items():
        ids[port] = tokenizer.token_id(printed)
        if ids[port] is None:
            raise ValueError(
                f"{directory}: the tokenizer has no token {printed!r} for port {port!r}; give media_tokens"
            )
    return ids


def _unchanged(array: np.ndarray) -> np.ndarray:
    return array


def _tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value
