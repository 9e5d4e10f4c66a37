"""The demo: a small Llama, adapters of three kinds trained with PEFT, and their mixes."""
