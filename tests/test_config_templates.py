"""What the configs' chat templates print: cues before items, and where an encoder-decoder's question ends."""

from configs.templates import PLAIN_READ, QUESTION_READ, cued
from configs.x_instructblip import CUES
from mmjax.data.chat_template import ChatTemplate

NAMES = {"bos_token": "<s>", "eos_token": "</s>", "add_bos": True}


def say(role, *parts):
    content = [{"type": part} if part in CUES else {"type": "text", "text": part} for part in parts]
    return {"role": role, "content": content}


def test_every_item_stands_behind_the_name_of_its_modality():
    talk = [say("user", "audio", "image", "points", "Which?"), say("assistant", "The dog.")]
    text = ChatTemplate(cued(CUES)).render(talk, NAMES)
    assert text == "<s>USER: Audio: <audio> Image: <image> 3D Model: <points> Which? ASSISTANT: The dog.</s>"


def test_what_is_read_ends_before_the_last_answer():
    """A prompt is read as in training; earlier answers are within it."""
    turns = [say("user", "image", "One?"), say("assistant", "yes"), say("user", "Two?"), say("assistant", "no")]
    for template, first, second in (
        (QUESTION_READ, "Question: <image>One? Answer:", "Question: Two? Answer:"),
        (PLAIN_READ, "<image>One?", "Two?"),
    ):
        chat, space = ChatTemplate(template), " " if "Answer" in first else ""
        assert chat.render(turns[:2], NAMES) == f"{first}</s>yes</s>"
        whole = f"{first}{space or ' '}yes</s>{second}</s>"
        assert chat.render(turns, NAMES) == whole + "no</s>"
        assert chat.render(turns[:3], NAMES, add_generation_prompt=True) == whole
