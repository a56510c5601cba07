"""From a conversation to a planned sample: tokens from the tokenizer, pixels from the image recipes."""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmjax.data.chat_template import MediaSpan, encode_branches, encode_conversation, encode_plain
from mmjax.data.conversation import Conversation, MediaPart, parse_record
from mmjax.data.items import Layout, MediaSize, TokenPlanError
from mmjax.data.recipes import Recipe, recipe_from_hf
from mmjax.data.samples import Sample
from mmjax.data.token_plan import TokenPlan
from mmjax.data.tokenizer import Tokenizer, load_tokenizer

OWN_FILE = "mmjax_processor.json"
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

    def __post_init__(self):
        for port in (*self.images, *self.placeholders):
            if port not in self.ports:
                raise ValueError(f"port {port!r} has no media token; ports: {list(self.ports)}")

    @property
    def ports(self) -> tuple[str, ...]:
        """All ports of the model."""
        return (*self.media_tokens, *(port for port in self.inside if port not in self.media_tokens))

    @property
    def plan(self) -> TokenPlan:
        """The token plan that samples are made with; hand the same one to `collate` and the pipeline."""
        shapes = {port: recipe.item_shape for port, recipe in self.images.items()}
        return TokenPlan(
            count=self.count,
            media_tokens=self.media_tokens,
            item_shapes={port: shape for port, shape in shapes.items() if shape is not None},
            layouts=self.layouts,
            axes=self.axes,
            bidirectional=self.bidirectional,
            inside=self.inside,
            start_token=self.start_token,
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
        branches = self._encode(conversation, add_generation_prompt, mode)
        spans = [span for branch in branches for span in branch if isinstance(span, MediaSpan)]
        parts = {port: conversation.media(port) for port in {*plan.ports, *(span.port for span in spans)}}
        opened = {port: [self._open(part, i, name) for i, part in enumerate(p)] for port, p in parts.items()}
        sizes = {port: [size for _, size in media] for port, media in opened.items()}
        if conversation.branches:
            planned = [plan.plan_sample(branch, sizes, name, branch=True) for branch in branches]
            sample = plan.share_prefix(planned)
        else:
            sample = plan.plan_sample(branches[0], sizes, name)
        media = {}
        for port, counts in sample.item_tokens.items():
            process = self.images.get(port, _unchanged)
            media[port] = [process(image) for image, _ in opened[port][: len(counts)]]
        return sample.with_media(media)

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
        template = self.template or self.tokenizer.chat_template
        if template is not None:
            (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
        recipes = {port: images.to_hf() for port, images in self.images.items()}
        if "video" in recipes:
            _write_json(directory / "video_preprocessor_config.json", recipes["video"])
        others = [recipe for port, recipe in recipes.items() if port != "video"]
        if others:
            _write_json(directory / "preprocessor_config.json", recipes.get("image") or others[0])
        own = {
            "images": recipes,
            "placeholders": dict(self.placeholders),
            "media_tokens": dict(self.media_tokens),
        }
        own |= {name: getattr(self, name) for name in _PLAN_FIELDS}
        for name in ("items", "entries"):
            own[name] = {port: list(ladder) for port, ladder in getattr(self, name).items()}
        _write_json(directory / OWN_FILE, own)

    def _encode(self, conversation: Conversation, add_generation_prompt: bool, mode: str) -> Sequence:
        if mode == "plain":
            if conversation.branches:
                raise TokenPlanError(f'{conversation.name}: a conversation with branches needs mode "chat"')
            return [encode_plain(conversation, self.tokenizer)]
        if mode != "chat":
            raise ValueError(f'mode is {mode!r}; wanted "chat" or "plain"')
        encode = encode_branches if conversation.branches else encode_conversation
        spans = encode(conversation, self.tokenizer, self.template, self.placeholders, add_generation_prompt)
        return spans if conversation.branches else [spans]

    def _open(self, part: MediaPart, item: int, name: str) -> tuple[Any, MediaSize]:
        label = f"{name}: {part.port} {item}"
        if part.port in self.images:
            opened = self.images[part.port].open(part.source, label)
            return opened, MediaSize(*self.images[part.port].size_of(opened))
        if part.port not in self.ports:
            raise TokenPlanError(f"{label}: the model has no port {part.port!r}, only {list(self.ports)}")
        if not isinstance(part.source, np.ndarray) or not np.issubdtype(part.source.dtype, np.floating):
            raise TokenPlanError(
                f"{label}: port {part.port!r} has no image processor and so takes float arrays as they are, "
                f"got {type(part.source).__name__}"
            )
        return part.source, MediaSize()


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
    own = _read_json(directory / OWN_FILE)
    recipes = own["images"] if own else _recipes_in(directory)
    try:
        images = {port: recipe_from_hf(recipe, port) for port, recipe in recipes.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{directory}: {error}") from error
    if placeholders is None:
        printed = _read_json(directory / "processor_config.json")
        names = {port: f"{port}_token" for port in images}
        placeholders = own["placeholders"] if own else {
            port: printed.get(name) or tokenizer.named_tokens.get(name) or f"<{port}>" for port, name in names.items()
        }  # fmt: skip
    if media_tokens is None:
        media_tokens = own["media_tokens"] if own else _token_ids(placeholders, tokenizer, directory)
    options = {name: _tuples(own[name]) for name in _PLAN_FIELDS if name in own}
    if template is None and tokenizer.chat_template is None and (directory / "chat_template.jinja").exists():
        template = (directory / "chat_template.jinja").read_text(encoding="utf-8")
    return Processor(
        tokenizer, images, template, placeholders, media_tokens, count, **{**options, **plan_options}
    )


def _recipes_in(directory: Path) -> dict[str, Any]:
    """port -> what says its recipe, in the files that transformers' processors write."""
    whole = _read_json(directory / "processor_config.json")
    alone = _read_json(directory / "preprocessor_config.json")
    sound = "sampling_rate" in alone
    found = {
        "image": {} if sound else alone,
        "video": _read_json(directory / "video_preprocessor_config.json"),
        "audio": alone if sound else {},
    }
    for port, key in (("image", "image_processor"), ("video", "video_processor"), ("audio", "feature_extractor")):
        found[port] = found[port] or whole.get(key) or {}
    return {port: config for port, config in found.items() if config}


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
