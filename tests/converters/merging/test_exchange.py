"""Exchanging two folders in one step."""

from pathlib import Path

import pytest

from jaxmix.converters.merging import exchange


def test_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two folders swap places; if the system lacks the call, or the path, an error says so."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    is_done = exchange.exchange_paths(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / ("b" if is_done else "a")).exists()
    if is_done:
        with pytest.raises(FileNotFoundError):
            exchange.exchange_paths(tmp_path / "a", tmp_path / "c")

    class Old:
        """A C library without the call."""

    monkeypatch.setattr(exchange.ctypes, "CDLL", lambda *_, **__: Old())
    assert not exchange.exchange_paths(tmp_path / "a", tmp_path / "b")
