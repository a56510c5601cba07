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
    chameleon,
    chatbridge,
    codi_2,
    cogagent,
    cogvlm,
    demo,
    dlp,
    docpedia,
    dreamllm,
    emu,
    emu3,
    ferret,
    flamingo,
    fromage,
    fuyu,
    gemma3,
    gill,
    gpt4roi,
    idefics,
    instructblip,
    internvl,
    janus,
    kosmos_1,
    kosmos_2,
    kosmos_g,
    lavin,
    lisa,
    llama_adapter,
    llama_adapter_v2,
    llava,
    llava_1_5,
    llava_med,
    llava_next,
    llava_onevision,
    lynx,
    minigpt_4,
    minigpt_5,
    minigpt_v2,
    mm1,
    mobilevlm,
    monkey,
    mplug_docowl,
    mplug_owl,
    next_gpt,
    ofa,
    osprey,
    paligemma,
    palm_e,
    pandagpt,
    qwen2_5_vl,
    qwen2_vl,
    qwen_vl,
    shikra,
    sphinx,
    uni_moe,
    video_chatgpt,
    video_llama,
    video_llava,
    videochat,
    vila,
    viscpm,
    x_instructblip,
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
    "gpt4roi": gpt4roi,
    "osprey": osprey,
    "ferret": ferret,
    "lisa": lisa,
    "sphinx": sphinx,
    "blip_2": blip_2,
    "dlp": dlp,
    "instructblip": instructblip,
    "x_instructblip": x_instructblip,
    "minigpt_4": minigpt_4,
    "minigpt_v2": minigpt_v2,
    "minigpt_5": minigpt_5,
    "mplug_owl": mplug_owl,
    "mplug_docowl": mplug_docowl,
    "monkey": monkey,
    "docpedia": docpedia,
    "janus": janus,
    "kosmos_1": kosmos_1,
    "kosmos_2": kosmos_2,
    "lynx": lynx,
    "qwen_vl": qwen_vl,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "internvl": internvl,
    "gemma3": gemma3,
    "paligemma": paligemma,
    "fuyu": fuyu,
    "video_chatgpt": video_chatgpt,
    "videochat": videochat,
    "video_llama": video_llama,
    "video_llava": video_llava,
    "chatbridge": chatbridge,
    "pandagpt": pandagpt,
    "x_llm": x_llm,
    "viscpm": viscpm,
    "palm_e": palm_e,
    "ofa": ofa,
    "flamingo": flamingo,
    "idefics": idefics,
    "cogvlm": cogvlm,
    "cogagent": cogagent,
    "llama_adapter": llama_adapter,
    "llama_adapter_v2": llama_adapter_v2,
    "lavin": lavin,
    "uni_moe": uni_moe,
    "fromage": fromage,
    "gill": gill,
    "next_gpt": next_gpt,
    "dreamllm": dreamllm,
    "emu": emu,
    "chameleon": chameleon,
    "emu3": emu3,
    "kosmos_g": kosmos_g,
    "codi_2": codi_2,
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
