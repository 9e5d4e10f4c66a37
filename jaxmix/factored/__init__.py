"""Running without merging: leaves that keep base and factors apart, and functions on them."""

from jaxmix.factored.attaching import attach, detach
from jaxmix.factored.explaining import Explanation, Way, explain
from jaxmix.factored.leaf import Factored
from jaxmix.factored.running import factored

__all__ = ["Explanation", "Factored", "Way", "attach", "detach", "explain", "factored"]
