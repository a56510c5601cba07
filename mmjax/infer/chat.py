"""A conversation with a model: a session that remembers, streamed replies, and the loop of `mmjax chat`."""

import dataclasses
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from mmjax.data.collate import collate
from mmjax.data.conversation import Conversation, MediaPart, Message, TextPart
from mmjax.data.processor import Processor
from mmjax.infer.answers import Answers, Makers, Making, answer, begun
from mmjax.infer.batch import answer_text
from mmjax.infer.generate import GenerateOptions, Programs
from mmjax.infer.image_codes import image_length
from mmjax.infer.masks import scene_of
from mmjax.infer.media_files import OUTPUTS, by_kind, write_made
from mmjax.infer.retrieve import Retrieved
from mmjax.model import MultimodalLM

HELP = """\
Type a message and press Enter.
  /image PATH   attach an image to the next message (several times for several images)
  /draw TEXT    ask for an image of that (models that write images as tokens; others draw when they want to)
  /reset        forget the conversation
  /seed [N]     show or set the seed of sampling
  /help         this list
  /quit         leave (Ctrl-D too)"""


class Reply(str):
    """What a model says, with the media that came with it.

    Attributes:
        images, videos, audios: what it made, in order, see `GenerateOutput`.
        masks: of the latest image, bool [H, W] each, where the model draws such.
        image_codes: of a model that writes images as tokens, the codes int32 [h, w] of each.
        retrieved: port of a gallery -> what was found for each signal.
    """

    images: tuple[np.ndarray, ...] = ()
    videos: tuple[np.ndarray, ...] = ()
    audios: tuple[np.ndarray, ...] = ()
    masks: tuple[np.ndarray, ...] = ()
    image_codes: tuple[np.ndarray, ...] = ()
    retrieved: Mapping[str, tuple[Retrieved, ...]] = MappingProxyType({})

    @classmethod
    def of(cls, found: Answers, making: Making, tokenizer: Any, options: GenerateOptions) -> "Reply":
        """The first row of answers."""
        reply = cls(answer_text(tokenizer, found.spoken.tokens[0, : found.spoken.lengths[0]], options))
        media, retrieved = by_kind(found.made, making.galleries)
        for name, rows in media.items():
            setattr(reply, name, tuple(rows[0]))
        reply.retrieved = {port: tuple(rows[0]) for port, rows in retrieved.items()}
        reply.image_codes = () if found.codes is None else tuple(found.codes[0])
        return reply


class ChatSession:
    """A conversation that grows by one question and one reply at a time.

    Args:
        model, params: the model and its parameters, as `generate` takes them.
        processor: a `mmjax.data.processor.Processor`.
        options: how to generate. Where the context leaves less room than max_new_tokens, a reply gets what is
            left. A reply draws from (seed, number of messages before it).
        programs: as in `generate`.
        image_port: the port that images go to.
        system: a system message to begin every conversation with.
        making: how media are made; what the model made is not read again.
        makers: compiled programs to use again.
        drawing: `making` of replies that are asked to be an image; None: the model cannot be asked.
    """

    def __init__(
        self,
        model: MultimodalLM,
        params: dict,
        processor: Processor,
        options: GenerateOptions = GenerateOptions(),  # noqa: B008 (frozen)
        programs: Programs | None = None,
        image_port: str = "image",
        system: str | None = None,
        making: Making = Making(),  # noqa: B008 (frozen)
        makers: Makers | None = None,
        drawing: Making | None = None,
    ):
        self.model = model
        self.processor = processor
        self.options = options
        self.programs = Programs(model) if programs is None else programs
        self.params = self.programs.view(params)
        self.image_port = image_port
        self.system = system
        self.making, self.drawing = making, drawing
        self.makers = Makers(model) if makers is None else makers
        self.reset()

    def reset(self) -> None:
        """Forgets every message but the system's."""
        self.messages: list[Message] = []
        if self.system:
            self.messages.append(Message("system", (TextPart(self.system),)))

    def image(self, source: Any) -> MediaPart:
        """An image (path, bytes, array or PIL image) opened and ready for `reply`.

        Raises:
            FileNotFoundError, ImageError: naming it.
            ValueError: the model takes no images.
        """
        recipes = self.processor.images
        if self.image_port not in recipes:
            takes = f"only at {sorted(recipes)}" if recipes else "none at all"
            raise ValueError(f"the model takes no images at port {self.image_port!r}, {takes}")
        return MediaPart(self.image_port, recipes[self.image_port].open(source))

    def draw(self, text: str, images: Sequence[Any] = ()) -> Reply:
        """A reply that is an image, as `reply` else.

        Raises:
            ValueError: as `reply`, and of a model that cannot be asked.
        """
        if self.drawing is None:
            raise ValueError("this model writes no images as tokens: it cannot be asked for one at once")
        return self.reply(text, images, making=self.drawing)

    def reply(
        self,
        text: str,
        images: Sequence[Any] = (),
        on_text: Callable[[str], None] | None = None,
        making: Making | None = None,
    ) -> Reply:
        """The model's reply to `text` and `images` after everything said before.

        Args:
            text: what the user says.
            images: sources as `image` takes them, or what it returned; they stand before the text.
            on_text: called with each piece of the reply as it is generated; joined, they are the reply.
            making: how media are made; the session's if None.

        Raises:
            ValueError: nothing said, or no room left in the context; the conversation is then as before, as
                it is after any other error.
        """
        if not text.strip() and not images:
            raise ValueError("nothing said: give a text, an image or both")
        media = [part if isinstance(part, MediaPart) else self.image(part) for part in images]
        question = Message("user", (*media, *([TextPart(text)] if text else [])))
        conversation = Conversation((*self.messages, question), name="chat")
        making = self.making if making is None else making
        sample = self.processor.sample(conversation, add_generation_prompt=True)
        sample = begun(self.model, sample, making, self.processor, self.makers.generation)
        batch = collate([sample], self.processor.plan, pad_id=self.options.pad_id)
        room = self.model.config.backbone.max_positions - len(sample)
        options = self.options
        if making.at_once:
            # Cut off, it would be none.
            length = image_length(self.model, making.write)
            options = dataclasses.replace(options, max_new_tokens=length, min_new_tokens=0)
        elif 0 < room < options.max_new_tokens:
            options = dataclasses.replace(
                options, max_new_tokens=room, min_new_tokens=min(room, options.min_new_tokens)
            )
        pieces = TextStreamer(lambda ids: answer_text(self.processor.tokenizer, ids, options))

        def receive(tokens: np.ndarray, counts: np.ndarray) -> None:
            piece = pieces.push(tokens[0, : counts[0]].tolist())
            if piece:
                on_text(piece)

        turn = np.array([len(self.messages)], np.int32)
        listener = None if on_text is None else receive
        given = self.model, self.params, batch, options, making, self.programs, self.makers
        scenes = [scene_of(self.model, self.processor, conversation)]
        found = answer(*given, rows=turn, on_tokens=listener, scenes=scenes)
        reply = Reply.of(found, making, self.processor.tokenizer, options)
        if on_text is not None and (rest := pieces.finish()):
            on_text(rest)
        self.messages += [question, Message("assistant", (TextPart(str(reply)),) if reply else ())]
        return reply


class TextStreamer:
    """Tokens in as they come, text out as soon as it is certain.

    Text that ends in U+FFFD may be a character whose bytes are not all there yet: it is held back until they
    are, or until `finish`.
    """

    def __init__(self, decode: Callable[[list[int]], str]):
        self._decode = decode
        self._ids: list[int] = []
        self._told = ""

    def push(self, ids: Sequence[int]) -> str:
        """The text that `ids` make certain, perhaps ""."""
        self._ids += ids
        return self._new(self._decode(self._ids).rstrip("\ufffd"))

    def finish(self) -> str:
        """What was held back."""
        return self._new(self._decode(self._ids))

    def _new(self, text: str) -> str:
        # A decoder that tidies spaces may take back what stood at the end; what was told cannot be untold.
        if not text.startswith(self._told):
            return ""
        new = text[len(self._told) :]
        self._told = text
        return new


def save_media(reply: Reply, directory: str | os.PathLike) -> list[str]:
    """Writes what came with a reply to new files of a directory; lines that say where, and what else there is."""
    media = {port: getattr(reply, name) for port, name in OUTPUTS.items()}
    lines = []
    if any(media.values()):
        number = 0
        while any(Path(directory).glob(f"reply_{number:03d}_*")):
            number += 1
        files = write_made(directory, f"reply_{number:03d}", media)
        lines += [f"saved {path}" for paths in files.values() for path in paths]
    elif reply.image_codes:
        shapes = ", ".join(f"{codes.shape[0]} x {codes.shape[1]}" for codes in reply.image_codes)
        lines.append(f"images of {shapes} codes, which this checkpoint has no decoder for")
    for port, found in reply.retrieved.items():
        for one in found:
            names = one.names or [str(number) for number in one.indices]
            scored = (f"{name} ({score:.3f})" for name, score in zip(names, one.scores, strict=True))
            lines.append(f"{port}: {', '.join(scored)}")
    return lines


def interactive(
    session: ChatSession,
    read: Callable[[str], str] = input,
    write: Callable[..., None] = print,
    directory: str | os.PathLike = ".",
) -> None:
    """Talks with a person until /quit or Ctrl-D; every error is told and leaves the session alive.

    `read` takes a prompt and returns a line (EOFError ends), `write` takes what `print` takes. Ctrl-C stops a
    reply, which is then forgotten together with its question. Media that the model makes are written to `directory`.
    """
    write("Chat. /help lists the commands.")
    images: list[MediaPart] = []
    while True:
        try:
            line = read(f"you ({len(images)} image{'s' * (len(images) > 1)})> " if images else "you> ").strip()
        except EOFError:
            write("")
            return
        except KeyboardInterrupt:
            write("\n/quit or Ctrl-D leaves")
            continue
        try:
            if line == "/quit":
                return
            drawn = line.partition(" ")[2].strip() if line.split(" ")[0] == "/draw" else None
            if line.startswith("/") and drawn is None:
                images = _command(session, line, images, write)
            elif line:
                if drawn is not None:
                    reply = session.draw(drawn, images)
                else:
                    reply = session.reply(line, images, lambda piece: write(piece, end="", flush=True))
                    write("")
                for told in save_media(reply, directory):
                    write(told)
                images = []
        except KeyboardInterrupt:
            write("\nstopped; that question is forgotten")
        except (ValueError, OSError) as error:
            write(f"error: {error}")


def _command(session: ChatSession, line: str, images: list[MediaPart], write: Callable) -> list[MediaPart]:
    """Runs one command; the images attached afterwards."""
    name, _, argument = line.partition(" ")
    argument = argument.strip()
    if name == "/image":
        if not argument:
            raise ValueError("/image needs a path")
        path = os.path.expanduser(_unquoted(argument))
        part = session.image(path)
        write(f"attached {path} ({part.source.width} x {part.source.height})")
        return [*images, part]
    if name == "/reset":
        session.reset()
        write("the conversation is forgotten")
        return []
    if name == "/seed":
        if argument:
            if not argument.isdecimal():
                raise ValueError(f"/seed takes a whole number, not {argument!r}")
            session.options = dataclasses.replace(session.options, seed=int(argument))
        note = "" if session.options.do_sample else " (without effect: sampling is off, the likeliest token is taken)"
        write(f"seed {session.options.seed}{note}")
    elif name == "/help":
        write(HELP)
    else:
        write(f"unknown command {name}\n{HELP}")
    return images


def _unquoted(path: str) -> str:
    """A path as a shell would read it, if it is quoted (as terminals do with a dropped file)."""
    if os.path.exists(path):
        return path
    try:
        words = shlex.split(path)
    except ValueError:
        return path
    return words[0] if len(words) == 1 else path
