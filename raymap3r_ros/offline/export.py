"""Writes the results of a run in the formats of other programs, see `exports`."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from raymap3r_ros.discovery import find_in_package
from raymap3r_ros.errors import InputError, OptionError, Raymap3rError
from raymap3r_ros.io.output_folder import (
    check_output_folder,
    claim,
    foreign_files,
    listing,
    locked_folder,
    remove_written,
    written_files,
)
from raymap3r_ros.offline.result_folder import SUMMARY
from raymap3r_ros.offline.results import Results, open_images, read_results
from raymap3r_ros.output_files import check_outputs
from raymap3r_ros.signals import stop_signals_held

NewFile = Callable[[str], Path]  # from the name of a file in the output, with "/", to its path, whose folder exists


@dataclass(frozen=True)
class ExportFormat:
    """A format. One defined in a module of `exports/` is found by itself."""

    name: str
    help: str
    write: Callable[[Results, NewFile], None]  # raises InputError
    packages: tuple[str, ...] = ()  # to import, beyond those that this package requires
    per_world: bool = True  # several worlds get a folder each; False: `write` gets all of them
    needs_images: bool = True
    needs_cloud: bool = False


@functools.cache
def export_formats() -> dict[str, ExportFormat]:
    """All formats by name."""
    found = find_in_package("raymap3r_ros.offline.exports", lambda value: isinstance(value, ExportFormat))
    return {one.name: one for one in sorted(found, key=lambda one: one.name)}


def export_format(name: str) -> ExportFormat:
    """The format with this name. Raises OptionError with the nearest name."""
    formats = export_formats()
    if name not in formats:
        near = difflib.get_close_matches(name.lower(), formats, n=1, cutoff=0.5)
        nearest = f"nearest: {near[0]}; " if near else ""
        raise OptionError(f"{name!r} is no format; {nearest}formats: {', '.join(formats)}")
    return formats[name]


def check_packages(one: ExportFormat) -> None:
    """Raise Raymap3rError if a package that a format needs is not installed."""
    missing = [name for name in one.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise Raymap3rError(
            f"the format {one.name} needs {' and '.join(missing)}, not installed: pip install '.[export]' in the "
            f"checkout, or pip install {' '.join(one.packages)}"
        )


def check_cloud(one: ExportFormat, has_cloud: bool) -> None:
    """Raise InputError if a format shows the static scene, and a run writes none."""
    if one.needs_cloud and not has_cloud:
        raise InputError(f"the format {one.name} shows the points of the static scene; run without --no-cloud")


def check_recorded(one: ExportFormat, name: str, live: bool) -> None:
    """Raise InputError if a format has images and the input, called `name`, was live."""
    if live and one.needs_images:
        others = ", ".join(other.name for other in export_formats().values() if not other.needs_images)
        raise InputError(
            f"the images of {name} are not recorded, and the format {one.name} has images; formats without images: "
            f"{others}"
        )


def export_folder(results: Path, one: ExportFormat) -> Path:
    """The default folder of an export: beside the results, so that a later run does not find files in its folder."""
    folder = Path(os.path.abspath(results))
    return folder.with_name(f"{folder.name}_{one.name}")


def check_target(folder: Path, overwrite: bool = False) -> None:
    """Raise InputError if an export may not be written to `folder`: it has files, or such that no export wrote."""
    check_output_folder(folder)
    if not folder.exists():
        return
    if foreign := foreign_files(folder):
        raise InputError(
            f"{folder}: holds files that no export wrote ({listing(folder, foreign)}); name another folder with --out"
        )
    ours = written_files(folder)
    if folder / SUMMARY in ours:
        raise InputError(f"{folder}: holds the results of a run; name another folder with --out")
    if ours and not overwrite:
        raise InputError(
            f"{folder}: holds files already ({listing(folder, sorted(ours))}); name another folder with --out, or "
            "allow it with --overwrite"
        )


def export_results(
    folder: Path, name: str, out: Path | None = None, recording: Path | None = None, overwrite: bool = False
) -> Path:
    """Write the results of a run in `folder` in one format; return the new folder.

    `out`: that folder, see `export_folder`. `recording`: the input of the run, if it has moved. After an error nothing
    is left in it.

    Raises OptionError for an unknown format, InputError if the results, the recording or the folder cannot be used,
    and Raymap3rError if a package is missing.
    """
    one = export_format(name)
    check_packages(one)
    results = read_results(folder, recording)
    check_cloud(one, any(world.cloud is not None for world in results.worlds))
    inputs = [folder]
    if one.needs_images:
        check_recorded(one, results.summary["input"], live=results.summary["reading"] is None)
        results = open_images(results)
        inputs.append(results.recording.path)
    out = export_folder(folder, one) if out is None else out
    check_outputs([out], inputs, "folder")
    check_target(out, overwrite)
    with locked_folder(out):
        remove_written(out)
        try:
            if not one.per_world or len(results.worlds) == 1:
                one.write(results, functools.partial(_new_file, out, ""))
            else:
                for world in results.worlds:
                    one.write(results.only(world), functools.partial(_new_file, out, f"world_{world.number}/"))
        except BaseException:
            with stop_signals_held():
                remove_written(out)
            raise
    return out


def _new_file(root: Path, prefix: str, name: str) -> Path:
    path = claim(root, prefix + name)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
