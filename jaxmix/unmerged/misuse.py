"""The error for leaves with adapters attached that are used as arrays outside of `factored`."""

from typing import Any, NoReturn

from jaxmix.errors import AdapterError

__all__ = ["AttachedLeafError", "NoArray"]


class AttachedLeafError(AdapterError, AttributeError, TypeError):
    """A leaf with adapters attached that was used as an array.

    It is an ``AttributeError`` too, so that ``hasattr(leaf, "T")`` is False.
    """


class NoArray:
    """Refuses to be used as an array: arithmetic, indexing, conversion and attributes.

    Example:
        >>> NoArray() @ 1
        Traceback (most recent call last):
        ...
        jaxmix.unmerged.misuse.AttachedLeafError: NoArray has adapters attached, ...
    """

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise AttachedLeafError(
            f"{self!r} has adapters attached, so it is no array. Run the function that uses it "
            "through jaxmix.factored: factored(fn)(params, x) in the place of fn(params, x); or "
            "merge the adapters into the params with jaxmix.compose."
        )

    def __repr__(self) -> str:
        return type(self).__name__

    def __getattr__(self, name: str) -> Any:
        # Fields are absent while an object is built or copied; dunders belong to protocols.
        if name.startswith("_") or name in getattr(type(self), "__dataclass_fields__", ()):
            raise AttributeError(name)
        self._refuse()

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
    __matmul__ = __rmatmul__ = __truediv__ = __rtruediv__ = __pow__ = __rpow__ = _refuse
    __neg__ = __abs__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __getitem__ = __array__ = __jax_array__ = __float__ = __int__ = _refuse
