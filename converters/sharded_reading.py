"""Base checkpoints read onto many devices, each process its own slices: `load_params`."""

from jaxmix.converters.checkpoints.sharded_reading import load_params

__all__ = ["load_params"]
