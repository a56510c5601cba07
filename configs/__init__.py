"""The configs there are, by name: `mmjax train --config NAME:SIZE`.

A new config is a file here and an entry below, with: `title`; `inputs` and `outputs` (modalities); `parts`
(the survey's five); `sizes` (argument of its get_config -> what that is; the first is the default); `run` (the
command that trains it); `verified` (what a test or a run has shown).
"""

from collections.abc import Collection
from typing import Any

SYSTEMS: dict[str, dict[str, Any]] = {
    "llava_1_5": {
        "title": "LLaVA-1.5",
        "inputs": ("text", "image"),
        "outputs": ("text",),
        "parts": {
            "modality encoder": "CLIP ViT-L/14 at 336 px",
            "input projector": "MLP, 2 layers",
            "LLM backbone": "Vicuna 1.5 (Llama 2)",
            "output projector": "none",
            "modality generator": "none",
        },
        "sizes": {
            "7b": "7.06B parameters",
            "13b": "13.35B parameters",
            "tiny": "0.22M parameters, random, for tests on CPU",
        },
        "run": "mmjax train --config llava_1_5:7b --workdir DIR ... (see the file's first lines)",
        "verified": "logits, loss, greedy tokens and export equal to transformers, at small sizes",
    },
    "demo": {
        "title": "Demo",
        "inputs": ("text", "image"),
        "outputs": ("text",),
        "parts": {
            "modality encoder": "EfficientNet-Lite0",
            "input projector": "linear maps and an MLP on pooled features",
            "LLM backbone": "SmolLM2-135M-Instruct",
            "output projector": "none",
            "modality generator": "none",
        },
        "sizes": {"full": "what `make demo` trains", "short": "a few steps, to see that it works"},
        "run": "make demo, or mmjax demo --workdir DIR",
        "verified": "trained and scored on held-out images by every run: demo_scores.json, report.html",
    },
}


def list_systems(inputs: Collection[str] = (), outputs: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """The SYSTEMS that take at least `inputs` and give at least `outputs` ("text", "image", ...), by name."""
    return {
        name: system
        for name, system in SYSTEMS.items()
        if set(inputs) <= set(system["inputs"]) and set(outputs) <= set(system["outputs"])
    }
