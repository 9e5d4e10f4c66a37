"""Names of tensors: those that transformers uses in memory, and those of checkpoints on disk."""

from jaxmix.converters.names.matching import with_stored_names

__all__ = ["with_stored_names"]
