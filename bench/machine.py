"""The machine that a measurement ran on."""

import os
import platform
from datetime import UTC, datetime
from typing import Any


def machine() -> dict[str, Any]:
    """What a reader has to know of it, with its load now."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        "arch": platform.machine(),
        "at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
    }
