"""Readers of quantized checkpoints."""
