"""Chat templates: a conversation to token ids with a loss mask, and the places of its media.

No text of a conversation is given to the template. Each text is replaced by a private sentinel, the jinja
source is rendered, and only the template's own words between the sentinels are searched for control tokens
and media placeholders. The texts are put back and tokenised as ordinary text. So nothing spelt in a text can
end a turn, open another or stand for an image, and for texts that spell no control token the ids are those of
transformers' `apply_chat_template(tokenize=True)`: between two control tokens, template words and text are
tokenised as one string.

A template sees each text's outer white space as it is (so `| trim` works) and a sentinel for the rest. A
template that looks inside the text (`'</think>' in content`) finds nothing there.
"""

import functools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mmjax.data.conversation import Conversation, MediaPart, Message, TextPart
from mmjax.data.tokenizer import Tokenizer
from mmjax.data.wording import Part, Piece, Word

# Vicuna's words with a line per turn. For checkpoints without a template, when the caller asks for it.
DEFAULT_TEMPLATE = """\
{%- if add_bos %}{{ bos_token }}{% endif %}
{%- for message in messages %}
{%- if message['role'] == 'system' %}{{ message['content'] + '\\n' }}
{%- elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' + message['content'] }}{{ eos_token }}{{ '\\n' }}
{%- else %}{{ 'USER: ' + message['content'] + '\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""

# Two characters of the last private-use plane around a number, which upper-casing or escaping leaves as it
# is.
_OPEN, _CLOSE = "\U0010f9c4", "\U0010f9c5"
_SENTINEL = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")
_REPR_OF_PARTS = re.compile(r"""['"]type['"]""")


@dataclass(frozen=True)
class TextSpan:
    """Consecutive tokens; loss[i] says whether ids[i] is a target."""

    ids: tuple[int, ...]
    loss: tuple[bool, ...]


@dataclass(frozen=True)
class MediaSpan:
    """The place of one media item, or of some of its tokens.

    Attributes:
        port: of the item.
        item: counts the conversation's items of that port from 0.
        part: which of the items that it became for the model, from 0.
        first: the first of the tokens that stand here.
        count: how many do; None: all that are left.
    """

    port: str
    item: int
    part: int = 0
    first: int = 0
    count: int | None = None


Span = TextSpan | MediaSpan
# port -> for each item of the conversation what stands for it; a port without one has its items as they are.
Shown = Mapping[str, Sequence[Sequence[Piece]]]


class ChatTemplate:
    """A jinja chat template of transformers, rendered in a sandbox.

    source: the template. variables: further names the template may read (`enable_thinking`, ...). Raises
    ValueError if the source is not valid jinja.
    """

    def __init__(self, source: str, variables: Mapping | None = None):
        self.source = source
        self.variables = dict(variables or {})
        self._takes_parts: dict[tuple, bool] = {}
        self._template = _compile(source)

    def __reduce__(self):
        return ChatTemplate, (self.source, self.variables)

    def render(
        self, messages: list[dict], names: Mapping | None = None, add_generation_prompt: bool = False
    ) -> str:
        """The template's output for HF messages. names: `bos_token` and the like.

        Raises ValueError if the template raises.
        """
        try:
            return self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **{**(names or {}), **self.variables},
            )
        except Exception as error:  # a template is somebody's program: it can raise anything
            raise ValueError(f"the chat template refuses the conversation: {error}") from error

    def takes_parts(self, role: str, names: Mapping | None = None) -> bool:
        """Whether the content of this role may be a list of parts; otherwise it must be a string.

        Found by rendering a tiny conversation with a list and looking whether its text comes out whole.
        """
        key = (role, frozenset((names or {}).items()))
        if key not in self._takes_parts:
            probe = {"role": role, "content": _probe(0, True)}
            tries = [[probe]]
            # Most templates want a user's turn beside any other.
            for as_parts in (True, False) if role != "user" else ():
                turn = {"role": "user", "content": _probe(1, as_parts)}
                tries.append([probe, turn] if role == "system" else [turn, probe])
            self._takes_parts[key] = any(self._shows_all(messages, names) for messages in tries)
        return self._takes_parts[key]

    def _shows_all(self, messages: list[dict], names: Mapping | None) -> bool:
        try:
            text = self.render(messages, names)
        except ValueError:
            return False
        return len(set(_SENTINEL.findall(text))) == len(messages) and not _REPR_OF_PARTS.search(text)


def _probe(index: int, as_parts: bool) -> str | list[dict]:
    text = f"{_OPEN}{index}{_CLOSE}"
    return [{"type": "text", "text": text}] if as_parts else text


def _compile(source: str):
    import json
    from datetime import datetime

    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks an assistant's words for transformers; here its body is just rendered."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"the chat template is not valid jinja, line {error.lineno}: {error}") from error


@functools.lru_cache(maxsize=32)
def _from_source(source: str) -> ChatTemplate:
    return ChatTemplate(source)


def encode_conversation(
    conversation: Conversation,
    tokenizer: Tokenizer,
    template: ChatTemplate | str | None = None,
    placeholders: Mapping[str, str] | None = None,
    add_generation_prompt: bool = False,
    shown: Shown | None = None,
) -> tuple[Span, ...]:
    """Tokens, loss mask and media places of a conversation.

    template: None takes the tokenizer's own. placeholders: port -> what the template prints for a medium when
    it is given content parts ({"image": "<image>"}); a template that only knows strings needs none, since the
    medium then stands where its part stands between the texts. shown: port -> for each item the pieces that
    stand for it, see `mmjax.data.wording`.

    Loss: true for the tokens of a trained assistant text and for what follows it up to and with the first
    control token, if only white space stands between. A token that covers text of the assistant and of the
    template counts as the assistant's if the template's share is white space (" answer" after "ASSISTANT: "),
    else not.

    Raises ValueError naming the sample: no template, a template that refuses, drops or cuts a text, and a
    count of placeholders that is not the count of media.
    """
    if conversation.branches:
        raise ValueError(f'sample "{conversation.name}" has branches: use encode_branches')
    try:
        return _encode(conversation, tokenizer, template, placeholders or {}, add_generation_prompt, shown or {})
    except ValueError as error:
        raise ValueError(f'sample "{conversation.name}": {error}') from error


def encode_branches(
    conversation: Conversation,
    tokenizer: Tokenizer,
    template: ChatTemplate | str | None = None,
    placeholders: Mapping[str, str] | None = None,
    add_generation_prompt: bool = False,
    shown: Shown | None = None,
) -> list[tuple[Span, ...]]:
    """`encode_conversation` of messages + branch, for each branch (the conversation itself if it has none).

    Items are numbered as in `Conversation.media`: those of the shared messages first, then each branch's own.
    """
    if not conversation.branches:
        return [encode_conversation(conversation, tokenizer, template, placeholders, add_generation_prompt, shown)]
    shared = _count_media(conversation.messages)
    before: Counter = Counter()
    encoded = []
    for branch in conversation.branches:
        whole, own = Conversation(conversation.messages + branch, name=conversation.name), _count_media(branch)
        here = {}
        for port, items in (shown or {}).items():
            start = shared[port] + before[port]
            here[port] = [*items[: shared[port]], *items[start : start + own[port]]]
        spans = encode_conversation(whole, tokenizer, template, placeholders, add_generation_prompt, here)
        encoded.append(
            tuple(
                replace(span, item=span.item + before[span.port])
                if isinstance(span, MediaSpan) and span.item >= shared[span.port]
                else span
                for span in spans
            )
        )
        before += own
    return encoded


def encode_plain(
    conversation: Conversation, tokenizer: Tokenizer, shown: Shown | None = None
) -> tuple[Span, ...]:
    """The parts in order without roles or template, after BOS if `tokenizer.add_bos`: caption pre-training.

    Trained assistant texts have loss, and nothing follows them: an ending is for the caller to put into the
    text.
    """
    builder = _Builder(tokenizer, shown=shown)
    if tokenizer.add_bos:
        builder.control(tokenizer.named_tokens["bos_token"])
        builder.started = False  # BOS is added to a text, it is no part of it: the text still begins after it
    for message in conversation.messages:
        for part in message.parts:
            if isinstance(part, MediaPart):
                builder.media(part.port)
            else:
                builder.text(part.text, message.trained)
    return builder.finish()


def _count_media(messages: tuple[Message, ...]) -> Counter:
    return Counter(part.port for message in messages for part in message.parts if isinstance(part, MediaPart))


@dataclass(frozen=True)
class _Hidden:
    """What a sentinel stands for: a text's core with the outer white space left around it, or a medium."""

    message: int
    core: str = ""
    lead: str = ""
    trail: str = ""
    trained: bool = False
    port: str | None = None


def _encode(conversation, tokenizer, template, placeholders, add_generation_prompt, shown) -> tuple[Span, ...]:
    template = tokenizer.chat_template if template is None else template
    if template is None:
        raise ValueError(
            "the checkpoint has no chat template (neither chat_template.jinja nor chat_template in its "
            "tokenizer_config.json or GGUF metadata); pass one, for example "
            "mmjax.data.chat_template.DEFAULT_TEMPLATE"
        )
    if isinstance(template, str):
        template = _from_source(template)
    hidden: list[_Hidden] = []
    ending = tokenizer.frame[1][-1:] == (tokenizer.eos_id,)
    names = {"add_bos": tokenizer.add_bos, "add_eos": ending, **tokenizer.named_tokens}
    messages = []
    for i, message in enumerate(conversation.messages):
        parts = template.takes_parts(message.role, names)
        messages.append({"role": message.role, "content": _content(parts, i, message, placeholders, hidden)})
    rendered = template.render(messages, names, add_generation_prompt)

    pieces = _SENTINEL.split(rendered)
    words, places = pieces[0::2], [int(index) for index in pieces[1::2]]
    if any(_OPEN in word or _CLOSE in word for word in words) or any(i >= len(hidden) for i in places):
        raise ValueError(
            "the chat template cuts or rewrites the text of a message, so it cannot be protected"
        )
    for i in sorted(set(range(len(hidden))) - set(places)):
        role = conversation.messages[hidden[i].message].role
        raise ValueError(f"the chat template leaves out message {hidden[i].message} ({role})")

    builder = _Builder(tokenizer, placeholders, shown)
    for k, word in enumerate(words):
        # Outer white space that the template kept belongs to the text, not to the template.
        before = hidden[places[k - 1]].trail if k else ""
        after = hidden[places[k]].lead if k < len(places) else ""
        if before and word.startswith(before):
            builder.text(before, hidden[places[k - 1]].trained)
            word = word[len(before) :]
        kept = bool(after) and word.endswith(after)
        builder.template(word[: len(word) - len(after)] if kept else word)
        if k < len(places):
            item = hidden[places[k]]
            if item.port is not None:
                builder.media(item.port)
            else:
                builder.text((after if kept else "") + item.core, item.trained)
    spans = builder.finish()

    found = Counter(port for port, _ in {(span.port, span.item) for span in spans if isinstance(span, MediaSpan)})
    wanted = _count_media(conversation.messages)
    for port in sorted(found.keys() | wanted.keys()):
        if found[port] != wanted[port]:
            raise ValueError(
                f"the conversation has {wanted[port]} {port} item(s) but the chat template printed "
                f"{found[port]} {port} placeholder(s)"
            )
    return spans


def _content(
    as_parts: bool, index, message: Message, placeholders, hidden: list[_Hidden]
) -> str | list[dict]:
    """A message's content for the template, every text and every medium of a flat string as a sentinel."""

    def sentinel(item: _Hidden) -> str:
        hidden.append(item)
        return f"{item.lead}{_OPEN}{len(hidden) - 1}{_CLOSE}{item.trail}"

    def text(part: TextPart) -> str:
        core = part.text.strip()
        lead = part.text[: len(part.text) - len(part.text.lstrip())]
        trail = part.text[len(lead) + len(core) :]
        return sentinel(_Hidden(index, core, lead, trail, message.trained))

    if not as_parts:
        return "".join(
            sentinel(_Hidden(index, port=part.port)) if isinstance(part, MediaPart) else text(part)
            for part in message.parts
        )
    content = []
    for part in message.parts:
        if isinstance(part, MediaPart):
            if part.port not in placeholders:
                raise ValueError(
                    f'no placeholder is given for the port "{part.port}" that message {index} uses'
                )
            content.append({"type": part.port})
        else:
            content.append({"type": "text", "text": text(part)})
    return content


@functools.lru_cache(maxsize=32)
def _any_of(tokens: tuple[str, ...]) -> re.Pattern:
    """Matches any of the tokens, the longest first, in a group; nothing if there are none."""
    return re.compile("(" + ("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)") + ")")


class _Builder:
    """Takes template words, texts and media in order; tokenises each run between control tokens as one."""

    def __init__(
        self, tokenizer: Tokenizer, placeholders: Mapping[str, str] | None = None, shown: Shown | None = None
    ):
        self.tokenizer = tokenizer
        self.shown = shown or {}
        self.controls = _any_of(tuple(tokenizer.special_tokens))
        self.ports = {printed: port for port, printed in (placeholders or {}).items()}
        self.pattern = _any_of((*tokenizer.special_tokens, *self.ports))
        self.spans: list[Span] = []
        self.items: Counter = Counter()
        self.ids: list[int] = []
        self.loss: list[bool] = []
        self.run: list[str] = []  # pieces of the open run
        self.owned: list[bool] = []  # per character of the run: whether it is trained
        self.since: int | None = None  # where white space after a trained text began, while nothing else came
        self.started = False  # whether anything stands before the open run
        self.swallow = False  # whether white space at the start of the run goes to the token before it
        self.last: str | None = None  # the control token that stands right before, if one does
        self.spaced = False  # whether a text that follows at once gets a space

    def text(self, text: str, trained: bool) -> None:
        self._append(text, trained)
        if trained:
            self.since = len(self.owned)
        elif text.strip():
            self.since = None

    def template(self, words: str) -> None:
        for i, piece in enumerate(self.pattern.split(words)):
            if i % 2 == 0:
                self._append(piece, False)
                if piece.strip():
                    self.since = None
            elif piece in self.ports:
                self.media(self.ports[piece], piece)
            else:
                self.control(piece)

    def media(self, port: str, printed: str | None = None) -> None:
        self.since = None
        item, shown = self.items[port], self.shown.get(port)
        self.items[port] += 1
        # One item more than there are: the counts are compared in the end.
        for piece in (Part(),) if shown is None or item >= len(shown) else shown[item]:
            if isinstance(piece, Part):
                self._item(MediaSpan(port, item, *piece), printed)
            else:
                self._words(piece)

    def _item(self, span: MediaSpan, printed: str | None) -> None:
        left, right = self.tokenizer.strips.get(printed, (False, False))
        self._flush(left)
        self._close_span()
        self.spans.append(span)
        self.started, self.swallow, self.last, self.spaced = True, right, None, False

    def _words(self, word: Word) -> None:
        """What a processor writes, in which no placeholder counts."""
        for i, piece in enumerate(self.controls.split(word.text)):
            if i % 2 == 0:
                self._append(piece, False)
            elif not (word.once and piece == self.last):
                self.control(piece)
        self.spaced = word.spaced

    def control(self, token: str) -> None:
        left, right = self.tokenizer.strips[token]
        trained = self.since is not None
        if trained:
            self.owned[self.since :] = [True] * (len(self.owned) - self.since)
        self._flush(left)
        self.ids.append(self.tokenizer.special_tokens[token])
        self.loss.append(trained)
        self.since, self.started, self.swallow = None, True, right
        self.last, self.spaced = token, False

    def finish(self) -> tuple[Span, ...]:
        self._flush(False)
        self._close_span()
        return tuple(self.spans)

    def _append(self, text: str, trained: bool) -> None:
        if self.swallow:
            text = text.lstrip()
            self.swallow = not text
        if text:
            text = " " + text if self.spaced and text[0] != "<" and not text[0].isspace() else text
            self.last, self.spaced = None, False
        self.run.append(text)
        self.owned += [trained] * len(text)

    def _flush(self, strip: bool) -> None:
        text = "".join(self.run)
        text = text.rstrip() if strip else text
        ids, offsets = self.tokenizer.encode_with_offsets(text, continued=self.started)
        for start, end in offsets:
            end = max(end, start + 1)
            mine = self.owned[start:end]
            rest = (c for c, own in zip(text[start:end], mine, strict=False) if not own)
            self.loss.append(any(mine) and all(c.isspace() for c in rest))
        self.ids += ids
        self.started = self.started or bool(ids)
        self.run, self.owned = [], []

    def _close_span(self) -> None:
        if self.ids:
            self.spans.append(TextSpan(tuple(self.ids), tuple(self.loss)))
            self.ids, self.loss = [], []
