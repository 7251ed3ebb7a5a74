"""`raymap3r run`: process a recording, a camera or a stream without ROS."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from raymap3r_ros.commands.arguments import (
    add_checkpoint,
    add_device,
    add_options,
    add_reading,
    add_results,
    add_stream_options,
    path,
    read_options,
    read_stream_options,
    reading_options,
    result_options,
)
from raymap3r_ros.errors import OptionError, Raymap3rError, reason_of
from raymap3r_ros.io import open_input
from raymap3r_ros.io.live import LIVE
from raymap3r_ros.io.tum import KnownTrajectory
from raymap3r_ros.network import checkpoint_path, choose_device, choose_threads, load_network
from raymap3r_ros.offline import CloudOptions, RunOutputs, RunSummary, run_recording
from raymap3r_ros.offline.export import (
    ExportFormat,
    check_cloud,
    check_packages,
    check_recorded,
    check_target,
    export_folder,
    export_format,
    export_formats,
    export_results,
)
from raymap3r_ros.offline.rerun_view import SUFFIX, RerunView
from raymap3r_ros.offline.run import QUIT
from raymap3r_ros.offline.window import Window
from raymap3r_ros.output_files import check_outputs
from raymap3r_ros.rates import rate_text
from raymap3r_ros.signals import INTERRUPTED, STOP_NAMES
from raymap3r_ros.text import counted, printable

log = logging.getLogger(__name__)

INCOMPLETE = 1  # exit status if the recording ended early, or an export failed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `raymap3r run`."""
    parser.description = (
        "Process a recording, a camera or a network stream and write trajectory.txt (TUM), depth/, masks/, "
        "intrinsics.txt, static_scene.ply, summary.json and a preview to a folder. Ctrl-C ends early and keeps the "
        "results so far. The exit status is 1 if the run ended early with results, for instance because of a damaged "
        "recording, a full disk, or a camera or stream that ends, 2 if there are none, and 130 after Ctrl-C."
    )
    parser.add_argument(
        "input",
        metavar="INPUT",
        type=_input,
        help="a video, a folder of images, a ROS 2 bag (.mcap, .db3, or its folder; ROS 1 bags are read too), a "
        "camera (0, /dev/video0), or the URL of a stream (rtsp://, http:// and others)",
    )
    parser.add_argument("--out", required=True, type=path, metavar="DIR", help="folder for the results")
    parser.add_argument("--overwrite", action="store_true", help="replace the results of an earlier run in DIR")
    add_checkpoint(parser)
    add_device(parser)

    results = parser.add_argument_group("results")
    add_results(results)
    results.add_argument(
        "--view",
        nargs="?",
        type=_view_file,
        const=True,  # the viewer; not a string, which argparse would pass to `type`
        metavar="FILE.rrd",
        help="show the results in Rerun's viewer during the run, or write them to FILE.rrd (see docs/viewing.md)",
    )

    results.add_argument(
        "--export",
        nargs="+",
        type=_export_format,
        default=[],
        metavar="FORMAT",
        help=f"also write the results as {', '.join(export_formats())}, each to DIR_FORMAT (see docs/formats.md)",
    )
    results.add_argument(
        "--window", action="store_true", help="show the preview in a window; q or Escape ends the run"
    )

    reading = parser.add_argument_group("reading")
    add_reading(reading)
    reading.add_argument(
        "--poses",
        type=path,
        metavar="FILE",
        help="known camera poses in TUM format, camera to world at the stamps of the recording, for all frames or "
        "some (see --published-pose)",
    )
    reading.add_argument(
        "--memory",
        type=path,
        metavar="FILE",
        help="a world.safetensors: search for the camera in this saved world, and continue there (see "
        "docs/keyframes.md)",
    )
    add_stream_options(parser.add_argument_group("method"))
    add_options(parser.add_argument_group("static scene"), CloudOptions)


def run(args: argparse.Namespace) -> int:
    """Process a recording; return the exit status."""
    options, cloud_options = read_stream_options(args), read_options(args, CloudOptions)
    if isinstance(args.view, Path):
        given = [item for item in (args.poses, args.memory) if item is not None]
        inputs = [Path(args.input), checkpoint_path(args.checkpoint), *given]
        check_outputs([args.view], inputs)
    window = Window() if args.window else None
    recording = open_input(args.input, **reading_options(args))
    exports = list(dict.fromkeys(args.export))
    folders = [export_folder(args.out, one) for one in exports]
    for one, folder in zip(exports, folders, strict=True):
        check_packages(one)
        check_cloud(one, args.cloud)
        check_recorded(one, recording.name, recording.live)
        check_outputs([folder], [] if recording.live else [recording.path], "folder")
        check_target(folder, args.overwrite)
    poses = None if args.poses is None else KnownTrajectory.read(args.poses)
    outputs = RunOutputs(
        **result_options(args),
        view=RerunView(None if args.view is True else args.view, args.overwrite) if args.view else None,
        window=window,
    )  # fmt: skip
    network = load_network(args.checkpoint, choose_device(args.device), options.precision)
    choose_threads(network)
    summary = run_recording(
        recording, network, args.out, options, outputs=outputs, cloud_options=cloud_options, poses=poses,
        memory=args.memory, overwrite=args.overwrite,
    )  # fmt: skip
    _report(summary, args.out)
    interrupted = summary.stopped_by in (*STOP_NAMES, QUIT)
    failed = False
    for one, folder in zip(exports, folders, strict=True):
        if not interrupted:
            try:
                print(printable(export_results(args.out, one.name, folder, overwrite=args.overwrite)))
                continue
            except (Raymap3rError, OSError) as error:
                log.error("%s", reason_of(error))
                failed = True
        print(f"not exported: {one.name}; raymap3r export {printable(args.out)} {one.name}")
    if summary.complete and not failed:
        return 0
    return INTERRUPTED if interrupted else INCOMPLETE


def _report(summary: RunSummary, folder: Path) -> None:
    counts = [counted(summary.frames, "frame")]
    if summary.frames_skipped:
        counts.append(f"{summary.frames_skipped} not readable")
    if summary.frames_dropped:
        counts.append(f"{summary.frames_dropped} dropped for newer ones")
    if summary.frames_unhealthy:
        counts.append(f"{summary.frames_unhealthy} without finite values")
    if summary.frames_blank:
        counts.append(f"{summary.frames_blank} blank")
    if summary.frames_late:
        counts.append(f"{summary.frames_late} with a stamp that does not rise")
    if summary.poses:
        counts.append(f"{summary.frames_with_pose} with a known pose")
    if summary.worlds > 1:
        counts.append(counted(summary.worlds, "world"))
    if summary.returns:
        counts.append(f"found again {counted(summary.returns, 'time')}")
    if summary.memory:
        found = "not found" if summary.memory_found is None else f"found from frame {summary.memory_found} on"
        counts.append(f"{found} in {printable(Path(summary.memory).name)}")
    print(f"weights: {summary.checkpoint}")
    early = ""
    if not summary.complete:
        missing = "an unknown number" if summary.frames_missing is None else summary.frames_missing
        missing = "" if summary.input_kind in LIVE else f", {missing} missing"
        early = f" (stopped early: {printable(summary.stopped_by)}){missing}"
    print(
        f"{', '.join(counts)}{early}: {rate_text(summary.engine_rate)}, "
        f"{rate_text(summary.whole_rate)} with reading and writing, on {summary.device}"
    )
    print(f"{printable(folder)}: {', '.join(summary.files)}")


def _input(text: str) -> str:
    path(text)  # a URL does not survive as a path
    return text


def _view_file(text: str) -> Path:
    if not text.endswith(SUFFIX):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in {SUFFIX}; INPUT goes before --view")
    return Path(text)


def _export_format(text: str) -> ExportFormat:
    try:
        return export_format(text)
    except OptionError as error:
        raise argparse.ArgumentTypeError(f"{error}; INPUT goes before --export") from None
