"""Prompts to the token ids that a text tower reads: framed, cut off at its window with a warning, filled up."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.data.tokenizer import Tokenizer

# Stands in place of all ids of a row that nothing at all is read of: its states are zeros.
NOTHING = -1


@dataclasses.dataclass(frozen=True, eq=False)
class PromptReader:
    """How a text tower is told what to draw.

    Attributes:
        tokenizer: None takes token ids alone.
        window: tokens that the tower reads.
        pad_id: what fills a prompt up to the window.
    """

    tokenizer: Tokenizer | None
    window: int
    pad_id: int = 0

    def pair(
        self,
        prompt: str | Sequence[str] | None,
        prompt_ids: Any,
        negative_prompt: str | Sequence[str] | None,
        negative_prompt_ids: Any,
        guided: bool,
    ) -> tuple[np.ndarray, int]:
        """Prompts with what to keep away from.

        Args:
            prompt, prompt_ids: one of them: one or several texts, or ids int [B, T].
            negative_prompt, negative_prompt_ids: at most one of them; the empty text if neither. Single ones are for
                all prompts.
            guided: whether what to keep away from is read at all.

        Returns:
            int32 [2 B, window], what to keep away from first, or [B, window] where it is not read; and B.

        Raises:
            ValueError: neither or both of a pair, text without a tokenizer, ids that are not [B, T] within the
                window, or another number of negative prompts than of prompts.
        """
        if (prompt is None) == (prompt_ids is None):
            raise ValueError("give prompt or prompt_ids, one of them")
        if negative_prompt is not None and negative_prompt_ids is not None:
            raise ValueError("give negative_prompt or negative_prompt_ids, not both")
        tokens = self._ids(prompt, prompt_ids, "prompt_ids")
        rows = len(tokens)
        if not guided:
            return tokens, rows
        if negative_prompt is None and negative_prompt_ids is None:
            negative_prompt = ""
        negative = self._ids(negative_prompt, negative_prompt_ids, "negative_prompt_ids")
        if len(negative) not in (1, rows):
            raise ValueError(f"{len(negative)} negative prompts for {rows} prompts")
        return np.concatenate([np.broadcast_to(negative, tokens.shape), tokens]), rows

    def _ids(self, texts: str | Sequence[str] | None, ids: Any, name: str) -> np.ndarray:
        if ids is not None:
            return self.filled(ids, name)
        if self.tokenizer is None:
            raise ValueError(f"there is no tokenizer: give {name} int [B, T] in place of text")
        return self.tokens([texts] if isinstance(texts, str) else texts)

    def filled(self, ids: Any, name: str = "ids") -> np.ndarray:
        """Token ids int [B, T] as int32 [B, window].

        Raises:
            ValueError: not two axes, no whole numbers, or more tokens than the window has.
        """
        ids = np.asarray(ids)
        if ids.ndim != 2 or ids.shape[1] > self.window or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"{name} are {ids.dtype} {ids.shape}; wanted whole numbers [B, T], T up to {self.window}")
        room = self.window - ids.shape[1]
        return np.pad(ids.astype(np.int32), ((0, 0), (0, room)), constant_values=self.pad_id)

    def tokens(self, texts: Sequence[str]) -> np.ndarray:
        """Texts as int32 [B, window]; what is too long is cut off, with a warning that shows what is lost."""
        out = np.full((len(texts), self.window), self.pad_id, np.int32)
        before, behind = self.tokenizer.frame
        most = self.window - len(before) - len(behind)
        for row, text in zip(out, texts, strict=True):
            ids = self.tokenizer.encode(text)
            if len(ids) > most:
                lost = self.tokenizer.decode(ids[most:])
                warnings.warn(f"the prompt has {len(ids)} tokens, read are {most}; cut off is {lost!r}", stacklevel=5)
            framed = [*before, *ids[:most], *behind]
            row[: len(framed)] = framed
        return out


@dataclasses.dataclass(frozen=True, eq=False)
class SeveralReaders:
    """Prompts for several towers: what each reads stands behind what the one before it reads, in one array.

    Attributes:
        readers: of the towers.
        zeros: whether no negative prompt means states of zeros rather than the empty text.
        one_vocabulary: whether the towers' ids are the same, so that ids may be given in place of text.
    """

    readers: tuple[PromptReader, ...]
    zeros: bool
    one_vocabulary: bool = True

    def pair(
        self,
        prompt: str | Sequence[str] | None,
        prompt_ids: Any,
        negative_prompt: str | Sequence[str] | None,
        negative_prompt_ids: Any,
        guided: bool,
    ) -> tuple[np.ndarray, int]:
        """As `PromptReader.pair`, [2 B or B, all windows]; ids are for every tower."""
        if not self.one_vocabulary and (prompt_ids is not None or negative_prompt_ids is not None):
            raise ValueError("the text towers have several vocabularies: give prompt, not prompt_ids")
        nothing = self.zeros and negative_prompt is None and negative_prompt_ids is None
        given = (prompt, prompt_ids, negative_prompt, negative_prompt_ids, guided and not nothing)
        found = [reader.pair(*given) for reader in self.readers]
        ids, rows = np.concatenate([ids for ids, _ in found], axis=1), found[0][1]
        return (np.concatenate([np.full_like(ids, NOTHING), ids]) if guided and nothing else ids), rows
