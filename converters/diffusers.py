"""Single files of diffusers, ComfyUI and ai-toolkit: `read_diffusers`, `export_diffusers`."""

from jaxmix.converters.adapters.diffusers import export_diffusers, read_diffusers

__all__ = ["export_diffusers", "read_diffusers"]
