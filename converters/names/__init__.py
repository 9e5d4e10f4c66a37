"""Names of tensors: those that transformers uses in memory, and those of checkpoints on disk."""

from jaxmix.converters.names.matching import modules_of, with_stored_names
from jaxmix.converters.names.table import name_map, name_maps

__all__ = ["modules_of", "name_map", "name_maps", "with_stored_names"]
