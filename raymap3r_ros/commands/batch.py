"""`raymap3r batch`: process many recordings, on this machine or on a cluster."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path

from raymap3r_ros.commands.arguments import (
    absolute_checkpoint,
    add_checkpoint,
    add_options,
    add_reading,
    add_results,
    add_stream_options,
    read_options,
    read_stream_options,
    reading_options,
    result_options,
)
from raymap3r_ros.errors import InputError, OptionError
from raymap3r_ros.io.output_folder import check_output_folder, locked_folder
from raymap3r_ros.io.recording import ReadOptions
from raymap3r_ros.offline import CloudOptions, RunOutputs
from raymap3r_ros.offline.batch import BatchJob, run_batch, weights_id
from raymap3r_ros.offline.batch_files import absolute, find_items, is_remote, remote_errors
from raymap3r_ros.offline.batch_report import CSV, DONE, PARQUET, report_text, write_report
from raymap3r_ros.output_files import check_outputs
from raymap3r_ros.ray_pool import HERE, check_batch_modules, ray_session
from raymap3r_ros.signals import INTERRUPTED
from raymap3r_ros.streaming.stream_options import check_keyframes
from raymap3r_ros.text import printable

FAILED = 1  # exit status if a recording has no complete results


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `raymap3r batch`."""
    parser.description = (
        "Process many recordings as `raymap3r run` does, each into a result folder. The same command continues "
        "a batch that was interrupted: recordings whose results exist are left out. Needs the extra `batch`. "
        "The exit status is 1 if a recording has no complete results, and 130 after Ctrl-C."
    )
    parser.add_argument(
        "input",
        metavar="LIST_OR_FOLDER",
        help="a text file with the path or URL of a recording per line, or a folder that is searched for videos, bags "
        "and folders of images; also as a URL (s3://, gs://)",
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR_OR_URL", help="folder for the result folders and the report"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="number of processes (default: as many as fit)")
    parser.add_argument(
        "--ray",
        default=HERE,
        metavar="ADDRESS",
        help="Ray cluster: auto (the one that this machine is part of), or its address (default: this machine alone)",
    )
    parser.add_argument(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto: GPUs if there are any (default: auto)"
    )
    add_checkpoint(parser)
    add_results(parser.add_argument_group("results"))
    add_reading(parser.add_argument_group("reading"))
    add_stream_options(parser.add_argument_group("method"))
    add_options(parser.add_argument_group("static scene"), CloudOptions)


def run(args: argparse.Namespace) -> int:
    """Process all recordings, print the table and write the report; return the exit status."""
    check_batch_modules("ray", "pyarrow", "fsspec")
    if not (args.input and args.out):
        raise OptionError(f"{'--out' if args.input else 'LIST_OR_FOLDER'} is empty; name a file or folder")
    if args.workers is not None and args.workers < 1:
        raise OptionError(f"workers is {args.workers}; allowed: 1 and more")
    options, reading = read_stream_options(args), reading_options(args)
    ReadOptions(**reading)
    outputs = RunOutputs(**result_options(args))
    if outputs.memory:
        check_keyframes(options)
    source, out = absolute(args.input), absolute(args.out)
    if not is_remote(out):
        check_output_folder(Path(out))
        if not is_remote(source):
            check_outputs([Path(out)], [Path(source)], "folder")
    elif f"{out}/".startswith(f"{source}/"):
        raise InputError(f"{out}: is in the input {source}; name a folder outside it for the results")
    with remote_errors(source):
        items = find_items(source)
    checkpoint = absolute_checkpoint(args.checkpoint)
    method = options, read_options(args, CloudOptions)
    job = BatchJob(out, checkpoint, weights_id(checkpoint), args.device, *method, outputs, reading)
    alone = contextlib.nullcontext() if is_remote(out) else locked_folder(Path(out))
    with alone, ray_session(args.ray) as available:
        rows, stopped_by = run_batch(items, job, available, args.workers)
    print(report_text(rows))
    with remote_errors(out):
        write_report(out, rows)
    print(f"{printable(out)}: {CSV}, {PARQUET}" + (f"; {len(items) - len(rows)} not begun" if stopped_by else ""))
    if stopped_by:
        return INTERRUPTED
    return 0 if all(row.state == DONE for row in rows) else FAILED
