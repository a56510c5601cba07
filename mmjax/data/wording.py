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
        lasts: seconds that a video of which these are items lasts.
    """

    sizes: Sequence[MediaSize]
    tokens: Sequence[int]
    rows: int = 0
    columns: int = 0
    seconds: Sequence[float] = ()
    lasts: float = 0.0


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
        becomes: port of a conversation -> port of the model whose items its sources become: of videos whose frames are
            images to the model.
        templates: port -> template of conversations with an item of it, whatever the checkpoint's own is.
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
    becomes: Mapping[str, str] = dataclasses.field(default_factory=dict)
    templates: Mapping[str, str] = dataclasses.field(default_factory=dict)

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


def _listed(source: Source, names: Names) -> tuple[Piece, ...]:
    """Frames of a video, numbered from 1, a line each."""
    pieces: list[Piece] = []
    for number, part in enumerate(_items(source), start=1):
        before = ("\n" if number > 1 else "") + f"Frame{number}: " + names["start_image_token"]
        pieces += [Word(before), part, Word(names["end_image_token"])]
    return tuple(pieces)


def _clocked(source: Source, names: Names) -> tuple[Piece, ...]:
    """Frames of a video, each behind its minute and second, below how many they are and how long it lasts."""
    hours, rest = divmod(int(source.lasts), 3600)
    count, lasts = in_words(len(source.sizes)), f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
    pieces: list[Piece] = [
        Word(f"You are provided the following series of {count} frames from a {lasts} [H:MM:SS] video.\n")
    ]
    for part, seconds in zip(_items(source), source.seconds, strict=True):
        clock = f"{int(seconds // 60):02d}:{int(seconds % 60):02d}"
        pieces += [Word(f"\nFrame from {clock}:{_FAKE}<global-img>"), part, Word(_FAKE)]
    return (*pieces, Word("\n\n"))


def in_words(number: int) -> str:
    """A whole number from 0 to 999 in English: "sixty-four", "one hundred and twenty-eight"."""
    small = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    small = (small + "seventeen eighteen nineteen").split()
    tens = "twenty thirty forty fifty sixty seventy eighty ninety".split()
    hundreds, rest = divmod(number, 100)
    below = small[rest] if rest < 20 else tens[rest // 10 - 2] + (f"-{small[rest % 10]}" if rest % 10 else "")
    if not hundreds:
        return below
    return f"{small[hundreds]} hundred" + (f" and {below}" if rest else "")


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

# How SmolVLM's processor writes conversations with videos.
_ROLES = "<|im_start|>" + _EACH + "{{ m['role'] | capitalize }}:{% if parts[0]['type'] != 'image' %} {% endif %}"
_ROLES += "{% for p in parts %}{% if p['type'] == 'text' %}{{ p['text'] }}{% else %}<{{ p['type'] }}>{% endif %}"
_ROLES += "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"

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
        {"image": _between("{start_image_token}", "{end_image_token}"), "video": _listed},
        becomes={"video": "image"},
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
    "SmolVLMProcessor": Wording(
        {"image": _numbered, "video": _clocked}, becomes={"video": "image"}, templates={"video": _ROLES}
    ),
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
    "InstructBlipVideoProcessor": Wording(template=_PREFIXED),
    "JanusProcessor": Wording(
        {"image": _between("{boi_token}", "{eoi_token}")},
        names={
            "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_placeholder>",
        },
    ),  # fmt: skip
    "Emu3Processor": Wording(template="{{ bos_token }}" + _EACH + _TEXTS + _ENDED),
    "Kosmos2Processor": Wording(
        {"image": _between("<image>", "</image>")},
        template="{{ bos_token }}" + _MARKS.replace("<image>", "<image> ") + _EACH + _TEXTS + _ENDED,
    ),
}
