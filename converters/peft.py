"""PEFT's folders: `read_peft`, and `peft_stack`, the mix that equals PEFT's unmerged forward."""

from jaxmix.converters.adapters.peft import peft_stack, read_peft

__all__ = ["peft_stack", "read_peft"]
