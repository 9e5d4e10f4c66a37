"""Requests to a hub that answers, or does not."""

import huggingface_hub
import pytest
from huggingface_hub import constants

from jaxmix.converters.files import hub_connection


def test_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def head(self, url: str, timeout: float) -> None:
            assert timeout <= 5
            if url != "there":
                raise OSError

    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    for url, answers in (("there", True), ("nowhere", False)):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        assert hub_connection.is_reachable() is answers
