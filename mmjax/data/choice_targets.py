"""What a signal is to find among images, and whether it is to find one: recipes of ports that share another's signal.

Both read the parts of the port `of`, one for each signal in order.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.data.conversation import Conversation
from mmjax.data.image import OPENAI_MEAN, OPENAI_STD, ImageProcessor
from mmjax.data.items import TokenPlanError
from mmjax.data.targets import TargetArray

# What can be done about a signal, by number.
CHOICES = ("draw", "retrieve")


@dataclasses.dataclass(frozen=True)
class RetrievalTargets:
    """Images as the encoder of what can be found takes them: CLIP's square from the middle.

    Attributes:
        of: the port whose parts they are.
        side: pixels.
        mean, std: of pixels from 0 to 1.
    """

    of: str = "image_out"
    side: int = 224
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD

    def to_hf(self) -> dict[str, Any]:
        """The part of mmjax_processor.json that says the same."""
        return {"target_processor_type": "RetrievalTargets", **dataclasses.asdict(self)}

    @property
    def specs(self) -> dict[str, TargetArray]:
        """A row's arrays, see `targets`."""
        return {"images": TargetArray((self.side, self.side, 3), each=True)}

    @property
    def recipe(self) -> ImageProcessor:
        """Of an image, also of one in a gallery."""
        side = self.side
        return ImageProcessor(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            image_mean=tuple(self.mean),
            image_std=tuple(self.std),
        )

    def targets(
        self, conversation: Conversation, port: str, opened: Mapping[str, Sequence[Any]]
    ) -> dict[str, np.ndarray] | None:
        """"images" float32 [R, S, S, 3] of a conversation, or None where it has no such parts.

        Raises:
            FileNotFoundError, ImageError: naming what cannot be read.
        """
        parts, recipe = conversation.media(self.of), self.recipe
        if not parts:
            return None
        names = (f"{conversation.name}: {port} {number}" for number in range(len(parts)))
        images = [recipe(recipe.open(part.source, name)) for part, name in zip(parts, names, strict=True)]
        return {"images": np.stack(images)}


@dataclasses.dataclass(frozen=True)
class DecisionTargets:
    """What somebody said should be done about a signal: "choice" of its part, one of CHOICES.

    Attributes:
        of: the port whose parts they are.
    """

    of: str = "image_out"

    def to_hf(self) -> dict[str, Any]:
        """The part of mmjax_processor.json that says the same."""
        return {"target_processor_type": "DecisionTargets", **dataclasses.asdict(self)}

    @property
    def specs(self) -> dict[str, TargetArray]:
        """A row's arrays, see `targets`."""
        return {"choice": TargetArray((), "int32", each=True)}

    def targets(
        self, conversation: Conversation, port: str, opened: Mapping[str, Sequence[Any]]
    ) -> dict[str, np.ndarray] | None:
        """"choice" int32 [R], -1 where nobody said, or None where nobody said anything.

        Raises:
            TokenPlanError: something else than CHOICES.
        """
        said = [part.choice for part in conversation.media(self.of)]
        if not any(said):
            return None
        for number, choice in enumerate(said):
            if choice is not None and choice not in CHOICES:
                raise TokenPlanError(
                    f"{conversation.name}: {port} {number}: choice is {choice!r}, wanted one of {', '.join(CHOICES)}"
                )
        return {"choice": np.array([-1 if one is None else CHOICES.index(one) for one in said], np.int32)}
