"""Chat templates that systems share: jinja, over transformers' message dicts.

An item of media is printed as `<image>`, `<video>`, `<audio>`, ..., its port between angle brackets, before the words
of its turn.
"""

_FIRST = "{% if add_bos %}{{ bos_token }}{% endif %}"


def _content(item: str) -> str:
    """The media of a message, each as the jinja expression `item`, then its words."""
    return (
        "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
        "{% for part in message['content'] if part['type'] != 'text' %}{{ " + item + " }}{% endfor %}"
        "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] | trim }}{% endfor %}"
        "{% endif %}"
    )


LINE = "'<' + part['type'] + '>\\n'"
BARE = "'<' + part['type'] + '>'"
# Qwen2-VL's own control tokens around a placeholder of its own.
QWEN2_VISION = "'<|vision_start|><|' + part['type'] + '_pad|><|vision_end|>'"

VICUNA_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)


def turns(user: str, assistant: str, system: str = "", between: str = " ", item: str = LINE) -> str:
    """Turns that begin with a name and end with a space or a line; an answer ends with the end-of-text token."""
    first = "{% if messages[0]['role'] != 'system' %}{{ \"" + system + between + '" }}{% endif %}' if system else ""
    return (
        _FIRST + first + "{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}{{ '" + assistant + " ' }}"
        "{% elif message['role'] != 'system' %}{{ '" + user + " ' }}{% endif %}"
        + _content(item)
        + "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '" + between + "' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '" + assistant + "' }}{% endif %}"
    )


# Vicuna 1.1 and later: media first, each on a line of its own, then the text; an answer ends with </s>.
VICUNA = turns("USER:", "ASSISTANT:", VICUNA_SYSTEM)
# What Vicuna 0 was asked in, and MiniGPT-4 with it.
HUMAN = turns("###Human:", "###Assistant:", item="'<Img><' + part['type'] + '></Img> '")
# A question and its answer, as BLIP-2 is asked.
QUESTION = turns("Question:", "Answer:", item=BARE)
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
