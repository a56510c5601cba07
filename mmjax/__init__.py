"""mmjax: multimodal large language models in JAX.

    model = mmjax.from_pretrained("path/to/llava")
    reply = model.chat([{"role": "user", "content": [{"type": "image", "path": "a.png"},
                                                     {"type": "text", "text": "What is this?"}]}])

Names are loaded when they are first used, so that `import mmjax` costs nothing.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["EncoderModel", "Model", "from_pretrained", "list_systems"]


def __getattr__(name: str) -> Any:
    if name in ("EncoderModel", "Model", "from_pretrained"):
        from mmjax import pretrained

        return getattr(pretrained, name)
    raise AttributeError(f"module 'mmjax' has no attribute {name!r}")


def list_systems() -> dict[str, dict[str, Any]]:
    """Every system that has a config: name -> title, inputs, outputs, parts, sizes, and what was verified."""
    import configs

    return dict(configs.SYSTEMS)
