"""The configs there are, by name: `mmjax train --config NAME:SIZE`.

A new config is a file here with `ABOUT` (`title`; `inputs` and `outputs`, modalities; `parts`, the survey's five;
`verified`, what a test or a run has shown), `SIZES` (the arguments of its `get_config`, the default first) and
`get_config`, and a name below. Its docstring holds the command that trains it. `mmjax systems NAME` counts what it
describes.
"""

from collections.abc import Collection
from typing import Any

from configs import (
    blip_2,
    chatbridge,
    demo,
    instructblip,
    kosmos_1,
    llava,
    llava_1_5,
    llava_med,
    llava_next,
    llava_onevision,
    lynx,
    minigpt_4,
    minigpt_v2,
    mm1,
    mobilevlm,
    mplug_owl,
    pandagpt,
    qwen2_vl,
    qwen_vl,
    shikra,
    sphinx,
    video_chatgpt,
    video_llava,
    vila,
    x_llm,
)

MODULES = {
    "llava": llava,
    "llava_1_5": llava_1_5,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "llava_med": llava_med,
    "vila": vila,
    "mm1": mm1,
    "mobilevlm": mobilevlm,
    "shikra": shikra,
    "sphinx": sphinx,
    "blip_2": blip_2,
    "instructblip": instructblip,
    "minigpt_4": minigpt_4,
    "minigpt_v2": minigpt_v2,
    "mplug_owl": mplug_owl,
    "kosmos_1": kosmos_1,
    "lynx": lynx,
    "qwen_vl": qwen_vl,
    "qwen2_vl": qwen2_vl,
    "video_chatgpt": video_chatgpt,
    "video_llava": video_llava,
    "chatbridge": chatbridge,
    "pandagpt": pandagpt,
    "x_llm": x_llm,
    "demo": demo,
}


def _entry(name: str, module: Any) -> dict[str, Any]:
    run = f"mmjax train --config {name}:{next(iter(module.SIZES))} --workdir DIR ... (see the file's first lines)"
    return {"run": run, **module.ABOUT, "sizes": tuple(module.SIZES)}


SYSTEMS: dict[str, dict[str, Any]] = {name: _entry(name, module) for name, module in MODULES.items()}


def list_systems(inputs: Collection[str] = (), outputs: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """The SYSTEMS that take at least `inputs` and give at least `outputs` ("text", "image", ...), by name."""
    return {
        name: system
        for name, system in SYSTEMS.items()
        if set(inputs) <= set(system["inputs"]) and set(outputs) <= set(system["outputs"])
    }
