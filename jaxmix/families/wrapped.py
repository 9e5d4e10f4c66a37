"""The base class of updates that wrap another update and represent it or a part of it."""

from dataclasses import dataclass

from jaxmix.families.base import Update

__all__ = ["WrappedUpdate"]


@dataclass(frozen=True, eq=False)
class WrappedUpdate(Update):
    """An update that represents another one, or a part of it, at one weight.

    Args:
        update: The other update.
    """

    update: Update

    @property
    def transposed(self) -> bool | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The flag of the other update."""
        return self.update.transposed

    @property
    def has_weight(self) -> bool:
        """Whether the other update changes the weight."""
        return self.update.has_weight

    @property
    def has_bias(self) -> bool:
        """Whether the other update changes the bias."""
        return self.update.has_bias

    @property
    def maps_bias(self) -> bool:
        """Whether the other update maps an existing bias."""
        return self.update.maps_bias
