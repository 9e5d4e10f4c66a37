"""The streaming merge of adapters into a checkpoint of any size."""

from jaxmix.converters.merging.merge import Merged, merge_checkpoint, verify_merge
from jaxmix.converters.merging.rounding import Rounding
from jaxmix.converters.merging.verifying import Verdict, Verified

__all__ = ["Merged", "Rounding", "Verdict", "Verified", "merge_checkpoint", "verify_merge"]
