"""The report of a batch: a row per recording, as text, CSV and Parquet."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass

from raymap3r_ros.offline.batch_files import write_whole
from raymap3r_ros.offline.summary import RunSummary
from raymap3r_ros.ray_pool import batch_module
from raymap3r_ros.tables import text_table
from raymap3r_ros.text import counted, printable

DONE = "done"
INCOMPLETE = "incomplete"  # results up to the place where the recording is damaged
FAILED = "failed"  # no results
CSV, PARQUET = "report.csv", "report.parquet"
_MOST = 50  # rows of the table on a terminal; of more recordings, only those that are not done


@dataclass(frozen=True)
class BatchRow:
    """The outcome for a recording."""

    recording: str
    folder: str  # of the results, in the output folder
    state: str  # DONE, INCOMPLETE or FAILED
    reason: str = ""  # why it is not done
    frames: int = 0
    seconds: float = 0.0  # of processing, without the transfer of files
    duration: float = 0.0  # seconds of the recording
    resets: int = 0
    moving_share: float | None = None  # of the pixels
    path_length: float = 0.0  # metres
    scale: float = 1.0  # see RunSummary
    worlds: int = 0
    warnings: tuple[str, ...] = ()
    earlier: bool = False  # finished by an earlier run of the batch

    @classmethod
    def of(cls, summary: RunSummary, recording: str, folder: str, warnings: Sequence[str]) -> BatchRow:
        """Return the row of a recording that has results."""
        same = ("frames", "duration", "resets", "moving_share", "path_length", "scale", "worlds")
        return cls(
            recording, folder, DONE if summary.complete else INCOMPLETE, summary.stopped_by,
            seconds=round(summary.frames / summary.whole_rate, 3) if summary.whole_rate else 0.0,
            warnings=tuple(warnings), **{name: getattr(summary, name) for name in same},
        )  # fmt: skip


def report_text(rows: Sequence[BatchRow]) -> str:
    """Return the rows as a table with a line of sums."""
    shown = rows if len(rows) <= _MOST else [row for row in rows if row.state != DONE]
    lines = [["folder", "state", "frames", "seconds", "resets", "moving", "path", "warnings", "reason"]]
    for row in shown:
        moving = "" if row.moving_share is None else f"{100 * row.moving_share:.1f} %"
        numbers = (str(row.frames), f"{row.seconds:.1f}", str(row.resets), moving, f"{row.path_length:.2f} m")
        cells = numbers if row.frames else [""] * len(numbers)
        state = f"{row.state} earlier" if row.earlier else row.state
        lines.append([row.folder, state, *cells, str(len(row.warnings) or ""), printable(row.reason, 120)])
    counts = {state: sum(row.state == state for row in rows) for state in (DONE, INCOMPLETE, FAILED)}
    sums = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    frames = sum(row.frames for row in rows)
    return f"{text_table(lines, right=range(2, 8))}\n\n{counted(len(rows), 'recording')}: {sums}; {frames} frames"


def write_report(out: str, rows: Sequence[BatchRow]) -> None:
    """Write the rows to report.csv and report.parquet in the output folder."""
    text = io.StringIO()
    names = [item.name for item in dataclasses.fields(BatchRow)]
    writer = csv.DictWriter(text, names)
    writer.writeheader()
    for row in rows:
        writer.writerow(dataclasses.asdict(row) | {"warnings": "; ".join(row.warnings)})
    write_whole(f"{out}/{CSV}", text.getvalue().encode(errors="surrogateescape"))
    write_whole(f"{out}/{PARQUET}", _parquet(rows))


def _parquet(rows: Sequence[BatchRow]) -> bytes:
    arrow, parquet = batch_module("pyarrow"), batch_module("pyarrow.parquet")
    types = {
        "str": arrow.string(), "int": arrow.int64(), "float": arrow.float64(), "float | None": arrow.float64(),
        "bool": arrow.bool_(), "tuple[str, ...]": arrow.list_(arrow.string()),
    }  # fmt: skip
    schema = arrow.schema([(item.name, types[item.type]) for item in dataclasses.fields(BatchRow)])
    values = [dataclasses.asdict(row) for row in rows]
    for value in values:
        for name in ("recording", "folder", "reason"):
            value[name] = value[name].encode(errors="surrogateescape").decode(errors="backslashreplace")
    sink = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(values, schema), sink)
    return sink.getvalue()
