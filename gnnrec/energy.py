"""The energy of a piece of work, as codecarbon estimates it where it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_NEVER = 3600.0  # seconds between its own readings: one at the start and one at the end


@dataclass
class Energy:
    """What was used; None until the work is done, and without codecarbon.

    Attributes:
        watt_hours: Of processor, memory and graphics card for this process. An estimate: without
            power counters it is the share of the processor's rated power.
    """

    watt_hours: float | None = None


@contextmanager
def energy() -> Iterator[Energy]:
    """Estimate the energy of the work in the block; costs some two seconds with codecarbon.

    Nothing is sent anywhere and no file is written.
    """
    found = Energy()
    if importlib.util.find_spec("codecarbon") is None:
        yield found
        return
    from codecarbon import OfflineEmissionsTracker

    tracker = OfflineEmissionsTracker(
        country_iso_code="USA",  # of the emissions, which are not read
        tracking_mode="process",
        save_to_file=False,
        log_level="error",
        measure_power_secs=_NEVER,
        allow_multiple_runs=True,
    )
    tracker.start()
    try:
        yield found
    finally:
        tracker.stop()
        found.watt_hours = 1000.0 * float(tracker.final_emissions_data.energy_consumed)
