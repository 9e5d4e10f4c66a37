"""Runs models unmerged: leaves that keep base and factors separate, and functions on them."""

from jaxmix.unmerged.attaching import attach, detach
from jaxmix.unmerged.explaining import Explanation, Way, explain
from jaxmix.unmerged.leaf import Factored
from jaxmix.unmerged.running import factored

__all__ = ["Explanation", "Factored", "Way", "attach", "detach", "explain", "factored"]
