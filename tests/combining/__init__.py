"""Mixes as one LoRA, and adapters combined, against NumPy formulas."""
