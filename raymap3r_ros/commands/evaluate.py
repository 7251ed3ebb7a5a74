"""`raymap3r evaluate`: one subcommand per table."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import time
from pathlib import Path

from tqdm import tqdm

from raymap3r_ros.commands.arguments import (
    absolute_checkpoint,
    add_checkpoint,
    add_device,
    add_rules_arguments,
    add_stream_options,
    path,
    read_stream_options,
    size,
)
from raymap3r_ros.errors import CheckpointError, InputError, OptionError
from raymap3r_ros.evaluation import covariance, noise_study, plausibility, tables
from raymap3r_ros.evaluation.datasets import DATASETS
from raymap3r_ros.evaluation.parts import (
    ON_REQUEST,
    Part,
    cores_for,
    input_size,
    recorded_parts,
    run_parts,
    suite_sequences,
    synthetic_parts,
    worker_count,
)
from raymap3r_ros.evaluation.pictures import PICTURES, draw_pictures
from raymap3r_ros.evaluation.plan import EvaluationPlan, ablation_variants, pose_variants, rule_variants
from raymap3r_ros.evaluation.settings import describe_settings, settings_text
from raymap3r_ros.evaluation.spread import over_ray
from raymap3r_ros.evaluation.statistics import optional_module
from raymap3r_ros.evaluation.trajectory import DRIFT
from raymap3r_ros.io.output_folder import check_output_folder, check_results
from raymap3r_ros.mapping.uncertainty import DEFAULT, METADATA_KEY, ErrorModel
from raymap3r_ros.network import Network, checkpoint_path, choose_device, load_network
from raymap3r_ros.network.metadata import copy_with_metadata
from raymap3r_ros.offline.run import UNTRAINED_WARNING
from raymap3r_ros.output_files import check_output_file, check_outputs, real_path
from raymap3r_ros.streaming import StreamOptions
from raymap3r_ros.streaming.plausibility import METADATA_KEY as PLAUSIBILITY_KEY
from raymap3r_ros.streaming.plausibility import MIN_FRAMES
from raymap3r_ros.synthetic import SUITES, WORLDS
from raymap3r_ros.text import counted, printable

log = logging.getLogger(__name__)

CLOUD_CROP = 224  # pixels; the published reconstruction results use the central square of the image


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of `raymap3r evaluate`."""
    parser.description = "Run all update rules over the same sequences and print tables of the results."
    method = argparse.ArgumentParser(add_help=False)
    add_device(method)
    # All rules run side by side and share computations, which requires the execution `plain`.
    add_stream_options(method.add_argument_group("method"), leave_out=("update_rule", "execution"))
    subcommands = parser.add_subparsers(required=True, metavar="WHAT")
    _add_synthetic(subcommands, method)
    _add_simulated(subcommands)
    _add_covariance(subcommands, method)
    _add_plausibility(subcommands, method)
    for name, dataset in DATASETS.items():
        recorded = subcommands.add_parser(
            name, parents=[method], help=dataset.help, description=f"Run every update rule over {dataset.help}."
        )
        recorded.add_argument("root", metavar="ROOT", type=path, help="folder of the data set")
        if dataset.load_long:
            recorded.add_argument("--long", action="store_true", help="the longer sampling of its sequences")
        # Intrinsics as in the published tables; the images of sequences may differ in size, so there are no batches.
        add_rules_arguments(recorded, intrinsics="estimated", batch=1)
        recorded.set_defaults(
            evaluate=_run_rules, parts=_recorded_parts, dataset=name, depth_cap=dataset.depth_cap,
            cloud_crop=CLOUD_CROP,
        )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run a subcommand; return the exit status."""
    args.evaluate(args)
    return 0


# ----------------------------------------------------------------------------------------------------- subcommands


def _add_synthetic(subcommands: argparse._SubParsersAction, method: argparse.ArgumentParser) -> None:
    suites = "; ".join(f"{name}: {suite.help}" for name, suite in SUITES.items())
    parser = subcommands.add_parser(
        "synthetic",
        parents=[method],
        help="rendered suites with exact ground truth",
        description=f"Run all update rules over rendered sequences and compare with ground truth. Suites: {suites}.",
    )
    parser.add_argument(
        "--suite",
        nargs="+",
        choices=SUITES,
        default=[name for name in SUITES if name not in ON_REQUEST],
        metavar="NAME",
        help=f"suites to run: {', '.join(SUITES)} (default: all but {', '.join(ON_REQUEST)}; those of "
        "thousands of frames take much longer than all others)",
    )
    parser.add_argument(
        "--world", choices=(*WORLDS, "both"), default="one_room", help="kind of scenes (default: %(default)s)"
    )
    parser.add_argument(
        "--render-size",
        type=size,
        metavar="WxH",
        help="pixels of the rendered images (default: the network's input size, so that nothing is resampled)",
    )
    parser.add_argument(
        "--known-poses",
        action="store_true",
        help=f"also run every rule with the true camera poses given, and with poses that drift by {100 * DRIFT:g} %% "
        "of the distance",
    )
    add_rules_arguments(parser, intrinsics="given", batch=8)
    parser.set_defaults(evaluate=_run_rules, parts=_synthetic_parts, depth_cap=None, cloud_crop=0)


def _add_simulated(subcommands: argparse._SubParsersAction) -> None:
    parser = subcommands.add_parser(
        "simulated",
        help="mask, gate, reset alignment and smoothing alone, on true geometry with noise",
        description="Evaluate the parts of the method without any network, on true depths and poses with noise.",
    )
    parser.add_argument("--sequences", type=int, default=12, metavar="N", help="per suite (default: %(default)s)")
    parser.add_argument("--world", choices=WORLDS, default="varied", help="kind of scenes (default: %(default)s)")
    parser.add_argument("--picture", type=path, metavar="FILE", help="draw masks at each noise level to a PNG")
    parser.set_defaults(evaluate=_run_simulated)


def _add_covariance(subcommands: argparse._SubParsersAction, method: argparse.ArgumentParser) -> None:
    parser = subcommands.add_parser(
        "covariance",
        parents=[method],
        help="errors of poses and steps, compared with their published covariance",
        description="Fit the error model of ~/odometry on one half of the rendered sequences, evaluate it on the "
        "other, and print it as JSON.",
    )
    add_checkpoint(parser)
    parser.add_argument("--world", choices=WORLDS, default="one_room", help="kind of scenes (default: %(default)s)")
    parser.add_argument(
        "--sequences",
        type=int,
        default=16,
        metavar="N",
        help="per suite, a quarter of that for suites of long sequences (default: %(default)s)",
    )
    parser.add_argument("--frames", type=int, default=0, metavar="N", help="the first N frames of each (default: all)")
    parser.add_argument(
        "--write",
        type=path,
        metavar="FILE",
        help="write a copy of the checkpoint (.safetensors) with the fitted model in its metadata",
    )
    parser.set_defaults(evaluate=_run_covariance)


def _add_plausibility(subcommands: argparse._SubParsersAction, method: argparse.ArgumentParser) -> None:
    parser = subcommands.add_parser(
        "plausibility",
        parents=[method],
        help="limits of confidence and agreement, beyond which the weights do not fit the images",
        description="Measure confidence and agreement of both branches on images that the weights fit: set the limits "
        "on one half, count false alarms on the other, and hits on images that the weights do not fit.",
    )
    add_checkpoint(parser)
    fitting = parser.add_mutually_exclusive_group()
    fitting.add_argument(
        "--world", choices=WORLDS, default="one_room", help="scenes that the weights fit (default: %(default)s)"
    )
    fitting.add_argument(
        "--recording", nargs="+", type=path, metavar="PATH", help="recordings that the weights fit, instead of a world"
    )
    parser.add_argument(
        "--foreign", nargs="+", type=path, default=[], metavar="PATH", help="recordings that the weights do not fit"
    )
    parser.add_argument("--sequences", type=int, default=12, metavar="N", help="per suite (default: %(default)s)")
    parser.add_argument(
        "--frames", type=int, default=60, metavar="N", help="the first N of each (default: %(default)s)"
    )
    parser.add_argument(
        "--write",
        type=path,
        metavar="FILE",
        help="write a copy of the checkpoint (.safetensors) with the limits in its metadata",
    )
    parser.set_defaults(evaluate=_run_plausibility)


# ----------------------------------------------------------------------------------------------------------- calls


def _run_simulated(args: argparse.Namespace) -> None:
    if args.sequences < 1:
        raise OptionError(f"sequences is {args.sequences}; allowed: 1 and more")
    if args.picture:
        _check_output(args.picture)
    print(noise_study.format_rows(noise_study.run_simulated(args.sequences, args.world)))
    if args.picture:
        noise_study.draw_masks(args.picture)


def _run_covariance(args: argparse.Namespace) -> None:
    """Fit on every second sequence, evaluate on the others."""
    begin = time.perf_counter()
    if args.sequences < 2:
        raise OptionError(f"sequences is {args.sequences}; allowed: 2 and more, to fit on some and evaluate on others")
    if args.frames < 0:
        raise OptionError(f"frames is {args.frames}; allowed: 0 and more")
    optional_module("scipy.optimize")
    source = _source_to_annotate(args) if args.write else None
    options = read_stream_options(args)
    network = _load(args, options)
    published = _published_model(network, replace=args.write is not None)
    device = next(network.parameters()).device
    parts = []
    for name, suite in SUITES.items():
        if name in ON_REQUEST:
            continue
        count = args.sequences if suite.frames < 100 else max(2, args.sequences // 4)
        sequences = suite_sequences(name, args.world, count, size=input_size(network, options), device=str(device))
        parts.append((name, sequences))
    lengths = [sequence.length for _, sequences in parts for sequence in sequences]
    total = sum(min(length, args.frames or length) for length in lengths)
    workers = worker_count(device)
    with cores_for(workers), tqdm(total=total, unit=" frames", disable=None, dynamic_ncols=True) as bar:
        evaluated = covariance.evaluate_sequences(
            network, parts, options, frames=args.frames, workers=workers, on_frame=bar.update
        )
    report = covariance.report(evaluated, published)
    print(f"{report.text}\n")
    seconds = time.perf_counter() - begin
    print(f"{network.source}, {args.world}, {counted(total, 'frame')}, on {device.type} in {seconds:.0f} s")
    if source is not None:
        copy_with_metadata(source, args.write, {METADATA_KEY: report.model.to_json()})
        print(f"wrote {printable(args.write)}")


def _run_plausibility(args: argparse.Namespace) -> None:
    """Set the limits on one half, evaluate on the other and on what the weights do not fit."""
    if args.frames < 4 * MIN_FRAMES:
        raise OptionError(f"frames is {args.frames}; allowed: {4 * MIN_FRAMES} and more, of which a half sets limits")
    if args.sequences < 2:
        raise OptionError(f"sequences is {args.sequences}; allowed: 2 and more, with and without given intrinsics")
    source = _source_to_annotate(args) if args.write else None
    options = read_stream_options(args)
    network = _load(args, options)

    def rendered(world: str, count: int) -> list[plausibility.MeasuredSequence]:
        size, device = input_size(network, options), next(network.parameters()).device
        parts = [
            (f"{world} {name}", suite_sequences(name, world, count, size=size, device=str(device)))
            for name in SUITES
            if name not in ON_REQUEST
        ]
        frames, workers = sum(len(of_suite) for _, of_suite in parts) * args.frames, worker_count(device)
        with cores_for(workers), tqdm(total=frames, unit=" frames", disable=None, dynamic_ncols=True) as bar:
            return plausibility.measure_sequences(
                network, parts, options, frames=args.frames, workers=workers, on_frame=bar.update
            )

    foreign = [plausibility.measure_recording(network, path, options, None) for path in args.foreign]
    if args.recording:
        known = [plausibility.measure_recording(network, path, options, None) for path in args.recording]
    else:
        known = rendered(args.world, args.sequences)
        foreign += [one for world in WORLDS if world != args.world for one in rendered(world, 2)]
    fitted, evaluated = plausibility.split(known)
    limits = plausibility.fit_limits(fitted)
    print(f"{plausibility.report(limits, evaluated, foreign)}\n\nlimits, as logarithms: {limits.to_json()}")
    if source is not None:
        copy_with_metadata(source, args.write, {PLAUSIBILITY_KEY: limits.to_json()})
        print(f"wrote {printable(args.write)}")


def _published_model(network: Network, replace: bool) -> ErrorModel:
    """The model that the node uses. Raises CheckpointError if it is malformed, unless it is to be replaced."""
    try:
        return ErrorModel.from_manifest(network.manifest, network.source) or DEFAULT
    except CheckpointError as error:
        if not replace:
            raise
        log.warning("%s", error)
        return DEFAULT


def _source_to_annotate(args: argparse.Namespace) -> Path:
    """The file of --checkpoint, to be copied to --write with other metadata. Raises OptionError and InputError."""
    checkpoint, target = args.checkpoint, args.write
    path = checkpoint_path(checkpoint)
    if path.suffix != ".safetensors":
        raise OptionError(
            f"checkpoint {checkpoint} has no metadata to write to; convert a .pth file with `raymap3r convert` first"
        )
    if target.suffix != ".safetensors":
        raise OptionError(f"--write is {target}; the name of a checkpoint must end in .safetensors")
    check_output_file(target)
    check_outputs([target], _inputs(args))
    return path


def _run_rules(args: argparse.Namespace) -> None:
    """Run the update rules, print the tables and write the files.

    Raises OptionError and InputError for unusable arguments before anything is run.
    """
    begin = time.perf_counter()
    options = read_stream_options(args)
    variants = rule_variants(options, args.rules) + (ablation_variants(options) if args.ablations else [])
    if getattr(args, "known_poses", False):
        variants += pose_variants(options, args.rules)
    plan = EvaluationPlan(
        frames=args.frames,
        batch=args.batch,
        workers=worker_count(choose_device(args.device)),
        known_intrinsics=args.intrinsics == "given",
        judged_frames=args.judged_frames,
        depth_cap=args.depth_cap,
        reconstruction=args.reconstruction,
        cloud_crop=args.cloud_crop,
    )
    _check(args)
    network = _load(args, options)
    parts = args.parts(args, network, options)
    device = next(network.parameters()).device
    with over_ray(args.ray, absolute_checkpoint(args.checkpoint), device, options.precision, plan.workers) as spread:
        runs = run_parts(network, parts, variants, plan, options, spread)
    keys = {variant.name: tables.settings_key(variant.settings()) for variant in variants}
    rows = tables.make_rows(runs, variants, keys)
    command = shlex.join(["raymap3r", *sys.argv[1:]])
    settings = describe_settings(command, network, variants, plan, keys, time.perf_counter() - begin)
    print(f"{tables.format_tables(rows, runs)}\n\n{settings_text(settings, options)}")
    if args.csv:
        tables.write_csv(args.csv, rows)
    if args.json:
        tables.write_tables(args.json, settings, rows, runs)
    if args.pictures:
        for picture in draw_pictures(args.pictures, runs, args.rules):
            print(printable(picture))


def _load(args: argparse.Namespace, options: StreamOptions) -> Network:
    network = load_network(args.checkpoint, choose_device(args.device), options.precision)
    if not network.trained:
        log.warning(UNTRAINED_WARNING)
    return network


def _check(args: argparse.Namespace) -> None:
    """Raise the errors that would otherwise be raised only after the run."""
    optional_module("evo.core.metrics")
    optional_module("scipy.stats")
    if args.pictures:
        optional_module("matplotlib")
        check_output_folder(args.pictures)
        check_outputs([args.pictures], _inputs(args), "folder")
        args.pictures.mkdir(parents=True, exist_ok=True)
        check_results(args.pictures, PICTURES)
    outputs = [table for table in (args.json, args.csv) if table]
    check_outputs(outputs, _inputs(args))
    for table in outputs:
        _check_output(table)
        pictures = args.pictures and real_path(table.absolute().parent) == real_path(args.pictures)
        if pictures and PICTURES.fullmatch(table.name):
            raise InputError(f"{table}: has the name of a picture in --pictures; name another file for the results")
    if args.sequences is not None and args.sequences < 1:
        raise OptionError(f"sequences is {args.sequences}; allowed: 1 and more")
    if len(set(args.rules)) < len(args.rules):
        raise OptionError(f"rules are {','.join(args.rules)}; each may be named once")


def _inputs(args: argparse.Namespace) -> list[Path]:
    """Return the files and folders that the command reads."""
    named = [*getattr(args, "foreign", []), *(getattr(args, "recording", None) or [])]
    return [checkpoint_path(args.checkpoint), *([args.root] if hasattr(args, "root") else []), *named]


def _check_output(path: Path) -> None:
    check_output_file(path)
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.absolute().parent} to write it to")


def _synthetic_parts(args: argparse.Namespace, network: Network, options: StreamOptions) -> list[Part]:
    return synthetic_parts(
        args.suite,
        WORLDS if args.world == "both" else (args.world,),
        size=args.render_size or input_size(network, options),
        device=str(next(network.parameters()).device),
        sequences=args.sequences,
        frames=args.frames,
    )


def _recorded_parts(args: argparse.Namespace, network: Network, options: StreamOptions) -> list[Part]:
    return recorded_parts(args.dataset, args.root, long=getattr(args, "long", False), sequences=args.sequences)
