"""PEFT types that are refused."""

import pytest

from jaxmix.converters.adapters.peft.kinds import PEFT_TYPES
from jaxmix.converters.adapters.peft.refusals import REFUSED_TYPES, type_problem
from jaxmix.errors import UnsupportedError

from .folders import refused, save

CONFIG = "adapter_config.json"


@pytest.mark.parametrize("name", REFUSED_TYPES)
def test_refused_types(name, tmp_path):
    """Each type is refused with a reason and a remedy."""
    message = refused(UnsupportedError, save(tmp_path, peft_type=name))
    assert message.startswith(f"{tmp_path / CONFIG}: peft_type {name!r} is refused: it ")
    assert any(
        todo in message for todo in ("Keep it in PEFT", "mix them with", "Merge it with PEFT")
    )


@pytest.mark.parametrize(
    ("name", "closest"), [("LORA2", "LORA"), ("lora", "LORA"), ("LoKR", "LOKR")]
)
def test_unknown_types(name, closest, tmp_path):
    """The error lists the six types and the closest one."""
    message = refused(UnsupportedError, save(tmp_path, peft_type=name))
    assert f"peft_type {name!r} is unknown, expected one of ADALORA, " in message
    assert message.endswith(f"Did you mean {closest!r}?")
    message = refused(UnsupportedError, save(tmp_path, peft_type="QQ"))
    assert message.endswith(f"expected one of {', '.join(PEFT_TYPES)}.")


@pytest.mark.parametrize("name", REFUSED_TYPES)
def test_refused_types_are_not_read(name: str) -> None:
    """No type is in both tables, and each reason is a sentence with a remedy."""
    assert name not in PEFT_TYPES
    reason, *remedies = REFUSED_TYPES[name].split(". ")
    assert len(remedies) == 1 and not remedies[0].endswith(".")
    assert type_problem(name) == f"peft_type {name!r} is refused: {reason}. {remedies[0]}."
