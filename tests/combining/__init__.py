"""Mixes as one LoRA, and combined adapters, compared with NumPy formulas."""
