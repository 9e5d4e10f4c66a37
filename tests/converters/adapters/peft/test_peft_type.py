"""The description of PEFT's types: laws of every row of the table."""

from jaxmix.converters.adapters.peft.kinds import PEFT_TYPES
from jaxmix.converters.adapters.peft.peft_type import ABOUT, ConfigFields


def test_each_field_is_in_one_table() -> None:
    """`config` looks a field up in the tables one after the other."""
    for name, peft_type in PEFT_TYPES.items():
        fields = peft_type.fields
        tables = [set(fields.supported), set(fields.harmless), set(fields.refused)]
        assert sum(map(len, tables)) == len(set.union(*tables)), name
        assert set.union(*tables) >= ABOUT, name


def test_refusals_read_as_two_sentences() -> None:
    """The message is "{field} = {value}: {reason}. {remedy}"."""
    for name, peft_type in PEFT_TYPES.items():
        for refusal in peft_type.fields.refused.values():
            assert refusal.reason.isprintable() and not refusal.reason.endswith("."), name
            assert refusal.remedy.endswith(".") and refusal.remedy[0].isupper(), name


def test_integers_are_tensors_of_the_type() -> None:
    """Of a site, or of the whole model; other keys may not hold integers."""
    for name, peft_type in PEFT_TYPES.items():
        assert {*peft_type.integers} <= {*peft_type.parameters, *peft_type.shared}, name


def test_types_share_no_table_by_default() -> None:
    """The default of `refused` is one dict for all types, which must stay empty."""
    assert ConfigFields({}, frozenset()).refused == {}
