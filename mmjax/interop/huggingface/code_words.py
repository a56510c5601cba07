"""What Chameleon and Emu3 have in common: images in and out as codes that are words of the LLM's vocabulary.

config.json has a `vocabulary_map` from names to token ids, among them one for each code; images stand in prompts as
runs of the word `<image>`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from mmjax.config import ConfigError
from mmjax.generators.image_codes import ImageCodesConfig
from mmjax.interop.huggingface.spelling import Json, fresh
from mmjax.interop.huggingface.text import TextFamily, settle_head, text_family
from mmjax.interop.table import Rewrite, Row
from mmjax.interop.tensors import Tensors
from mmjax.model import MultimodalLMConfig

IMAGE = "<image>"
# Our own key, where images that are written are not as large as the family's.
GRID = "image_grid"


@dataclasses.dataclass(frozen=True, eq=False)
class CodeWordsFamily:
    """One family.

    Attributes:
        kind, architecture: `model_type`, and the class that loads it.
        text: the LLM's family.
        nested: whether the LLM's options are in `text_config`, not beside the others.
        vqgan: the autoencoder's module.
        grid: (height, width) in codes of the images that are written, from the autoencoder's config.
        word: number of a code -> its word.
        number: a word -> the number of its code, or None if it is none.
        begin, row_end: the words behind which an image begins and its rows end; "" where there is none.
        tail: the words that end an image; "" stands for the end of the text.
        prefix, head, codes: what begins the LLM's names, its output layer's, what begins the autoencoder's.
        spellings: other spellings of names.
    """

    kind: str
    architecture: str
    text: TextFamily
    nested: bool
    vqgan: ModuleType
    grid: Callable[[Any], tuple[int, int]]
    word: Callable[[int], str]
    number: Callable[[str], int | None]
    begin: str
    row_end: str
    tail: tuple[str, ...]
    prefix: str
    head: str
    codes: str
    spellings: tuple[Rewrite, ...] = ()

    @property
    def IGNORE(self) -> tuple[str, ...]:  # noqa: N802 (what every family has)
        """Buffers of either part."""
        return (*TextFamily.IGNORE, *self.vqgan.IGNORE)

    def config_from_hf(self, hf: Mapping[str, Any]) -> MultimodalLMConfig:
        """config.json -> our config.

        Raises:
            ConfigError: options that are not supported, or a vocabulary_map without a word that there must be.
        """
        text = (hf.get("text_config") or {}) if self.nested else hf
        words = hf.get("vocabulary_map") or {}
        backbone = self.text.decoder_from_hf({"tie_word_embeddings": hf.get("tie_word_embeddings", False), **text})
        autoencoder = self.vqgan.config_from_hf(hf.get("vq_config") or {})
        found = {self.number(word): token for word, token in words.items() if self.number(word) is not None}
        count = getattr(autoencoder, "maps", autoencoder).codes
        missing = [self.word(code) for code in range(count) if code not in found]
        missing += [word for word in (IMAGE, self.row_end) if word and word not in words]
        if missing:
            raise ConfigError(
                f"config.json: vocabulary_map has no {missing[0]!r}, one of {len(missing)} words that are missing"
            )
        ids = tuple(found[code] for code in range(count))
        follow = ids == tuple(range(ids[0], ids[0] + count))
        return MultimodalLMConfig(
            backbone,
            codes=ImageCodesConfig(
                autoencoder=autoencoder,
                width=backbone.width,
                grid=tuple(hf.get(GRID) or self.grid(autoencoder)),
                first=ids[0] if follow else 0,
                ids=() if follow else ids,
                begin=words.get(self.begin),
                row_end=words[self.row_end] if self.row_end else None,
                tail=self._tail(words, text.get("eos_token_id", self.text.defaults.get("eos_token_id"))),
                placeholder=words[IMAGE],
            ),
        )

    def _tail(self, words: Mapping[str, int], stop: Any) -> tuple[int, ...]:
        """The tokens that end an image; none where one of them is not known."""
        stop = stop[0] if isinstance(stop, list | tuple) else stop
        ids = [words.get(word) if word else stop for word in self.tail]
        return () if None in ids else tuple(ids)

    def config_to_hf(self, config: MultimodalLMConfig, template: Mapping[str, Any] | None = None) -> Json:
        """Our config -> config.json, over the other keys of `template`.

        Raises:
            ConfigError: the model is not one that the family can express.
        """
        codes, out = config.codes, fresh(template)
        if config.encoders or codes is None or codes.own or codes.placeholder is None:
            raise ConfigError(
                f"transformers' {self.architecture} reads and writes images as words of its vocabulary, and has no "
                f"encoder beside that; this model has the encoders {sorted(config.encoders)} and codes {codes}"
            )
        words = {**(out.get("vocabulary_map") or {}), IMAGE: codes.placeholder}
        words |= {self.word(code): int(token) for code, token in enumerate(codes.tokens())}
        words |= {self.begin: codes.begin} if codes.begin is not None else {}
        words |= {self.row_end: codes.row_end} if codes.row_end is not None else {}
        if codes.tail and len(codes.tail) != len(self.tail) or (codes.row_end is None) != (not self.row_end):
            raise ConfigError(
                f"transformers' {self.architecture} ends images with {len(self.tail)} tokens and their rows with "
                f"{int(bool(self.row_end))}; this model has tail {list(codes.tail)}, row_end {codes.row_end}"
            )
        given = (out.get("text_config") if self.nested else out) or {}
        text = self._text(config).decoder_to_hf(config.backbone, given)
        # Their config classes have numbers for all of these, and the embedding wants the padding's inside.
        text = {key: value for key, value in text.items() if value is not None or key in given}
        if "pad_token_id" in self.text.defaults:
            text.setdefault("pad_token_id", min(self.text.defaults["pad_token_id"], config.backbone.vocab_size - 1))
        for word, token in zip(self.tail, codes.tail, strict=False):
            if word:
                words[word] = token
            else:
                text["eos_token_id"] = token
        if self.nested:
            text = {"text_config": text, "tie_word_embeddings": config.backbone.tie_embeddings}
        own = {} if codes.grid == self.grid(codes.autoencoder) else {GRID: list(codes.grid)}
        return {
            **out,
            **text,
            **own,
            "model_type": self.kind,
            "architectures": [self.architecture],
            "vq_config": self.vqgan.config_to_hf(codes.autoencoder, out.get("vq_config")),
            "vocabulary_map": words,
        }

    def _text(self, config: MultimodalLMConfig) -> TextFamily:
        return text_family(config.backbone, {self.text.kind: self.text})

    def rewrites(self, config: MultimodalLMConfig) -> list[Rewrite]:
        """Brings the spellings of names to one."""
        return list(self.spellings)

    def table(self, config: MultimodalLMConfig) -> list[Row]:
        """The rows of the whole model."""
        rows = self._text(config).rows(config.backbone, self.prefix, self.head)
        for row in self.vqgan.table(config.codes.autoencoder):
            ours, theirs = f"codes/autoencoder/{row.ours}", f"{self.codes}{row.theirs}"
            rows.append(dataclasses.replace(row, ours=ours, theirs=theirs))
        return rows

    def settle(self, config: MultimodalLMConfig, tensors: Tensors) -> tuple[MultimodalLMConfig, dict[str, Any]]:
        """Lets the tensors correct what the config says about a tied output layer, see `settle_head`."""
        embedding = f"{self.prefix}{self.text.names['embed']}.weight"
        backbone, tensors = settle_head(config.backbone, tensors, embedding, self.head)
        return dataclasses.replace(config, backbone=backbone), tensors
