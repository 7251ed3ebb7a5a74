"""The working directory, without which PyTorch's libraries cannot be loaded."""

from __future__ import annotations

import os


def working_directory_problem() -> str:
    """Return why no program can work in the working directory, and what to do; "" if all is well."""
    try:
        os.getcwd()
    except FileNotFoundError:
        name = os.environ.get("PWD", "")
        return f"the working directory{f' {name}' if name else ''} no longer exists: cd to another one"
    return ""
