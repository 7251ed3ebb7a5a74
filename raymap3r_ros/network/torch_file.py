"""Files of `torch.save`: the zip form, and the form before torch 1.6.

`torch.load` is not used, because the classes that it accepts beside tensors differ between versions and must be
allowed one by one. Here no name in a file is imported or called, see `pickle_machine`.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from raymap3r_ros.errors import CheckpointError, reason_of
from raymap3r_ros.network.pickle_machine import MAX_PICKLE, PickleMachine, TensorRecord

MAX_DIRECTORY = 2**22  # bytes of the directory of an archive; the public checkpoint's has 0.1 MB
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of torch's container before version 1.6


class TorchFile(ABC):
    """The content of a file of `torch.save`."""

    content: Any  # dictionaries, lists, numbers, strings; TensorRecord for tensors, Skipped for all other objects
    skipped: tuple[str, ...]  # names of unknown classes, whose objects were skipped

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last: tuple[str, bytearray] = ("", bytearray())

    def read(self, record: TensorRecord) -> Tensor:
        """The tensor; it shares memory only with tensors of the same storage. Raises CheckpointError."""
        storage = record.storage
        with reading(self.path):
            if 0 in record.shape:
                return torch.empty(record.shape, dtype=storage.dtype)
            if self._last[0] != storage.key:  # consecutive tensors often share a storage
                self._last = storage.key, self._read_storage(storage.key)
            numbers = torch.frombuffer(self._last[1], dtype=storage.dtype)
            if storage.start + storage.numel > len(numbers):
                raise ValueError(f"storage {storage.key!r:.60} is shorter than its tensors")
            return numbers.as_strided(record.shape, record.stride, storage.start + record.offset)

    @abstractmethod
    def _read_storage(self, key: str) -> bytearray:
        """The bytes of a storage."""


@contextlib.contextmanager
def open_torch_file(path: str | os.PathLike) -> Iterator[TorchFile]:
    """Open a file of `torch.save`: the zip form, or the form before torch 1.6.

    Raises CheckpointError if it is damaged, or names anything that is neither a tensor nor a plain object.
    """
    path = Path(path)
    with contextlib.ExitStack() as stack:
        with reading(path):
            file = stack.enter_context(path.open("rb"))
            start = file.read(4)
            file.seek(0)
            if start == b"PK\x03\x04":
                _check_directory(path, file)
                archive = stack.enter_context(zipfile.ZipFile(file))
                opened: TorchFile = _ZipFile(path, archive)
            else:
                opened = _LegacyFile(path, file)
        yield opened


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn errors while `path` is read into a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    # Raised by zipfile, pickletools and struct for damaged bytes, and by the stack machine for invalid programs.
    except (
        OSError, RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError, MemoryError,
        OverflowError, struct.error, zipfile.BadZipFile,
    ) as error:  # fmt: skip
        reason = reason_of(error)
        if " " not in reason:  # such as the missing key of a KeyError
            reason = f"it is damaged ({type(error).__name__}: {reason})"
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {reason}") from error


class _ZipFile(TorchFile):
    """The form since torch 1.6: an archive with one pickle and one entry for each storage."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        super().__init__(path)
        self._archive = archive
        _check_archive(path, archive)
        programs = [name for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(programs) != 1:
            raise ValueError(f"it has {len(programs)} entries NAME/data.pkl, expected one")
        self._root = programs[0].removesuffix("data.pkl")
        order = f"{self._root}byteorder"
        if order in archive.namelist() and archive.open(order).read(10) != b"little":
            raise ValueError("its numbers are not little-endian")
        machine = PickleMachine(path)
        self.content = machine.run(io.BytesIO(archive.read(programs[0])))
        self.skipped = tuple(sorted(machine.skipped))

    def _read_storage(self, key: str) -> bytearray:
        # zipfile verifies the checksum while reading.
        entry = self._archive.getinfo(f"{self._root}data/{key}")
        data = bytearray(entry.file_size)
        with self._archive.open(entry) as file:
            if file.readinto(data) != len(data):
                raise EOFError(f"storage {key!r:.60} is cut off")
        return data


def _check_directory(path: Path, file: BinaryIO) -> None:
    """Raise CheckpointError unless the file is one archive from its first to its last byte, as torch writes it.

    Readers search for the directory in different ways, and find different ones in any other file.
    """
    size = path.stat().st_size
    stop = size - 22
    file.seek(max(stop, 0))
    end = file.read(22)
    if len(end) < 22 or end[:8] != b"PK\x05\x06" + bytes(4) or end[20:] != bytes(2):
        raise zipfile.BadZipFile(
            f"it begins like a file of torch, but has no directory at its end. The download seems incomplete: it has "
            f"{size} bytes. Compare this with the source, and download it again"
        )
    short = struct.unpack("<12xII2x", end)
    length, start = short
    file.seek(max(stop - 76, 0))
    record = file.read(76)
    if record[56:60] == b"PK\x06\x07":  # a second record with longer numbers, which torch always writes
        stop -= 76
        length, start = struct.unpack("<40xQQ20x", record)
    agree = all(number in (long, 2**32 - 1) for number, long in zip(short, (length, start), strict=True))
    if not agree or start + length != stop or length > MAX_DIRECTORY:
        raise zipfile.BadZipFile(
            f"it is damaged, or not a zip file of torch: its directory has {length} bytes (allowed: {MAX_DIRECTORY}) "
            f"and starts at {start} of {size}"
        )


def _check_archive(path: Path, archive: zipfile.ZipFile) -> None:
    """Raise CheckpointError if an archive expands to more than its size, or has an overlong pickle."""
    size = path.stat().st_size
    names = set()
    if other := _other_archive([entry.filename for entry in archive.infolist()]):
        raise CheckpointError(f"{path} is {other}")
    for entry in archive.infolist():
        reason = ""
        if entry.filename in names:
            reason = "occurs twice"
        elif entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
            reason = "is compressed, which torch.save never does"
        elif entry.filename.endswith(".pkl") and entry.file_size > MAX_PICKLE:
            reason = f"is {entry.file_size} bytes long, more than {MAX_PICKLE}"
        if reason:
            raise CheckpointError(
                f"{path} is refused: {entry.filename!r:.60} in it {reason}. Nothing in it was executed"
            )
        names.add(entry.filename)
    total = sum(entry.file_size for entry in archive.infolist())
    if total > size:
        raise CheckpointError(
            f"{path} is refused: its entries have {total} bytes, more than the file ({size}). "
            "Nothing in it was executed"
        )


_SAVE_WEIGHTS = (
    'save the weights alone where it was made: torch.save({"model": module.state_dict()}, "weights.pth"); nothing in '
    "it was executed"
)
# Archives that are no weights, by the pattern of a name in them.
_OTHER_ARCHIVES = (
    (
        r"[^/]+/(constants\.pkl|code/.+)",
        f"a TorchScript program (torch.jit.save), which contains code; {_SAVE_WEIGHTS}",
    ),
    (r"[^/]+/models/.+\.json", f"an exported program (torch.export.save), not weights; {_SAVE_WEIGHTS}"),
    (r"[^/]+/\.data/extern_modules", f"a package (torch.package), which contains code; {_SAVE_WEIGHTS}"),
    (
        r"[^/]+\.npy",
        'a file of numpy.savez; save its arrays as tensors: torch.save({"model": tensors}, "weights.pth")',
    ),
    (r"(.*/)?[^/]+\.(pth|pt|ckpt|safetensors)", "a zip archive that contains weights; unpack it first: unzip"),
)


def _other_archive(names: list[str]) -> str:
    """What an archive with these entries is if it is not one of torch.save, and what to do; "" if it may be one."""
    return next((what for form, what in _OTHER_ARCHIVES if any(re.fullmatch(form, name) for name in names)), "")


class _LegacyFile(TorchFile):
    """The form before torch 1.6: five consecutive pickles, then the storages."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        super().__init__(path)
        self._file = file
        # A copy of the first part, so that no instruction can read beyond it.
        programs = io.BytesIO(file.read(MAX_PICKLE))
        try:
            magic = PickleMachine(path).run(programs)
        except (ValueError, TypeError, LookupError, AttributeError, EOFError) as error:
            start = programs.getvalue()[:16]
            raise ValueError(f"it is neither a zip archive nor a pickle; it begins with {start!r}") from error
        if magic != LEGACY_MAGIC:
            raise ValueError("it is a pickle, but not one of torch")
        PickleMachine(path).run(programs)  # version of the protocol
        system = PickleMachine(path).run(programs)
        if system.get("little_endian") is not True:
            raise ValueError("its numbers are not little-endian")
        machine = PickleMachine(path)
        self.content = machine.run(programs)
        self.skipped = tuple(sorted(machine.skipped))
        keys = PickleMachine(path).run(programs)
        self._places: dict[str, tuple[int, int]] = {}  # of each storage: position and length in bytes
        position, size = programs.tell(), path.stat().st_size
        for key in keys:
            file.seek(position)
            count = struct.unpack("<q", file.read(8))[0]
            if type(key) is not str:
                raise ValueError("it has a storage whose name is not a string")
            length = count * machine.item_sizes[key]
            position += 8
            if not 0 <= length <= size - position:
                raise EOFError(f"storage {key!r:.60} is cut off")
            self._places[key] = position, length
            position += length

    def _read_storage(self, key: str) -> bytearray:
        position, length = self._places[key]
        data = bytearray(length)
        self._file.seek(position)
        if self._file.readinto(data) != length:
            raise EOFError(f"storage {key!r:.60} is cut off")
        return data
