"""All forms of PEFT's types other than the six of its mixed model, in one table."""

from . import forms_additive, forms_multiplicative
from .nested import Form

__all__ = ["FORMS"]

FORMS: list[Form] = [*forms_additive.FORMS, *forms_multiplicative.FORMS]
