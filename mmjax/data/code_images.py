"""Images that stand in a text as runs of a VQ autoencoder's codes: where, and which pixels the codes are made of.

The run has a blank for each code. The codes themselves are filled in by the model (`MultimodalLM.with_codes`), so that
whoever reads the data needs no weights. An image as a processor of transformers writes it:

    before  _ _ _ (row_end)  _ _ _ (row_end)  ...  behind

Chameleon Team, 2024, "Chameleon"; Wang et al., 2024, "Emu3"; Wu et al., 2024, "Janus".
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mmjax.data.chat_template import MediaSpan, Span, TextSpan
from mmjax.data.conversation import Conversation
from mmjax.data.image import open_image
from mmjax.data.items import TokenPlanError
from mmjax.data.media_targets import filled, shaped
from mmjax.data.targets import TargetArray, ending, trained_parts
from mmjax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class CodeLayout:
    """What a model's codes are in its text.

    Attributes:
        port: the part of a conversation that they are images of.
        blank: the token that stands for a code which is not known yet.
        row_end: the token behind each row of codes; None: there is none.
        side: pixels along a side of the image for one code.
        begin: the token behind which the model writes an image; None: it does not say.
        tail: the tokens with which it ends one, the end of the text among them where it is one.
    """

    port: str
    blank: int
    row_end: int | None = None
    side: int = 1
    begin: int | None = None
    tail: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class CodeImages:
    """The recipe of a port of images as codes.

    Attributes:
        height, width: pixels; an image's shorter side is resized to fill them, and what sticks out is cut off evenly.
        before, behind: what stands around the codes, control tokens as they are spelt; {height} and {width} are the
            image's in codes.
        weight: of codes as targets, against 1 of all else.
    """

    height: int = 512
    width: int = 512
    before: str = ""
    behind: str = ""
    weight: float = 1.0

    def to_hf(self) -> dict[str, Any]:
        """The part of mmjax_processor.json that says the same."""
        return {"code_processor_type": "CodeImages", **dataclasses.asdict(self)}

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "CodeImages":
        """What `to_hf` wrote."""
        return cls(**{key: value for key, value in config.items() if key != "code_processor_type"})

    @property
    def specs(self) -> dict[str, TargetArray]:
        """A row's arrays, see `targets`."""
        return {"media": TargetArray((self.height, self.width, 3), each=True)}

    def open(self, source: Any, name: str = "") -> Image.Image:
        """The image, cut to its size."""
        return shaped(open_image(source, name), self.height, self.width)

    def targets(
        self, conversation: Conversation, port: str, opened: Mapping[str, Sequence[Any]]
    ) -> dict[str, np.ndarray] | None:
        """"media" float32 [R, H, W, 3] from -1 to 1, all images of the port; None where there are none.

        Raises:
            FileNotFoundError, ImageError: naming what cannot be read.
        """
        parts = conversation.media(port)
        if not parts:
            return None
        names = (f"{conversation.name}: {port} {number}" for number in range(len(parts)))
        sources = (part.source for part in parts)
        images = [open_image(source, name) for source, name in zip(sources, names, strict=True)]
        return {"media": np.stack([filled(image, self.height, self.width) for image in images])}

    def run(self, layout: CodeLayout, tokenizer: Tokenizer) -> TextSpan:
        """The tokens of an image with blanks for codes, and each one's weight as a target.

        Raises:
            TokenPlanError: a size that is no whole number of codes; other tokens around the codes than those between
                which the model writes an image.
        """
        height, width = self.height // layout.side, self.width // layout.side
        if (height * layout.side, width * layout.side) != (self.height, self.width):
            raise TokenPlanError(
                f"{layout.port}: images of {self.height} x {self.width} pixels are no whole number of codes, each of "
                f"which is {layout.side} x {layout.side}"
            )
        words = (text.format(height=height, width=width) for text in (self.before, self.behind))
        before, behind = (_ids(tokenizer, text) for text in words)
        if layout.begin is not None and before[-1:] != (layout.begin,):
            raise TokenPlanError(
                f"{layout.port}: before codes stand the tokens {list(before)}; the model writes an image behind "
                f"{layout.begin}"
            )
        if layout.tail and behind != layout.tail[: len(behind)]:
            raise TokenPlanError(
                f"{layout.port}: behind codes stand the tokens {list(behind)}; the model ends an image with "
                f"{list(layout.tail)}"
            )
        row = (layout.blank,) * width + (() if layout.row_end is None else (layout.row_end,))
        ids = (*before, *row * height, *behind)
        return TextSpan(ids, tuple(self.weight if token == layout.blank else 1.0 for token in ids))


def as_codes(
    spans: Sequence[Span], conversation: Conversation, port: str, run: TextSpan, stop: int | None
) -> list[Span]:
    """The spans with every image of the port as `run`, targets where its message is one.

    So is the token that ends the text, `stop`, where it follows an image of such a message.

    Raises:
        TokenPlanError: branches with images of their own.
    """
    messages = (message for branch in conversation.branches for message in branch)
    if any(getattr(part, "port", None) == port for message in messages for part in message.parts):
        raise TokenPlanError(
            f"{conversation.name}: its branches have {port} items, which are codes in the text: give each branch as a "
            "conversation of its own"
        )
    trained, read = trained_parts(conversation, (port,))[port], TextSpan(run.ids, (0.0,) * len(run.ids))
    out: list[Span] = []
    for span in spans:
        if isinstance(span, MediaSpan) and span.port == port:
            span = run if trained[span.item] else read
        elif out and out[-1] is run:
            span = ending(span, stop)
        out.append(span)
    return out


def _ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """Words of the recipe, in which control tokens count."""
    names = sorted(map(re.escape, tokenizer.special_tokens), key=len, reverse=True)
    ids: list[int] = []
    for number, piece in enumerate(re.split(f"({'|'.join(names) or '(?!)'})", text)):
        if number % 2:
            ids.append(tokenizer.special_tokens[piece])
        elif piece:
            ids += tokenizer.encode(piece, continued=True)
    return tuple(ids)
