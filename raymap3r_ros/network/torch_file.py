"""Tensors from files of `torch.save`, read as data: no name in a file is imported or called.

A pickle is a program. Here it runs on a small stack machine that builds only plain containers, numbers, strings and
descriptions of tensors. Every other object becomes an inert `Skipped`. `torch.load` is not used, because the classes
that it accepts beside tensors differ between versions and must be allowed one by one.
"""

from __future__ import annotations

import _compat_pickle
import contextlib
import io
import os
import pickletools
import re
import struct
import sys
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch
from torch import Tensor

from raymap3r_ros.errors import CheckpointError

# The public checkpoint has a pickle of 0.6 MB and about 50,000 instructions; optimizer states need a few times more.
MAX_PICKLE = 2**26  # bytes
MAX_INSTRUCTIONS = 2**22
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of torch's container before version 1.6

_DTYPES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_TENSORS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3")
_MAPPINGS = ("collections.OrderedDict", "collections.defaultdict", "builtins.dict")
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
# Objects that training code stores beside its weights. `_codecs.encode` and `scalar` construct numpy numbers.
_PLAIN = re.compile(
    r"omegaconf\.[\w.]+\.[A-Z]\w*|typing\.\w+|argparse\.Namespace|types\.SimpleNamespace"
    r"|collections\.(Counter|deque)|pathlib\.(_local\.)?\w*Path|datetime\.\w+|decimal\.Decimal|uuid\.UUID"
    r"|builtins\.(list|tuple|set|frozenset|str|bytes|int|float|bool|complex|object)"
    r"|copyreg\._reconstructor|_codecs\.encode"
    r"|numpy\.(dtype|ndarray)|numpy\.(core|_core)\.(multiarray\.(scalar|_reconstruct)|numeric\._frombuffer)"
    r"|torch\.(device|Size|torch_version\.TorchVersion)"
)
# By convention this is the name of a class and not of a function, which no file of weights needs to call.
_CLASS = re.compile(r"_*[A-Z]\w*(\._*[A-Z]\w*)*")
_TORCH_CLASSES = ("torch.nn.", "torch.optim.")
_CLOSED_PACKAGES = frozenset({*sys.stdlib_module_names, "torch", "numpy", "pip", "setuptools", "pkg_resources"})


class Skipped:
    """Placeholder for an object that is not a tensor. Contains only its name."""

    def __init__(self, name: str) -> None:
        self.name = name


@dataclass(frozen=True)
class Storage:
    """A contiguous array of numbers in the file."""

    key: str
    dtype: torch.dtype
    numel: int
    start: int = 0  # its first element, if it is a part of the array in the file


@dataclass(frozen=True)
class TensorRecord:
    """The description of a tensor in the file; `TorchFile.read` reads its numbers."""

    storage: Storage
    offset: int  # elements
    shape: tuple[int, ...]
    stride: tuple[int, ...]  # elements


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
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {str(error) or type(error).__name__}"
        ) from error


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
        if order in archive.namelist() and archive.read(order) != b"little":
            raise ValueError("its numbers are not little-endian")
        machine = _Machine(path)
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


def _check_archive(path: Path, archive: zipfile.ZipFile) -> None:
    """Raise CheckpointError if an archive expands to more than its size, or has an overlong pickle."""
    size = path.stat().st_size
    for entry in archive.infolist():
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
            raise CheckpointError(
                f"{path} is refused: {entry.filename!r:.60} in it is compressed, as torch never does. "
                "Nothing in it was executed"
            )
        if entry.filename.endswith(".pkl") and entry.file_size > MAX_PICKLE:
            raise CheckpointError(
                f"{path} is refused: {entry.filename!r:.60} in it is {entry.file_size} bytes long, "
                f"more than {MAX_PICKLE}. Nothing in it was executed"
            )


class _LegacyFile(TorchFile):
    """The form before torch 1.6: five consecutive pickles, then the storages."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        super().__init__(path)
        self._file = file
        # A copy of the first part, so that no instruction can read beyond it.
        programs = io.BytesIO(file.read(MAX_PICKLE))
        try:
            magic = _Machine(path).run(programs)
        except ValueError as error:
            raise ValueError(f"it is neither a zip archive nor a pickle ({error})") from error
        if magic != LEGACY_MAGIC:
            raise ValueError("it is a pickle, but not one of torch")
        _Machine(path).run(programs)  # version of the protocol
        system = _Machine(path).run(programs)
        if system.get("little_endian") is not True:
            raise ValueError("its numbers are not little-endian")
        machine = _Machine(path)
        self.content = machine.run(programs)
        self.skipped = tuple(sorted(machine.skipped))
        keys = _Machine(path).run(programs)
        self._places: dict[str, tuple[int, int]] = {}  # of each storage: position and length in bytes
        position, size = programs.tell(), path.stat().st_size
        for key in keys:
            file.seek(position)
            count = struct.unpack("<q", file.read(8))[0]
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


@dataclass(frozen=True)
class _Name:
    """The name of a class or function in a pickle."""

    module: str
    name: str

    @property
    def full(self) -> str:
        """Module and name in Python 3. Pickles up to protocol 2 use the names of Python 2."""
        module, name = _compat_pickle.NAME_MAPPING.get((self.module, self.name), (self.module, self.name))
        return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"


class _Machine:
    """Runs one pickle program."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []  # the stacks under the open marks
        self._memo: dict[int, Any] = {}
        self.skipped: set[str] = set()
        self.item_sizes: dict[str, int] = {}  # bytes of an element of each storage

    def run(self, program: io.BytesIO) -> Any:
        """The object that the program builds. Raises CheckpointError, or errors that `reading` turns into one."""
        for count, (instruction, argument, _) in enumerate(pickletools.genops(program)):
            if count > MAX_INSTRUCTIONS:
                self._refuse(f"its pickle has more than {MAX_INSTRUCTIONS} instructions")
            name = instruction.name
            if name == "STOP":
                return self._stack.pop()
            if name in _CONSTANTS:
                self._push(_CONSTANTS[name] if argument is None else argument)
            elif name not in ("PROTO", "FRAME"):
                handler = getattr(self, f"_op_{_SAME.get(name, name).lower()}", None)
                if handler is None:
                    self._refuse(f"its pickle uses {name}")
                handler(argument)
        raise EOFError("its pickle has no end")

    def _refuse(self, reason: str) -> NoReturn:
        raise CheckpointError(
            f"{self._path} is refused: {reason}. Nothing in it was executed. If you trust where it comes from, load "
            "it where it was made and save its tensors alone: "
            'torch.save({"model": model.state_dict()}, "weights.pth")'
        )

    # ------------------------------------------------------------------------------------------------- containers

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _op_mark(self, _: None) -> None:
        self._marks.append(self._stack)
        self._stack = []

    def _above_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def _op_pop(self, _: None) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._above_mark()

    def _op_pop_mark(self, _: None) -> None:
        self._above_mark()

    def _op_dup(self, _: None) -> None:
        self._push(self._stack[-1])

    def _op_empty_dict(self, _: None) -> None:
        self._push({})

    def _op_empty_list(self, _: None) -> None:
        self._push([])

    def _op_empty_tuple(self, _: None) -> None:
        self._push(())

    def _op_dict(self, _: None) -> None:
        items = self._above_mark()
        self._push({})
        self._assign(items)

    def _op_list(self, _: None) -> None:
        self._push(self._above_mark())  # also for sets, whose content is not used

    def _op_tuple(self, _: None) -> None:
        self._push(tuple(self._above_mark()))

    def _op_tuple1(self, _: None) -> None:
        self._stack[-1:] = [tuple(self._stack[-1:])]

    def _op_tuple2(self, _: None) -> None:
        self._stack[-2:] = [tuple(self._stack[-2:])]

    def _op_tuple3(self, _: None) -> None:
        self._stack[-3:] = [tuple(self._stack[-3:])]

    def _op_setitem(self, _: None) -> None:
        items, self._stack[-2:] = self._stack[-2:], []
        self._assign(items)

    def _op_setitems(self, _: None) -> None:
        self._assign(self._above_mark())

    def _op_append(self, _: None) -> None:
        self._extend([self._stack.pop()])

    def _op_appends(self, _: None) -> None:
        self._extend(self._above_mark())

    def _assign(self, items: list[Any]) -> None:
        """Put alternating keys and values into the dictionary on the stack."""
        target = self._stack[-1]
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                # Hashing a deeply nested tuple takes exponential time, and no needed key is a tuple.
                plain = isinstance(key, str | int | float | bytes | None)
                target[key if plain else Skipped(type(key).__name__)] = value

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)

    # ------------------------------------------------------------------------------------------------------- memo

    def _op_put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _op_memoize(self, _: None) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _op_get(self, index: int) -> None:
        self._push(self._memo[index])

    # ---------------------------------------------------------------------------------------------------- objects

    def _op_global(self, argument: str) -> None:
        self._push_name(*argument.split(" ", 1))

    def _op_stack_global(self, _: None) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._push_name(module, name)

    def _push_name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise ValueError("it has a class name that is not a string")
        named = _Name(module, name)
        if not self._is_allowed(named):
            self._refuse(f"it names {named.full!r:.120}, which is neither a tensor nor a plain object")
        self._push(named)

    def _is_allowed(self, named: _Name) -> bool:
        full = named.full
        if full in (*_TENSORS, *_PARAMETERS, *_MAPPINGS):
            return True
        if _PLAIN.fullmatch(full) or _dtype(named) is not None or full == "torch.storage.UntypedStorage":
            return True
        if not _CLASS.fullmatch(named.name) or not re.fullmatch(r"\w+(\.\w+)*", named.module):
            return False
        if full.partition(".")[0] in _CLOSED_PACKAGES and not full.startswith(_TORCH_CLASSES):
            return False
        self.skipped.add(full)
        return True

    def _op_reduce(self, _: None) -> None:
        arguments, named = self._stack.pop(), self._stack.pop()
        self._make(named, arguments)

    def _op_newobj(self, _: None) -> None:
        self._op_reduce(None)

    def _op_newobj_ex(self, _: None) -> None:
        self._stack.pop()  # keyword arguments
        self._op_reduce(None)

    def _op_inst(self, argument: str) -> None:
        arguments = tuple(self._above_mark())
        self._op_global(argument)
        self._make(self._stack.pop(), arguments)

    def _op_obj(self, _: None) -> None:
        named, *arguments = self._above_mark()
        self._make(named, tuple(arguments))

    def _make(self, named: Any, arguments: Any) -> None:
        """Push the result, or the placeholder, of `named(*arguments)`."""
        if not isinstance(named, _Name) or not isinstance(arguments, tuple):
            self._refuse("it calls something that is not a named class")
        full = named.full
        if full in _TENSORS:
            self._push(_record(arguments))
        elif full in _PARAMETERS:
            self._push(arguments[0])
        elif full in _MAPPINGS:
            self._push({})
            if full != "collections.defaultdict" and arguments:
                for key, value in arguments[0].items() if isinstance(arguments[0], dict) else arguments[0]:
                    self._assign([key, value])
        else:
            self._push(Skipped(full))

    def _op_build(self, _: None) -> None:
        self._stack.pop()  # attributes, which plain containers and tensors do not need
        if not isinstance(self._stack[-1], Skipped | dict | TensorRecord):
            raise ValueError("it sets attributes of an object that has none")

    def _op_binpersid(self, _: None) -> None:
        kind, storage_type, key, _, count, *view = self._stack.pop()
        dtype = _dtype(storage_type) if isinstance(storage_type, _Name) else None
        if isinstance(storage_type, _Name) and storage_type.full == "torch.storage.UntypedStorage":
            dtype = torch.uint8
        if kind != "storage" or dtype is None or type(key) is not str or type(count) is not int or count < 0:
            raise ValueError("it has an invalid description of a storage")
        if self.item_sizes.setdefault(key, dtype.itemsize) != dtype.itemsize:
            raise ValueError(f"storage {key!r:.60} has two types")
        start = 0
        if view and view[0] is not None:
            _, start, count = view[0]
            if type(start) is not int or type(count) is not int or min(start, count) < 0:
                raise ValueError(f"storage {key!r:.60} has an invalid size")
        self._push(Storage(key, dtype, count, start))


# Instructions that push their argument, or the value given here.
_CONSTANTS: dict[str, Any] = {
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING")),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "NONE")),
    "NEWTRUE": True,
    "NEWFALSE": False,
}
# Instructions with the same effect as another one.
_SAME = {
    "BINPUT": "PUT",
    "LONG_BINPUT": "PUT",
    "BINGET": "GET",
    "LONG_BINGET": "GET",
    "EMPTY_SET": "EMPTY_LIST",
    "ADDITEMS": "APPENDS",
    "FROZENSET": "LIST",
}


def _dtype(named: _Name) -> torch.dtype | None:
    """The number type of `torch.FloatStorage` and the like, or of `torch.float32`."""
    if named.module != "torch":
        return None
    # Not with getattr, which would import submodules of torch.
    found = _DTYPES.get(named.name, vars(torch).get(named.name))
    return found if isinstance(found, torch.dtype) else None


def _record(arguments: tuple) -> TensorRecord:
    """From the arguments of `_rebuild_tensor_v2`, or of `_v3`, which include the number type."""
    storage, offset, shape, stride, *rest = arguments
    if len(rest) > 2 and isinstance(rest[2], _Name) and isinstance(storage, Storage):
        dtype = _dtype(rest[2])
        if dtype is None:
            raise ValueError("it has a tensor of an unknown type")
        size = dtype.itemsize
        storage = Storage(storage.key, dtype, storage.numel * storage.dtype.itemsize // size, storage.start // size)
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, Storage) or any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("it has a tensor with an invalid shape")
    last = offset + sum((count - 1) * step for count, step in zip(shape, stride, strict=True))
    if 0 not in shape and last >= storage.numel:
        raise ValueError(f"storage {storage.key!r:.60} is shorter than its tensors")
    return TensorRecord(storage, offset, tuple(shape), tuple(stride))
