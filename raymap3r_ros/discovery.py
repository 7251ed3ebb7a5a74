"""Finds what the modules of a package define, so that a new format or source is one new file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any


def find_in_package(package: str, wanted: Callable[[Any], bool]) -> list[Any]:
    """Return the module-level objects for which `wanted` is true, from all modules directly in `package`.

    Modules are imported in the order of their names; an object that several modules import is returned once.
    """
    found: dict[int, Any] = {}
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        module = importlib.import_module(f"{package}.{info.name}")
        found |= {id(value): value for value in vars(module).values() if wanted(value)}
    return list(found.values())
