"""The fields of one config.json: each read once, and all that is wrong with them told at once."""

import sys
from collections.abc import Mapping, Set
from typing import Any

from jaxmix.errors import CheckpointError, UnsupportedError, listing
from jaxmix.models.kinds import HARMLESS, REFUSED

__all__ = ["ACTIVATION_NAMES", "Fields"]

ACTIVATION_NAMES = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


class Fields:
    """The fields of one file, and what was found wrong with them so far.

    Args:
        values: the file's.
        where: the file, for messages.
        name: its ``model_type``.
        reads: the fields that change the forward and are honoured.
        defaults: what transformers takes for a field that the file leaves out.
        refuses: why a field is refused when it is on, if it is harmless in other kinds.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        where: str,
        name: str,
        *,
        reads: Set[str],
        defaults: Mapping[str, Any],
        refuses: Mapping[str, str] | None = None,
    ):
        self.values, self.where, self.name, self.defaults = values, where, name, defaults
        self.wrong: list[str] = []
        self.refused: list[str] = []
        self._refuse(reads, refuses or {})

    def _refuse(self, reads: Set[str], refuses: Mapping[str, str]) -> None:
        """The fields that are on and that nothing here honours."""
        for name, value in self.values.items():
            known = name in reads or (name in HARMLESS and name not in refuses)
            if known or value is None or value is False or value in ("", [], {}):
                continue
            unknown = f"not a field of {self.name} that this version of jaxmix knows"
            why = refuses.get(name, REFUSED.get(name, unknown))
            text = repr(value)
            self.refused.append(f"{name} = {text if len(text) < 60 else text[:57] + '…'}: {why}")

    def check(self) -> None:
        """One error with all that is wrong so far, if something is."""
        if self.refused:
            raise UnsupportedError(
                f"{self.where}: fields of this {self.name} config that are not honoured here:"
                f"{listing(self.refused)}\nIf they do not change the forward, take them out of the "
                "file."
            )
        if self.wrong:
            raise CheckpointError(
                f"{self.where}: fields that make no sense:{listing(self.wrong)}\n"
                "Was the file edited?"
            )

    def get(self, name: str) -> Any:
        """A field of the file, or what transformers takes for one that is not there."""
        return self.values[name] if name in self.values else self.defaults.get(name)

    def size(self, name: str, default: int | None = None) -> int:
        """A whole number of at least 1; 1 if it is wrong, so that the reading can go on."""
        value = self.get(name)
        value = default if value is None else value
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        self.wrong.append(f"{name} is {value!r}, expected a whole number of at least 1")
        return 1

    def whole(self, name: str, default: int) -> int:
        """A whole number of at least 0."""
        value = self.values.get(name, default)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        self.wrong.append(f"{name} is {value!r}, expected a whole number of at least 0")
        return 0

    def epsilon(self, name: str, default: float) -> float:
        """What a norm adds."""
        value = self.values.get(name, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and 0 <= value <= sys.float_info.max:
            return float(value)
        self.wrong.append(f"{name} is {value!r}, expected a number of at least 0")
        return 0.0

    def flag(self, name: str) -> bool:
        """True or false; absent and null are false."""
        value = self.get(name)
        if value is None or isinstance(value, bool):
            return bool(value)
        self.wrong.append(f"{name} is {value!r}, expected true or false")
        return False

    def ids(self, name: str) -> tuple[int, ...]:
        """A token, a list of tokens, or none."""
        value = self.get(name)
        found = value if isinstance(value, list) else [] if value is None else [value]
        if all(isinstance(one, int) and not isinstance(one, bool) for one in found):
            return tuple(found)
        self.wrong.append(f"{name} is {value!r}, expected a token's number or a list of them")
        return ()

    def activation(self, name: str, spelled: Any) -> str:
        """The function of the feed-forward, by transformers' name for it."""
        if not isinstance(spelled, str) or spelled not in ACTIVATION_NAMES:
            known = ", ".join(ACTIVATION_NAMES)
            self.refused.append(f"{name} = {spelled!r}: expected one of {known}")
            return "silu"
        return ACTIVATION_NAMES[spelled]

    def parted(self, whole: str, size: int, parts: str, count: int) -> None:
        """Whether heads are all of one size."""
        if size % count:
            self.wrong.append(f"{whole} = {size} is no multiple of {parts} = {count}")
