"""Single files for ComfyUI, and in original names: `export_comfyui`, `export_original`."""

from jaxmix.converters.adapters.comfyui import export_comfyui, export_original

__all__ = ["export_comfyui", "export_original"]
