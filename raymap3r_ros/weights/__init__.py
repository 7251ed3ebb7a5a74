"""The cache of weights: fetch public files, import others, verify and remove them. The shipped weights lie here."""

from raymap3r_ros.weights.store import Check, fetch, import_file, remove, verify

__all__ = ["Check", "fetch", "import_file", "remove", "verify"]
