"""Reads the fields of a config.json and reports all problems in one error."""

import sys
from collections.abc import Mapping, Set
from typing import Any

from jaxmix.errors import CheckpointError, UnsupportedError, listing
from jaxmix.models.model_types import HARMLESS, REFUSED

__all__ = ["ACTIVATION_NAMES", "ConfigReader"]

ACTIVATION_NAMES = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


class ConfigReader:
    """The fields of a file, and the problems found so far.

    Args:
        values: The fields.
        where: The file, for messages.
        name: The ``model_type``.
        reads: The supported fields that affect the forward pass.
        defaults: The defaults of transformers for absent fields.
        refuses: Fields that are refused if they are on although they are harmless for other model
            types, with the reasons.
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
        """Records the fields that are on and not supported."""
        for name, value in self.values.items():
            known = name in reads or (name in HARMLESS and name not in refuses)
            if known or value is None or value is False or value in ("", [], {}):
                continue
            unknown = f"not a field of {self.name} that this version of jaxmix knows"
            reason = refuses.get(name, REFUSED.get(name, unknown))
            text = repr(value)
            self.refused.append(f"{name} = {text if len(text) < 60 else text[:57] + '…'}: {reason}")

    def check(self) -> None:
        """Raises an error with all problems found so far, if there are any."""
        if self.refused:
            raise UnsupportedError(
                f"{self.where}: unsupported fields of this {self.name} config:"
                f"{listing(self.refused)}\nIf they do not affect the forward pass, remove them "
                "from the file."
            )
        if self.wrong:
            raise CheckpointError(
                f"{self.where}: invalid fields:{listing(self.wrong)}\nWas the file edited?"
            )

    def get(self, name: str) -> Any:
        """Returns a field, or the default of transformers if it is absent."""
        return self.values[name] if name in self.values else self.defaults.get(name)

    def positive(self, name: str, default: int | None = None) -> int:
        """Returns an integer of at least 1; records a problem and returns 1 if it is invalid."""
        value = self.get(name)
        value = default if value is None else value
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        self.wrong.append(f"{name} is {value!r}, expected an integer of at least 1")
        return 1

    def non_negative(self, name: str, default: int) -> int:
        """Returns an integer of at least 0; records a problem and returns 0 if it is invalid."""
        value = self.values.get(name, default)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        self.wrong.append(f"{name} is {value!r}, expected an integer of at least 0")
        return 0

    def epsilon(self, name: str, default: float) -> float:
        """Returns the epsilon of a norm."""
        value = self.values.get(name, default)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and 0 <= value <= sys.float_info.max:
            return float(value)
        self.wrong.append(f"{name} is {value!r}, expected a number of at least 0")
        return 0.0

    def flag(self, name: str) -> bool:
        """Returns true or false; an absent field and null are false."""
        value = self.get(name)
        if value is None or isinstance(value, bool):
            return bool(value)
        self.wrong.append(f"{name} is {value!r}, expected true or false")
        return False

    def ids(self, name: str) -> tuple[int, ...]:
        """Returns token ids, from a single id, a list of ids, or an absent field."""
        value = self.get(name)
        tokens = value if isinstance(value, list) else [] if value is None else [value]
        if all(isinstance(token, int) and not isinstance(token, bool) for token in tokens):
            return tuple(tokens)
        self.wrong.append(f"{name} is {value!r}, expected a token id or a list of token ids")
        return ()

    def activation(self, name: str, value: Any) -> str:
        """Returns the name of the activation function, from transformers' name."""
        if not isinstance(value, str) or value not in ACTIVATION_NAMES:
            known = ", ".join(ACTIVATION_NAMES)
            self.refused.append(f"{name} = {value!r}: expected one of {known}")
            return "silu"
        return ACTIVATION_NAMES[value]

    def check_divides(self, total: str, size: int, parts: str, count: int) -> None:
        """Checks that a size is divisible by a number of heads."""
        if size % count:
            self.wrong.append(f"{total} = {size} is not a multiple of {parts} = {count}")
