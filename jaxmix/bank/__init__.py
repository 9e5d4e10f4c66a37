"""Many mixes in one batch: each row its own adapters, and the base's product for all at once."""

from jaxmix.bank.bank import Bank

__all__ = ["Bank"]
