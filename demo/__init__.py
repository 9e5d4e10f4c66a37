"""The demo: a small Llama, adapters of three kinds that PEFT trained for it, and their mixes."""
