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


@pytest.mark.parametrize("answers", [True, False])
def test_cache_is_used_while_the_hub_does_not_answer(
    answers: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Afterwards the client is as before, whatever happened."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_connection, "is_reachable", lambda: answers)
    with caplog.at_level("INFO", "jaxmix.hub"), pytest.raises(KeyError):
        with hub_connection.hub_request("owner/name"):
            assert constants.HF_HUB_OFFLINE is not answers
            raise KeyError
    assert constants.HF_HUB_OFFLINE is False
    messages = ["requesting owner/name from the Hugging Face hub"]
    messages += [] if answers else ["the hub does not answer; using its local cache"]
    assert caplog.messages == messages


def test_offline_client_makes_no_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is logged either, and the client stays offline."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub_connection, "is_reachable", None)
    with caplog.at_level("INFO", "jaxmix.hub"), hub_connection.hub_request("owner/name"):
        assert constants.HF_HUB_OFFLINE is True
    assert constants.HF_HUB_OFFLINE is True and not caplog.messages
