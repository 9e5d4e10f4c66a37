"""Fixtures of the bank's tests."""

from typing import Any

import pytest

from jaxmix.bank import per_row
from jaxmix.operators.backends import TPU


@pytest.fixture(params=["cpu", "accelerator"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with the batched form of each backend."""

    def on_tpu(cpu: Any, accelerator: Any, *operands: Any) -> Any:
        return accelerator(TPU, *operands)

    if request.param == "accelerator":
        monkeypatch.setattr(per_row, "by_platform", on_tpu)
    return request.param
