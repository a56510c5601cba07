"""What a model answers, text and media, whichever way its media come.

They are drawn or looked up behind the signals that it writes (`media.py`, `retrieve.py`), or written as tokens
(`image_codes.py`). Whoever talks with a model, `Model.generate` and `mmjax generate` and a chat, does it through here.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from mmjax.data.code_images import CodeImages
from mmjax.data.contracts import Batch, TextStream
from mmjax.data.conversation import Conversation, Message, TextPart
from mmjax.data.processor import Processor
from mmjax.data.samples import Sample
from mmjax.infer.generate import GenerateOptions, Generation, Programs, generate
from mmjax.infer.image_codes import CodePrograms, WriteOptions, asked_options, generate_images, text_only
from mmjax.infer.masks import Drawing, Scene, mask_port, masks_of
from mmjax.infer.media import DrawOptions, Made, MediaPrograms, draw_options, generate_media
from mmjax.infer.retrieve import Gallery
from mmjax.model import MultimodalLM

# Where images stand that were written as tokens: as those of a generator of images.
IMAGES = "image_out"
# Options of images as tokens, which a model that writes none refuses.
OF_CODES = ("generation_mode", "image_grid", "negative_prompt", "negative_prompt_ids", "negative_prompt_attention_mask")


@dataclasses.dataclass(frozen=True, eq=False)
class Making:
    """How a model makes what is no text.

    Attributes:
        draw: of generators, and of galleries; None: signals are words like others.
        galleries: port of retrieval -> where its signals are looked up.
        write: of images as tokens; None: the model writes none.
    """

    draw: DrawOptions | None = None
    galleries: Mapping[str, Gallery] = dataclasses.field(default_factory=dict)
    write: WriteOptions | None = None

    @property
    def at_once(self) -> bool:
        """Whether every answer is one image."""
        return self.write is not None and self.write.mode == "image"


class Makers:
    """The compiled programs that make media, kept between calls.

    Args:
        model: the model.
        generation: transformers' generation config, of which the tokens that begin a text or an image are read.
    """

    def __init__(self, model: MultimodalLM, generation: Mapping[str, Any] = MappingProxyType({})):
        self.drawing, self.codes, self.generation = MediaPrograms(model), CodePrograms(model), generation
        port = mask_port(model)
        self.masks = None if port is None else Drawing(model, port)

    @property
    def compilations(self) -> int:
        """How often a program was compiled."""
        masks = 0 if self.masks is None else self.masks.compilations
        return self.drawing.compilations + self.codes.compilations + masks


@dataclasses.dataclass(frozen=True)
class Answers:
    """What `answer` gives.

    Attributes:
        out: all that was generated.
        spoken: what of it is text.
        made: port -> for each row its media in order, or what was found.
        codes: for each row the codes int32 [h, w] of its images; None where images are not written as tokens.
    """

    out: Generation
    spoken: Generation
    made: Made
    codes: list[list[np.ndarray]] | None = None


def read_making(
    model: MultimodalLM,
    options: dict[str, Any],
    read: Callable[..., Batch],
    processor: Processor | None = None,
    generation: Mapping[str, Any] = MappingProxyType({}),
) -> Making:
    """`Making` of those of `options` that only it knows, which are taken out.

    Args:
        model: any.
        options: read are those of `draw_options` and `asked_options`; galleries, port -> `Gallery`; negative_prompt, a
            text that guidance over codes leads away from.
        read: (ids, mask) -> Batch.
        processor: of a text.
        generation: as in `Makers`.

    Raises:
        ValueError, ConfigError: options that the model knows nothing of, or values that cannot work.
    """
    galleries = dict(options.pop("galleries", None) or {})
    if model.config.codes is None:
        strange = [name for name in OF_CODES if options.pop(name, None) is not None]
        if strange:
            raise ValueError(f"{', '.join(strange)}: this model does not write images as tokens")
        return Making(draw_options(model, options, galleries, generation), galleries)
    negative = options.pop("negative_prompt", None)
    write = asked_options(model, options, read)
    if negative is not None:
        if write.mode == "text" or write.without is not None or processor is None:
            raise ValueError(
                "negative_prompt: wanted is a model with a tokenizer, no negative_prompt_ids beside it, and a "
                f'generation_mode other than "text"; it is {write.mode!r}'
            )
        conversation = Conversation((Message("user", (TextPart(negative),)),), name="negative_prompt")
        sample = processor.sample(conversation, add_generation_prompt=True)
        sample = begun(model, sample, Making(write=write), processor, generation)
        text = TextStream(sample.tokens[None], sample.positions[None], np.ones_like(sample.tokens)[None])
        write = dataclasses.replace(write, without=text)
    # Says that there is nothing to draw, if it is asked for.
    return Making(draw_options(model, options, galleries, generation), galleries, write)


def begun(
    model: MultimodalLM,
    sample: Sample,
    making: Making,
    processor: Processor,
    generation: Mapping[str, Any] = MappingProxyType({}),
) -> Sample:
    """A prompt made of words, with the tokens behind it that begin an image where every answer is one.

    Those are what the recipe of such images says that stands before their codes. Without one it is as transformers'
    processors write them: Janus' `boi_token`; Chameleon's too; of Emu3 its `boi_token`, the height and width in codes,
    and the token behind which codes come.

    Raises:
        ValueError: no such token is known.
    """
    if not making.at_once:
        return sample
    codes, tokenizer, recipe = model.config.codes, processor.tokenizer, processor.images.get(model.config.codes.port)
    height, width = np.reshape(codes.grid if making.write.grid is None else making.write.grid, (-1, 2))[0].tolist()
    if isinstance(recipe, CodeImages):
        side = codes.maps.downsampling
        ids = dataclasses.replace(recipe, height=height * side, width=width * side).run(codes.layout, tokenizer).ids
        return sample.followed_by(ids[: ids.index(codes.blank)])
    named = tokenizer.named_tokens.get("boi_token")
    opens = None if named is None else tokenizer.token_id(named)
    opens = (generation.get("generation_kwargs") or {}).get("boi_token_id", opens)
    if opens is None and codes.begin is None:
        raise ValueError(
            "no token is known that begins an image: generation_config.json has no generation_kwargs.boi_token_id, and "
            "tokenizer_config.json no boi_token"
        )
    if opens is None or codes.begin in (None, opens):
        return sample.followed_by([codes.begin if opens is None else opens])
    return sample.followed_by([opens, *tokenizer.encode(f"{height}*{width}", continued=True), codes.begin])


def answer(
    model: MultimodalLM,
    params: dict[str, Any],
    batch: Batch,
    options: GenerateOptions,
    making: Making,
    programs: Programs,
    makers: Makers,
    rows: Sequence[int] | None = None,
    count: int | None = None,
    on_tokens: Callable[[np.ndarray, np.ndarray], None] | None = None,
    scenes: Sequence[Scene | None] = (),
) -> Answers:
    """Generates from every row, and makes the media that it asks for.

    Args:
        model, params, batch, options, programs, rows, on_tokens: as in `generate`; `on_tokens` gets no codes of images.
        making: how media are made.
        makers: compiled programs to use again.
        count: of how many rows, the first ones, media are wanted; all if None.
        scenes: of the first rows, images of which masks are drawn where the model asks for them, see `scene_of`.

    Raises:
        ValueError: as `generate`, `masks_of`, `generate_media` and `generate_images`.
    """
    if making.write is not None:
        out, written = generate_images(
            model, params, batch, options, making.write, programs, makers.codes, makers.generation, on_tokens, rows,
            count,
        )  # fmt: skip
        made = {} if written.images is None else {IMAGES: written.images}
        return Answers(out, text_only(model, out), made, written.codes)
    if making.draw is None:
        numbers = None if rows is None else np.asarray(rows, np.int32)
        out = generate(model, params, batch, options, programs, on_tokens, rows=numbers)
        return Answers(out, out, _masks(params, batch, out, makers, scenes))
    how = making.draw, programs, makers.drawing
    out, made = generate_media(model, params, batch, options, *how, rows, count, making.galleries, on_tokens)
    return Answers(out, out, {**made, **_masks(params, batch, out, makers, scenes)})


def _masks(
    params: dict[str, Any], batch: Batch, out: Generation, makers: Makers, scenes: Sequence[Scene | None]
) -> Made:
    """Masks of the first rows, at their port; nothing where there are no images that they could be of."""
    if makers.masks is None or not any(scene is not None for scene in scenes):
        return {}
    return {makers.masks.port: masks_of(makers.masks, params, batch, out, scenes)}
