"""The files that a run writes at its end, as far as they can be written."""

from __future__ import annotations

import dataclasses
import errno
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from raymap3r_ros.errors import reason_of
from raymap3r_ros.io.json_file import write_json
from raymap3r_ros.io.output_folder import claim
from raymap3r_ros.offline.result_folder import SUMMARY
from raymap3r_ros.offline.run_preview import RunPreview
from raymap3r_ros.offline.summary import RunSummary

log = logging.getLogger(__name__)


class FinalFiles:
    """Writes the last files of a run. One that cannot be written is reported, and does not keep others from it."""

    def __init__(self, folder: Path, preview: RunPreview | None) -> None:
        """`preview`: its video is complete, or has failed, or is deleted if other files need its space."""
        folder.mkdir(parents=True, exist_ok=True)  # it may have been deleted
        self._folder = folder
        self._preview = preview
        self._errors: list[OSError] = []
        if preview is not None and preview.error is not None:
            self._keep(preview.error)

    def write(self, name: str, write: Callable[..., None], *values: object) -> None:
        """Write one of the small files; if the disk is full, in place of the preview video."""
        with self.keeping_errors():
            try:
                write(claim(self._folder, name), *values)
            except OSError as error:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                if not full or self._preview is None or not self._preview.remove_video():
                    raise
                self._keep(self._preview.error)
                write(claim(self._folder, name), *values)

    def write_summary(self, summary: RunSummary) -> RunSummary:
        """Write the summary last, with the files that exist, and with the reason if others could not be written.

        Raises the first error if nothing can be written at all.
        """
        self.write(SUMMARY, lambda path: write_json(path, dataclasses.asdict(self._as_written(summary))))
        summary = self._as_written(summary)
        if self._errors and not (self._folder / SUMMARY).exists() and summary.files == [SUMMARY]:
            raise self._errors[0]
        return summary

    @contextmanager
    def keeping_errors(self) -> Iterator[None]:
        """Continue without a file that cannot be written."""
        try:
            yield
        except OSError as error:
            self._keep(error)

    def _keep(self, error: OSError) -> None:
        self._errors.append(error)
        log.warning("not written: %s", reason_of(error))

    def _as_written(self, summary: RunSummary) -> RunSummary:
        stopped_by = summary.stopped_by or (reason_of(self._errors[0]) if self._errors else "")
        missing = missing_files(self._folder, summary.files)
        files = [name for name in summary.files if name == SUMMARY or name not in missing]
        return dataclasses.replace(summary, complete=not stopped_by, stopped_by=stopped_by, files=files)


def missing_files(folder: Path, names: Sequence[str]) -> list[str]:
    """Return the names, or patterns, of files that do not exist in `folder`."""
    return [name for name in names if not any(folder.glob(name))]
