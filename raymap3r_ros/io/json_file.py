"""JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raymap3r_ros.output_files import whole_file


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write `values` as indented JSON. Raises ValueError for numbers that JSON lacks (NaN, infinity)."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")
