"""Chat templates that systems share: jinja, over transformers' message dicts.

An item of media is printed as `<image>`, `<video>`, `<audio>`, ..., its port between angle brackets, before the words
of its turn.
"""

from collections.abc import Mapping

_FIRST = "{% if add_bos %}{{ bos_token }}{% endif %}"


def _content(item: str) -> str:
    """The media of a message, each as the jinja expression `item`, then its words."""
    return (
        "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
        "{% for part in message['content'] if part['type'] != 'text' %}{{ " + item + " }}{% endfor %}"
        "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] | trim }}{% endfor %}"
        "{% endif %}"
    )


def _in_order(item: str) -> str:
    """The parts of a message as they stand: media, each as the jinja expression `item`, within the words."""
    return (
        "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
        "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}"
        "{% else %}{{ " + item + " }}{% endif %}{% endfor %}{% endif %}"
    )


LINE = "'<' + part['type'] + '>\\n'"
BARE = "'<' + part['type'] + '>'"
# An image on a line of its own, what stands within the words without a break.
IN_TEXT = "'<' + part['type'] + ('>\\n' if part['type'] == 'image' else '>')"
# Qwen2-VL's own control tokens around a placeholder of its own.
QWEN2_VISION = "'<|vision_start|><|' + part['type'] + '_pad|><|vision_end|>'"



def drawn(signals: Mapping[str, tuple[str, ...]]) -> str:
    """The jinja expression of a part: what is to be made as the first token of its signal, all else as BARE."""
    made = "".join(f"'{tokens[0]}' if part['type'] == '{port}' else " for port, tokens in signals.items())
    return f"({made}{BARE})"


VICUNA_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)


def turns(
    user: str, assistant: str, system: str = "", between: str = " ", item: str = LINE, in_order: bool = False
) -> str:
    """Turns that begin with a name and end with a space or a line; an answer ends with the end-of-text token.

    Media stand before the words, or with `in_order` where they stand among them.
    """
    first = "{% if messages[0]['role'] != 'system' %}{{ \"" + system + between + '" }}{% endif %}' if system else ""
    return (
        _FIRST + first + "{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}{{ '" + assistant + " ' }}"
        "{% elif message['role'] != 'system' %}{{ '" + user + " ' }}{% endif %}"
        + (_in_order(item) if in_order else _content(item))
        + "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '" + between + "' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '" + assistant + "' }}{% endif %}"
    )


# Vicuna 1.1 and later: media first, each on a line of its own, then the text; an answer ends with </s>.
VICUNA = turns("USER:", "ASSISTANT:", VICUNA_SYSTEM)
# The same with regions and masks among the words.
VICUNA_IN_ORDER = turns("USER:", "ASSISTANT:", VICUNA_SYSTEM, item=IN_TEXT, in_order=True)
# What Vicuna 0 was asked in, and MiniGPT-4 with it.
HUMAN = turns("###Human:", "###Assistant:", item="'<Img><' + part['type'] + '></Img> '")
# A question and its answer, as BLIP-2 is asked.
QUESTION = turns("Question:", "Answer:", item=BARE)


def two_sided(user: str, assistant: str, item: str = BARE) -> str:
    """Turns for an encoder-decoder: what is read ends with the end-of-text token, and so does the answer."""
    return (
        "{% for message in messages %}{% if message['role'] != 'assistant' %}{{ '" + user + "' }}"
        "{% elif loop.last %}{{ '" + assistant + "' + eos_token }}{% else %}{{ '" + assistant + " ' }}{% endif %}"
        + _content(item)
        + "{% if message['role'] == 'assistant' %}{{ eos_token }}{% elif '" + assistant + "' %}{{ ' ' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '" + assistant + "' + eos_token }}{% endif %}"
    )


# The same as an encoder-decoder reads and writes it, and as it does without names.
QUESTION_READ = two_sided("Question: ", "Answer:")
PLAIN_READ = two_sided("", "")
# Alpaca's, in which LLaMA-Adapter is asked.
ALPACA = turns(
    "### Instruction:",
    "### Response:",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "\\n\\n",
    BARE,
)
# Llama 2 and Mistral: a user's words between [INST] and [/INST].
LLAMA_2 = (
    _FIRST + "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '<<SYS>>\\n' }}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' }}{% endif %}"
    + _content(LINE)
    + "{% if message['role'] == 'system' %}{{ '\\n<</SYS>>\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ ' [/INST] ' }}{% else %}{{ eos_token }}{% endif %}{% endfor %}"
)


def chatml(item: str = LINE) -> str:
    """Qwen's turns, between <|im_start|> and <|im_end|>."""
    return (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
        + _content(item)
        + "{{ '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )


CHATML = chatml()
# No names at all: the media, the words, the answer.
PLAIN = (
    _FIRST + "{% for message in messages %}"
    + _content(BARE)
    + "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ ' ' }}{% endif %}{% endfor %}"
)


def separated(between: str, item: str = BARE) -> str:
    """No names: what was asked, `between`, the answer, the end of the text; media where they stand among the words.

    What an assistant alone says is a document.
    """
    return (
        _FIRST + "{% for message in messages %}"
        + _in_order(item)
        + "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '" + between + "' }}{% endif %}"
        "{% endfor %}"
    )


def documents(talk: str) -> str:
    """What an assistant alone says as a document without names; every other conversation as the template `talk`."""
    alone = "messages | length == 1 and messages[0]['role'] == 'assistant'"
    return "{% if " + alone + " %}" + separated(" ") + "{% else %}" + talk + "{% endif %}"


# PaliGemma: images, then what is asked, a line's end, the answer.
PREFIX = (
    "{% for message in messages %}"
    "{% for part in message['content'] if part['type'] != 'text' %}{{ " + BARE + " }}{% endfor %}"
    "{% if loop.first %}{{ bos_token }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] | trim }}{% endfor %}"
    "{{ eos_token if message['role'] == 'assistant' else '\\n' }}{% endfor %}"
)
# Gemma's turns; an image between two lines and two tokens of its own.
GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n' }}"
    + _content("'\\n\\n<start_of_image><image_soft_token><end_of_image>\\n\\n'")
    + "{{ '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


def cued(words: dict[str, str]) -> str:
    """Vicuna's turns with words of its port before each item: {"audio": "Audio: "}."""
    cues = "{" + ", ".join(f"'{port}': '{text}'" for port, text in words.items()) + "}"
    return turns("USER:", "ASSISTANT:", item=f"{cues}[part['type']] + '<' + part['type'] + '> '")
