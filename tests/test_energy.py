"""The energy of a block is what codecarbon says of it, and nothing without codecarbon."""

import importlib.util
import sys
import types

import pytest

from gnnrec.energy import energy


def test_without_codecarbon_nothing_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with energy() as used:
        pass
    assert used.watt_hours is None


def test_a_blocks_energy_is_read_at_its_end_also_after_an_error(monkeypatch):
    events = []

    class Tracker:
        def __init__(self, **settings):
            assert settings["save_to_file"] is False and settings["tracking_mode"] == "process"

        def start(self):
            events.append("start")

        def stop(self):
            events.append("stop")
            self.final_emissions_data = types.SimpleNamespace(energy_consumed=0.002)

    stand_in = types.ModuleType("codecarbon")
    stand_in.OfflineEmissionsTracker = Tracker
    monkeypatch.setitem(sys.modules, "codecarbon", stand_in)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: stand_in)
    with energy() as used:
        assert used.watt_hours is None and events == ["start"]
    assert used.watt_hours == pytest.approx(2.0) and events == ["start", "stop"]
    with pytest.raises(ZeroDivisionError), energy() as used:
        1 / 0  # noqa: B018
    assert used.watt_hours == pytest.approx(2.0)
