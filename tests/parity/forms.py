"""All forms of PEFT's types other than the six of its mixed model, in one table."""

from .nested import Form

__all__ = ["FORMS"]

FORMS: list[Form] = []
for _module in ("forms_additive", "forms_turning"):
    try:
        FORMS += __import__(f"{__package__}.{_module}", fromlist=["FORMS"]).FORMS
    except ModuleNotFoundError:
        pass
