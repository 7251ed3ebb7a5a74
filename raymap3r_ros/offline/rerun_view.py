"""Results of a stream in Rerun: live, or as a recording for its viewer.

Rerun is an optional dependency, imported only here.

Entities, in the stream's world (x right, y down, z forward, metres), on the timelines `stamp` and `frame`:

    world/trajectory                  path of the camera so far, every SCENE_INTERVAL frames
    world/static_scene                points of the static scene so far, every SCENE_INTERVAL frames
    world/camera                      pose of the camera, in every frame
    world/camera/image                its pinhole model, with children of the same pixels:
    world/camera/image/rgb            the network's input
    world/camera/image/moving         the dynamic mask, drawn over the image
    world/camera/image/depth          depth in millimetres, which the viewer also shows as points in the world
    dynamic_map                       1 - staticness as grey, for frames with a motion estimate
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from raymap3r_ros.errors import InputError, Raymap3rError
from raymap3r_ros.io.png import DEPTH_UNIT, quantise_depth
from raymap3r_ros.mapping import StaticMap
from raymap3r_ros.output_files import check_output_file, whole_file
from raymap3r_ros.streaming import StepResult

log = logging.getLogger(__name__)

SUFFIX = ".rrd"
WORLD = "world"
CAMERA = f"{WORLD}/camera"
IMAGE = f"{CAMERA}/image"
SCENE_INTERVAL = 20  # frames between two versions of trajectory and static scene, each of them complete
MAX_POINTS = 200_000  # of the static scene in one version
MAX_POSES = 2_000  # of the trajectory in one version
JPEG_QUALITY = 90
MOVING_COLOR = (255, 60, 60, 150)  # red, green, blue, alpha


class RerunView:
    """A Rerun viewer or a Rerun recording. Used in a `with` block.

    `file`: the recording, which gets its name at the end of the block, or is deleted on an error; None: the viewer,
    which stays open afterwards.

    Raises Raymap3rError if Rerun is not installed or its viewer does not start, InputError if `file` cannot be used. A
    viewer that is closed early, or has no display, causes only a warning.
    """

    def __init__(self, file: Path | None, overwrite: bool = False) -> None:
        if file is not None:
            if file.suffix != SUFFIX:
                raise InputError(f"{file}: must end in {SUFFIX}, by which Rerun recognises its recordings")
            check_output_file(file)
            if file.exists() and not overwrite:
                raise InputError(f"{file}: exists already; name another file, or allow it with --overwrite")
        self._rerun = _import_rerun()
        self._file = file
        self._recording: Any = None
        self._positions: list[np.ndarray] = []
        self._exit = ExitStack()

    def __enter__(self) -> RerunView:
        rerun = self._rerun
        self._recording = rerun.RecordingStream("raymap3r")
        if self._file is None:
            self._open_viewer()
        else:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            partial = self._exit.enter_context(whole_file(self._file))
            self._recording.save(partial, default_blueprint=_blueprint(rerun))
        self._exit.callback(self._close)
        classes = [(0, "static", (0, 0, 0, 0)), (1, "moving", MOVING_COLOR)]
        self._log(WORLD, rerun.ViewCoordinates.RDF, static=True)
        self._log(f"{IMAGE}/moving", rerun.AnnotationContext(classes), static=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._exit.__exit__(*error)

    def add(self, result: StepResult, cloud: StaticMap) -> None:
        """Show one healthy frame, and every SCENE_INTERVAL frames the current points of `cloud`."""
        rerun = self._rerun
        motion = ("dynamic_mask", "dynamic_map") if result.motion else ()
        maps = result.numpy("pose", "intrinsics", "image", "depth", *motion)
        pose, (height, width) = maps["pose"].astype(np.float64), maps["depth"].shape
        self._recording.set_time("frame", sequence=result.frame)
        self._recording.set_time("stamp", timestamp=np.datetime64(round(result.stamp * 1e9), "ns"))
        self._log(CAMERA, rerun.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]))
        self._log(IMAGE, rerun.Pinhole(image_from_camera=maps["intrinsics"], resolution=(width, height)))
        self._log(f"{IMAGE}/rgb", rerun.Image(maps["image"]).compress(jpeg_quality=JPEG_QUALITY))
        # Half the size of floats, and a recording contains every frame.
        self._log(f"{IMAGE}/depth", rerun.DepthImage(quantise_depth(maps["depth"]), meter=DEPTH_UNIT))
        if result.motion:
            self._log(f"{IMAGE}/moving", rerun.SegmentationImage(maps["dynamic_mask"].astype(np.uint8)))
            grey = np.rint(255 * maps["dynamic_map"]).astype(np.uint8)
            self._log("dynamic_map", rerun.Image(grey).compress(jpeg_quality=JPEG_QUALITY))
        self._positions.append(pose[:3, 3])
        if len(self._positions) % SCENE_INTERVAL == 1:
            self.add_scene(cloud)

    def add_scene(self, cloud: StaticMap) -> None:
        """Show the static scene and the path of the camera after the last frame."""
        if not self._positions:
            return
        points, colors = cloud.arrays()
        some = slice(None, None, 1 + len(points) // MAX_POINTS)
        self._log(f"{WORLD}/static_scene", self._rerun.Points3D(points[some], colors=colors[some]))
        path = np.stack(self._positions)
        path = np.concatenate((path[:: 1 + len(path) // MAX_POSES], path[-1:]))
        self._log(f"{WORLD}/trajectory", self._rerun.LineStrips3D([path], colors=[(255, 170, 0)]))

    def _open_viewer(self) -> None:
        # pip installs the viewer beside Python; Rerun finds it only if that folder is in PATH.
        beside = str(Path(sys.executable).parent)
        if beside not in os.environ.get("PATH", "").split(os.pathsep):
            os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), beside]).strip(os.pathsep)
        try:
            self._recording.spawn(default_blueprint=_blueprint(self._rerun))
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise Raymap3rError(f"Rerun's viewer cannot be started: {reason}") from error

    def _close(self) -> None:
        try:
            self._recording.flush()
        except RuntimeError as error:
            if self._file is not None:
                raise Raymap3rError(f"{self._file}: cannot be written: {error}") from error
            log.warning("lost the connection to Rerun's viewer (it needs a display): %s", error)
        finally:
            self._recording.disconnect()

    def _log(self, entity: str, values: Any, static: bool = False) -> None:
        self._recording.log(entity, values, static=static)


def _import_rerun() -> ModuleType:
    try:
        return importlib.import_module("rerun")
    except ModuleNotFoundError as error:
        raise Raymap3rError(f"{error.name} is not installed; --view needs it: pip install rerun-sdk") from error


def _blueprint(rerun: ModuleType) -> Any:
    """Return the initial layout: the world, beside it the image with its mask, depth and dynamic map."""
    blueprint = importlib.import_module("rerun.blueprint")
    pictures = [
        blueprint.Spatial2DView(name="moving", origin=IMAGE, contents=["$origin/rgb", "$origin/moving"]),
        blueprint.Spatial2DView(name="depth", origin=IMAGE, contents=["$origin/depth"]),
        blueprint.Spatial2DView(name="dynamic map", origin="dynamic_map"),
    ]
    world = blueprint.Spatial3DView(name="world", origin=WORLD)
    layout = blueprint.Horizontal(world, blueprint.Vertical(*pictures), column_shares=[5, 2])
    return blueprint.Blueprint(layout, collapse_panels=True)
