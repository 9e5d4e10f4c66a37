"""Many mixes in one batch: each row has its own adapters and all rows share the base's product."""

from jaxmix.bank.bank import Bank

__all__ = ["Bank"]
