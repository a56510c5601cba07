"""Conversations, and the record formats they are read from.

Known formats, told apart by their keys: `{"messages": [{"role", "content"}]}`, where the content is a string,
a list of HF parts (`{"type": "image", "path" | "url" | "image" | "base64": ...}`, and for regions of an image
`{"type": "region", "box" | "mask" | "polygon" | "point": ...}`) or of OpenAI parts (`{"type": "image_url",
"image_url": {"url": ...}}`), clouds of points (`{"type": "points", "path" | "points": ...}`) and vectors of numbers
(`{"type": "state", "state": [...]}`); and LLaVA's (ShareGPT's) JSON, `{"id", "image", "conversations": [{"from",
"value"}]}`, in which `<image>` marks where an image stands. Nothing is opened here: a `MediaPart` says where the bytes
are.
"""

import base64
import binascii
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from mmjax.config import nearest
from mmjax.data.regions import Region, RegionError, region_of

ROLES = ("system", "user", "assistant", "tool")
PORTS = ("image", "video", "audio", "points")
# Parts whose numbers stand in the record itself, or in a file.
VECTORS = ("state",)
# Parts that are regions of an image: those that are shown to a model, and masks that it is to draw.
REGIONS = ("region", "mask")
# What a record may list and a text mark.
_LISTED = (*PORTS, *VECTORS, "region")
_LLAVA_ROLES = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class TextPart:
    """Text of a message, as its author wrote it: control tokens spelt out in it stay plain text."""

    text: str


@dataclass(frozen=True, eq=False)
class MediaPart:
    """One item of a port.

    source: a path, the bytes of a file, a numpy array or a PIL image; of regions a `Region`. caption: what it shows,
    for a model that is to make it. choice: whether such a model should make it or find it, see `DecisionTargets`.
    """

    port: str
    source: Any
    caption: str | None = None
    choice: str | None = None


@dataclass(frozen=True)
class Message:
    """train: whether an assistant's message is a target of the loss; other roles never are."""

    role: str
    parts: tuple[TextPart | MediaPart, ...]
    train: bool = True

    @property
    def trained(self) -> bool:
        return self.train and self.role == "assistant"


@dataclass(frozen=True)
class Conversation:
    """messages, and optionally several branches: each continues `messages` and shares their media."""

    messages: tuple[Message, ...]
    branches: tuple[tuple[Message, ...], ...] = ()
    name: str = ""

    @property
    def ports(self) -> tuple[str, ...]:
        """The ports that there are items of, in the order of their first ones."""
        messages = [*self.messages, *(message for branch in self.branches for message in branch)]
        parts = (part for message in messages for part in message.parts)
        return tuple(dict.fromkeys(part.port for part in parts if isinstance(part, MediaPart)))

    def media(self, port: str) -> tuple[MediaPart, ...]:
        """The items of one port in order: those of `messages`, then those of each branch."""
        messages = [*self.messages, *(message for branch in self.branches for message in branch)]
        return tuple(
            part
            for message in messages
            for part in message.parts
            if isinstance(part, MediaPart) and part.port == port
        )


def parse_record(record: Mapping, name: str, image_root: str | None = None) -> Conversation:
    """One record of a dataset as a Conversation.

    name: what errors call the sample. image_root: the folder that relative paths start from.
    `record["branches"]` is an optional list of message lists that each continue `record["messages"]`, which
    may then be empty. A bare `{"type": "image"}`, or `<image>` in a user's string, takes the next entry of
    `record["images"]` (`image`, `videos`, `video`, ... likewise). Raises ValueError naming the sample, what
    is wrong and what would be right.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f'sample "{name}": expected a mapping, found {type(record).__name__}')
    reader = _Reader(record, name, image_root)
    if "messages" in record or "branches" in record:
        messages = reader.messages(record.get("messages", []), "messages")
        branches = tuple(
            reader.messages(branch, f"branches[{i}]")
            for i, branch in enumerate(reader.list_of(record.get("branches", []), "branches"))
        )
        empty = [f"branches[{i}]" for i, branch in enumerate(branches) if not branch]
        if empty or not (messages or branches):
            raise ValueError(f'sample "{name}": {empty[0] if empty else "messages"} is empty')
    elif "conversations" in record:
        messages = reader.llava(record["conversations"])
        branches = ()
    else:
        keys = sorted(map(str, record))
        raise ValueError(f'sample "{name}": expected "messages" or "conversations", found the keys {keys}')
    reader.check_counts()
    return Conversation(messages, branches, name)


class _Reader:
    """The state of reading one record: how many of its listed media were taken so far."""

    def __init__(self, record: Mapping, name: str, image_root: str | None):
        self.name, self.root = name, image_root
        self.listed = {port: self._listed(record, port) for port in _LISTED}
        self.taken = dict.fromkeys(_LISTED, 0)

    def _listed(self, record, port) -> list | None:
        for key in (f"{port}s", port):
            if record.get(key) is not None:
                value = record[key]
                if port in VECTORS and isinstance(value, (list, tuple)) and isinstance(next(iter(value), None), Real):
                    return [value]
                return list(value) if isinstance(value, (list, tuple)) else [value]
        return None

    def error(self, message: str) -> ValueError:
        return ValueError(f'sample "{self.name}": {message}')

    def list_of(self, value, where: str) -> list:
        if not isinstance(value, (list, tuple)):
            raise self.error(f"{where} must be a list, found {type(value).__name__}")
        return list(value)

    def messages(self, messages, where: str) -> tuple[Message, ...]:
        return tuple(
            self._message(message, f"{where}[{i}]") for i, message in enumerate(self.list_of(messages, where))
        )

    def _message(self, message, where) -> Message:
        if not isinstance(message, Mapping):
            raise self.error(f'{where} must be a mapping with "role" and "content"')
        role = message.get("role")
        if role not in ROLES:
            raise self.error(f"{where}: unknown role {role!r}; the roles are {', '.join(ROLES)}")
        content = message.get("content")
        if isinstance(content, str):
            marks = [port for port in _LISTED if self.listed[port] is not None] if role == "user" else []
            parts = self._marked(content, marks)
        elif isinstance(content, (list, tuple)):
            parts = [self._part(part, f"{where}.content[{i}]") for i, part in enumerate(content)]
        else:
            raise self.error(f"{where}: content must be a string or a list of parts, found {content!r}")
        return self._finish(role, parts, where, bool(message.get("train", True)))

    def llava(self, turns) -> tuple[Message, ...]:
        messages = []
        for i, turn in enumerate(self.list_of(turns, "conversations")):
            where = f"conversations[{i}]"
            if not isinstance(turn, Mapping):
                raise self.error(f'{where} must be a mapping with "from" and "value"')
            role = _LLAVA_ROLES.get(turn.get("from"), turn.get("from"))
            if role not in ROLES:
                known = ", ".join((*_LLAVA_ROLES, *ROLES))
                raise self.error(f'{where}: unknown role {role!r} in "from"; the roles are {known}')
            value = turn.get("value")
            if not isinstance(value, str):
                raise self.error(f"{where}: value must be a string, found {value!r}")
            marks = [port for port in _LISTED if port == "image" or self.listed[port] is not None]
            parts = self._marked(value, marks if role == "user" else [])
            messages.append(self._finish(role, parts, where, True))
        if not messages:
            raise self.error("conversations is empty")
        return tuple(messages)

    def _finish(self, role, parts, where, train) -> Message:
        texts = [part.text for part in parts if isinstance(part, TextPart)]
        if len(texts) == len(parts) and not "".join(texts).strip():
            raise self.error(f"{where} ({role}): the text is missing or empty")
        return Message(role, tuple(parts), train)

    def _marked(self, text: str, ports: list[str]) -> list[TextPart | MediaPart]:
        """Cut a string at `<image>` and its like."""
        if not ports:
            return [TextPart(text)] if text else []
        pieces = re.split(f"<({'|'.join(ports)})>", text)
        parts = []
        for i, piece in enumerate(pieces):
            if i % 2:
                parts.append(MediaPart(piece, self._next(piece)))
            elif piece:
                parts.append(TextPart(piece))
        return parts

    def _next(self, port: str):
        """The source of the next listed item; None past the end, which `check_counts` reports."""
        index = self.taken[port]
        self.taken[port] += 1
        listed = self.listed[port] or []
        read = self._region if port in REGIONS else self._source
        return read(listed[index], f"{port}s[{index}]") if index < len(listed) else None

    def check_counts(self) -> None:
        for port in _LISTED:
            found, marks = len(self.listed[port] or []), self.taken[port]
            if found != marks:
                raise self.error(
                    f"{marks} {port} placeholder(s) in the text but {found} {port}(s) listed in the record"
                )

    def _part(self, part, where) -> TextPart | MediaPart:
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        if not isinstance(part, Mapping):
            raise self.error(f'{where} must be a mapping with "type"')
        kind = part.get("type")
        if kind == "text":
            text = part.get("text")
            if not isinstance(text, str) or not text:
                raise self.error(f"{where}: a text part needs a text that is not empty, found {text!r}")
            return TextPart(text)
        if kind in (*PORTS, *VECTORS):
            caption = part.get("caption")
            if caption is not None and (not isinstance(caption, str) or not caption):
                raise self.error(f"{where}.caption must be a text that is not empty, found {caption!r}")
            for key in ("path", "url", kind, "base64", "data"):
                if part.get(key) is not None:
                    value = part[key]
                    where = f"{where}.{key}"
                    source = (
                        self._decode(value, where)
                        if key in ("base64", "data")
                        else self._source(value, where)
                    )
                    return MediaPart(kind, source, caption, part.get("choice"))
            return MediaPart(kind, self._next(kind), caption, part.get("choice"))
        if kind in REGIONS:
            bare = kind in _LISTED and set(part) == {"type"}
            return MediaPart(kind, self._next(kind) if bare else self._region(part, where))
        for port in PORTS:
            if kind == f"{port}_url":
                value = part.get(kind)
                value = value.get("url") if isinstance(value, Mapping) else value
                return MediaPart(port, self._source(value, f"{where}.{kind}"))
        if kind == "input_audio":
            value = part.get(kind)
            data = value.get("data") if isinstance(value, Mapping) else value
            return MediaPart("audio", self._decode(data, f"{where}.{kind}"))
        known = ("text", *PORTS, *VECTORS, *REGIONS, *(f"{port}_url" for port in PORTS), "input_audio")
        hint = nearest(str(kind), known)
        raise self.error(f"{where}: unknown part type {kind!r}; the types are {', '.join(known)}.{hint}")

    def _region(self, value, where) -> Region:
        """A region, whose mask may be a file as an image's may."""
        try:
            region = value if isinstance(value, Region) else region_of(value)
        except RegionError as error:
            raise self.error(f"{where}: {error}") from error
        return region if region.mask is None else replace(region, mask=self._source(region.mask, f"{where}.mask"))

    def _source(self, value, where):
        """A path made absolute against the root, the bytes of a data URL, or an object as it is."""
        if isinstance(value, Mapping):  # how datasets stores an image
            value = value["bytes"] if value.get("bytes") is not None else value.get("path")
        if value is None or (isinstance(value, (str, bytes)) and not value):
            raise self.error(f"{where}: no path, bytes or object given")
        if not isinstance(value, (str, os.PathLike)):
            return value
        path = os.fspath(value)
        scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):", path)
        scheme = scheme.group(1).lower() if scheme else ""
        if scheme == "data":
            head, _, data = path.partition(",")
            if not head.endswith(";base64"):
                raise self.error(f"{where}: a data URL must be base64, found {head[:60]!r}")
            return self._decode(data, where)
        if scheme in ("http", "https", "ftp"):
            raise self.error(f"{where}: {path[:200]} is remote; download it and give its local path")
        if scheme == "file":
            return re.sub(r"^file:(//(localhost)?)?(?=/)", "", path, flags=re.IGNORECASE)
        if self.root is None or os.path.isabs(path) or "://" in path:
            return path
        return os.path.join(self.root, path)

    def _decode(self, data, where) -> bytes:
        if isinstance(data, bytes):
            return data
        try:
            decoded = base64.b64decode("".join(data.split()), validate=True) if isinstance(data, str) else b""
        except binascii.Error as error:
            raise self.error(f"{where}: not valid base64: {error}") from error
        if not decoded:
            raise self.error(f"{where}: expected base64 text")
        return decoded
