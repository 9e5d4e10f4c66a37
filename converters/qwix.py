"""qwix's LoRA trees and their folders: `qwix_adapter` and `read_qwix`."""

from jaxmix.converters.adapters.qwix import qwix_adapter, read_qwix

__all__ = ["qwix_adapter", "read_qwix"]
