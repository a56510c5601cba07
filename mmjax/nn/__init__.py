"""Layers that the parts share: linear maps, norms, rotary positions, attention, MLPs, blocks, LoRA."""
