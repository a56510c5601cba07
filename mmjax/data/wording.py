"""How an item stands in the text: the words that published processors write around and between its tokens.

A template prints one placeholder an item. What stands there in the end is a run of pieces: words of the processor, in
which control tokens count, and runs of the item's own tokens. An image may be several items for the model (tiles), and
an item several runs (rows of patches); here alone is said how. Classes of transformers name the wordings.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mmjax.data.items import MediaSize


class Word(NamedTuple):
    """Words of the processor.

    once: not again where the same control token stands before it. spaced: a text that follows at once, and begins
    with neither white space nor "<", gets a space before it.
    """

    text: str
    once: bool = False
    spaced: bool = False


class Part(NamedTuple):
    """`count` tokens of an item from `first` on, None: all; `item` counts the items that one source became."""

    item: int = 0
    first: int = 0
    count: int | None = None


Piece = Word | Part


class Source(NamedTuple):
    """What a wording is told of one image, video or sound.

    Attributes:
        sizes: of the items that it became; one, unless its recipe gives several.
        tokens: of each of them.
        rows, columns: of the tiles among the items; 0 where there is only the view of the whole.
        seconds: at which each item stands in a video; () elsewhere.
    """

    sizes: Sequence[MediaSize]
    tokens: Sequence[int]
    rows: int = 0
    columns: int = 0
    seconds: Sequence[float] = ()


Names = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Wording:
    """The words of one of transformers' processors.

    Attributes:
        pieces: (source, names of tokens) -> what stands for it; names are the tokenizer's and the processor's, such as
            "image_token".
        placeholder: port -> what a template prints, in the names of tokens ("{boi_token}"); a port that is not here
            has its "image_token" and the like.
        template: of a conversation, for checkpoints that come without one.
        recipe: what the processor says to its image processor, whatever that says itself.
        image: keys of preprocessor_config.json that an export must have for the processor to work.
        count_key: the key there of how many tokens an image is, where the processor reads it.
        names: of tokens that the processor assumes where its files do not say them.
        controls: tokens that a template may print although the tokenizer's files do not call them control.
        shared: keys of processor_config.json that are meant for the image processor.
    """

    pieces: Mapping[str, Callable[[Source, Names], tuple[Piece, ...]]] = dataclasses.field(default_factory=dict)
    placeholder: Mapping[str, str] = dataclasses.field(default_factory=dict)
    template: str | None = None
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    shared: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    image: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    count_key: str | None = None
    names: Names = dataclasses.field(default_factory=dict)

    def of(self, port: str, source: Source, names: Names) -> tuple[Piece, ...]:
        """The pieces of one source."""
        return self.pieces[port](source, names) if port in self.pieces else _items(source)


def _items(source: Source, *_) -> tuple[Piece, ...]:
    return tuple(Part(item) for item in range(len(source.sizes)))


def _between(before: str, after: str) -> Callable[[Source, Names], tuple[Piece, ...]]:
    """The items one after the other between two words, which name tokens in braces."""
    return lambda source, names: (
        Word(before.format(**names)), *_items(source), Word(after.format(**names)),
    )  # fmt: skip


def _lines(end: str, last: str) -> Callable[[Source, Names], tuple[Piece, ...]]:
    """Rows of an item's tokens, a word behind each and another behind the last."""

    def pieces(source: Source, names: Names) -> tuple[Piece, ...]:
        (_, height, width), count = source.sizes[0].grid, source.tokens[0]
        # Squares of patches are one token each.
        rows = height // round((height * width / count) ** 0.5)
        columns = count // rows
        found: list[Piece] = []
        for row in range(rows):
            ending = end if row + 1 < rows else last
            found += [Part(0, row * columns, columns), Word(ending.format(**names))]
        return tuple(found)

    return pieces


_FAKE = "<fake_token_around_image>"


def _fenced(source: Source, names: Names) -> tuple[Piece, ...]:
    """Items with one fence between them and around them."""
    fence = Word(names.get("image_boundary_token", _FAKE), once=True, spaced=True)
    return (fence, *(piece for part in _items(source) for piece in (part, fence)))


def _numbered(source: Source, names: Names) -> tuple[Piece, ...]:
    """Tiles with their rows and columns, then the view of the whole."""
    parts = iter(_items(source))
    found: list[Piece] = []
    for row in range(source.rows):
        for column in range(source.columns):
            found += [Word(f"{_FAKE}<row_{row + 1}_col_{column + 1}>"), next(parts)]
        found.append(Word("\n"))
    whole = Word(f"\n{_FAKE}<global-img>" if source.rows else f"{_FAKE}<global-img>")
    return (*found, whole, next(parts), Word(_FAKE))


def _timed(source: Source, names: Names) -> tuple[Piece, ...]:
    """Steps in time of a video, each between two tokens behind its time."""
    pieces: list[Piece] = []
    for part, seconds in zip(_items(source), source.seconds, strict=True):
        before = Word(f"<{seconds:.1f} seconds>" + names["vision_start_token"])
        pieces += [before, part, Word(names["vision_end_token"])]
    return tuple(pieces)


def _marked(source: Source, names: Names) -> tuple[Piece, ...]:
    """Images that are read inside the backbone: a mark between fences, from which on they are seen."""
    return Word(_FAKE, once=True), *_items(source), Word(f"<image>{_FAKE}")


_EACH = "{% for m in messages %}{% if m['content'] is string %}{% set parts = [{'type': 'text', 'text': m['content']}]"
_EACH += " %}{% else %}{% set parts = m['content'] %}{% endif %}"
_MARKS = _EACH + "{% for p in parts %}{% if p['type'] == 'image' %}<image>{% elif p['type'] == 'video' %}<video>"
_MARKS += "{% endif %}{% endfor %}{% endfor %}"
_TEXTS = "{% for p in parts %}{% if p['type'] == 'text' %}{{ p['text'] }}{% endif %}{% endfor %}"
_ANSWER = "{% if m['role'] == 'assistant' %}{{ eos_token }}{% else %}BETWEEN{% endif %}{% endfor %}"
# Images before the whole text, what the tokenizer puts before a text between them.
_PREFIXED = _MARKS + "{% if add_bos %}{{ bos_token }}{% endif %}" + _EACH + _TEXTS
_PREFIXED += "{% if m['role'] == 'assistant' or add_eos %}{{ eos_token }}{% endif %}{% endfor %}"
_ENDED = "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"

_QWEN = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}

WORDINGS: dict[str, Wording] = {
    "Qwen2VLProcessor": Wording(names=_QWEN),
    "Qwen2_5_VLProcessor": Wording(names=_QWEN),
    "Qwen3VLProcessor": Wording(
        {"video": _timed}, placeholder={"video": "{vision_start_token}{video_token}{vision_end_token}"}, names=_QWEN
    ),
    "PaliGemmaProcessor": Wording(
        template=_MARKS + "{{ bos_token }}" + _EACH + _TEXTS + _ANSWER.replace("BETWEEN", "{{ '\\n' }}"),
        count_key="image_seq_length",
    ),
    "Gemma3Processor": Wording(
        {"image": _between("\n\n{boi_token}", "{eoi_token}\n\n")},
        placeholder={"image": "{boi_token}"},
        image={"image_processor_type": "Gemma3ImageProcessor"},
        names={"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
    ),
    "InternVLProcessor": Wording(
        {"image": _between("{start_image_token}", "{end_image_token}")},
        placeholder={"image": "{context_image_token}"},
        recipe={"crop_to_patches": True},
        names={"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"},
    ),
    "PixtralProcessor": Wording(
        {"image": _lines("{image_break_token}", "{image_end_token}")},
        shared=("patch_size", "spatial_merge_size"),
        names={"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"},
    ),
    "Idefics2Processor": Wording({"image": _fenced}),
    "Idefics3Processor": Wording({"image": _numbered}),
    "SmolVLMProcessor": Wording({"image": _numbered}),
    "FuyuProcessor": Wording(
        {"image": _lines("|NEWLINE|", "|NEWLINE|<s>")},
        placeholder={"image": "|SPEAKER|"},
        template=_MARKS.replace("<image>", "|SPEAKER|") + _EACH + _TEXTS + _ENDED + "{% if add_generation_prompt %}"
        "<0x04>{% endif %}",
        controls=("|SPEAKER|", "|NEWLINE|", "<s>", "<0x04>"),
    ),
    "IdeficsProcessor": Wording(
        {"image": _marked},
        image={"image_processor_type": "IdeficsImageProcessor"},
        template="{{ bos_token }}" + _EACH + "{% for p in parts %}{% if p['type'] == 'image' %}<image>{% else %}"
        "{{ p['text'] }}{% endif %}{% endfor %}" + _ENDED,
    ),
    "Blip2Processor": Wording(template=_PREFIXED),
    "InstructBlipProcessor": Wording(template=_PREFIXED),
    "Kosmos2Processor": Wording(
        {"image": _between("<image>", "</image>")},
        template="{{ bos_token }}" + _MARKS.replace("<image>", "<image> ") + _EACH + _TEXTS + _ENDED,
    ),
}
