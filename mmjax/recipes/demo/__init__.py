"""The demo: a small pretrained LLM learns to see emoji through a frozen image encoder, on a laptop.

`python -m mmjax.recipes.demo --workdir DIR` runs it; `configs/demo.py` holds its settings.
"""
