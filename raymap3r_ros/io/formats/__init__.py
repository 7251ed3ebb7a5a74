"""Formats of recordings, one per file. A `Format` defined here is found by `open_recording`."""
