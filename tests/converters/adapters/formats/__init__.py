"""The formats of other libraries, beside PEFT's."""
