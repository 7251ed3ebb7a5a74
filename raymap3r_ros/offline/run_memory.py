"""The saved world that a run begins with, and the one that it saves."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from raymap3r_ros.offline.final_files import FinalFiles
from raymap3r_ros.offline.result_folder import WORLD
from raymap3r_ros.streaming import Stream
from raymap3r_ros.streaming.world_files import SavedWorld, load_world, save_world

log = logging.getLogger(__name__)


def begin_with(stream: Stream, memory: Path | None) -> SavedWorld | None:
    """Search for the camera in the world of a file from the first frame on; return that world.

    Raises InputError if the file cannot be used, and OptionError if the stream has no keyframes.
    """
    if memory is None:
        return None
    saved = load_world(memory, stream.network)
    return dataclasses.replace(saved, number=stream.add_world(saved))


def write_memory(files: FinalFiles, stream: Stream, saved: SavedWorld | None) -> None:
    """Write the keyframes of the stream's current world, which may be the `saved` one that the run began with."""
    world = stream.current_world()
    if world is None:
        log.warning("%s is not written: the last world has no keyframes yet", WORLD)
        return
    if saved is not None and saved.number == world.number:
        world = dataclasses.replace(world, place=saved.place)  # it is where it was
    files.write(WORLD, save_world, stream.network, world)
