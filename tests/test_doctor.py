"""What the machine has, and how to mend what is missing."""

from __future__ import annotations

import importlib.util
import json
from importlib.metadata import PackageNotFoundError

from gnnrec import datasets, doctor


def test_findings_are_plain_and_complete(tmp_path, monkeypatch):
    monkeypatch.setenv(datasets.CACHE_VARIABLE, str(tmp_path / "not" / "yet"))
    monkeypatch.setattr(doctor, "_network", lambda: "not looked at")
    found = doctor.examine()
    json.dumps(found)
    assert {"python", "torch", "device", "cores", "memory_bytes", "text", "cache"} <= set(found)
    assert found["cache"] == str(tmp_path / "not" / "yet") and found["cache_writable"] is True
    assert not (tmp_path / "not").exists()  # it looks and makes nothing


def test_what_is_missing_says_how_to_get_it(tmp_path, monkeypatch):
    def none(name: str) -> str:
        raise PackageNotFoundError(name)

    def unreachable(address: tuple[str, int], timeout: float) -> None:
        assert address[1] == 443 and timeout <= 5
        raise OSError("no route")

    monkeypatch.setattr(doctor.socket, "create_connection", unreachable)
    monkeypatch.setattr(doctor.Distribution, "from_name", none)
    monkeypatch.setattr(doctor, "version", none)
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    monkeypatch.setenv(datasets.CACHE_VARIABLE, str(tmp_path))
    found = doctor.examine()
    assert found["networkx"] == "missing: pip install networkx"
    assert "gnnrec[text]" in found["text"] and "gnnrec[report]" in found["plots"]
    assert "gnnrec[serve]" in found["service"] and "gnnrec[tune]" in found["tuning"]
    assert found["installed"].startswith("not by pip")
    assert "GNNREC_CACHE" in found["cache_writable"]
    assert "no route" in found["network"] and "GNNREC_DATA_MIRROR" in found["network"]
