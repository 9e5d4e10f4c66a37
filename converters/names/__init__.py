"""Names of tensors: those that transformers uses in memory, and those of checkpoints on disk."""

from jaxmix.converters.names.finding import all_maps, map_of
from jaxmix.converters.names.images import other_names
from jaxmix.converters.names.matching import modules_of, with_stored_names

__all__ = ["all_maps", "map_of", "modules_of", "other_names", "with_stored_names"]
