"""The demo: a small Llama, adapters of three kinds trained with PEFT, and their mixes."""

from pathlib import Path

__all__ = ["ASSETS"]

# The folders base, lora, loha, oft and text.
ASSETS = Path(__file__).parent / "assets"
