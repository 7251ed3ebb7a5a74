"""A pickle program read as data: nothing that it names is imported or called.

The program runs on a small stack machine that builds only plain containers, numbers, texts and descriptions of
tensors. Every other object becomes an inert `Skipped`.
"""

from __future__ import annotations

import _compat_pickle
import io
import pickletools
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from raymap3r_ros.errors import CheckpointError

# The public checkpoint has a pickle of 0.6 MB and about 50,000 instructions; optimizer states need a few times more.
MAX_PICKLE = 2**26  # bytes
MAX_STEPS = 2**20  # instructions, and items that they copy
MAX_NAME = 1000  # characters of a class name or a key
MAX_NUMBER = 2**63  # of sizes and keys: arithmetic with longer ones takes any time
MAX_DIMENSIONS = 64  # of a tensor, as in torch

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


class PickleMachine:
    """Runs one pickle program."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []  # the stacks under the open marks
        self._memo: dict[int, Any] = {}
        self._steps = 0
        self.skipped: set[str] = set()
        self.item_sizes: dict[str, int] = {}  # bytes of an element of each storage

    def run(self, program: io.BytesIO) -> Any:
        """The object that the program builds. Raises CheckpointError, or errors that `reading` turns into one."""
        for instruction, argument, _ in pickletools.genops(program):
            self._count_steps(1)
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

    def _count_steps(self, count: int) -> None:
        self._steps += count
        if self._steps > MAX_STEPS:
            self._refuse(f"its pickle takes more than {MAX_STEPS} steps")

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
                target[key if _is_plain_key(key) else Skipped(type(key).__name__)] = value

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
        if len(module) + len(name) > MAX_NAME:
            raise ValueError(f"it has a class name of {len(module) + len(name)} characters")
        named = _Name(module, name)
        if not self._is_allowed(named):
            hint = "" if _CLASS.fullmatch(named.name) else " (a name in lower case is taken for a function)"
            self._refuse(f"it names {named.full!r:.120}, which is neither a tensor nor a plain object{hint}")
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
                self._count_steps(len(arguments[0]))
                for key, value in arguments[0].items() if isinstance(arguments[0], dict) else arguments[0]:
                    self._assign([key, value])
        else:
            self._push(Skipped(full))

    def _op_build(self, _: None) -> None:
        self._stack.pop()  # attributes, which plain containers and tensors do not need
        if not isinstance(self._stack[-1], Skipped | dict | TensorRecord):
            raise ValueError("it sets attributes of an object that has none")

    def _op_binpersid(self, _: None) -> None:
        description = self._stack.pop()
        if type(description) is not tuple or not 5 <= len(description) <= 6:
            raise ValueError("it has an invalid description of a storage")
        kind, storage_type, key, _, count, *view = description
        dtype = _dtype(storage_type) if isinstance(storage_type, _Name) else None
        if isinstance(storage_type, _Name) and storage_type.full == "torch.storage.UntypedStorage":
            dtype = torch.uint8
        if kind != "storage" or dtype is None or type(key) is not str or not _is_size(count):
            raise ValueError("it has an invalid description of a storage")
        if self.item_sizes.setdefault(key, dtype.itemsize) != dtype.itemsize:
            raise ValueError(f"storage {key!r:.60} has two types")
        start = 0
        if view and view[0] is not None:
            _, start, count = view[0]
            if not _is_size(start) or not _is_size(count):
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


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_NUMBER


def _is_plain_key(key: Any) -> bool:
    """Whether a key of a dictionary is kept. Hashing and comparing others may take any time, and none is needed."""
    if isinstance(key, str | bytes):
        return len(key) <= MAX_NAME
    return key is None or isinstance(key, float) or (isinstance(key, int) and -MAX_NUMBER < key < MAX_NUMBER)


def _dtype(named: _Name) -> torch.dtype | None:
    """The number type of `torch.FloatStorage` and the like, or of `torch.float32`."""
    if named.module != "torch":
        return None
    # Not with getattr, which would import submodules of torch.
    found = _DTYPES.get(named.name, vars(torch).get(named.name))
    return found if isinstance(found, torch.dtype) else None


def _record(arguments: tuple) -> TensorRecord:
    """From the arguments of `_rebuild_tensor_v2`, or of `_v3`, which include the number type."""
    if len(arguments) > 10:
        raise ValueError("it has an invalid description of a tensor")
    storage, offset, shape, stride, *rest = arguments
    if max(len(shape), len(stride)) > MAX_DIMENSIONS:
        raise ValueError(f"it has a tensor with more than {MAX_DIMENSIONS} dimensions")
    if len(rest) > 2 and isinstance(rest[2], _Name) and isinstance(storage, Storage):
        dtype = _dtype(rest[2])
        if dtype is None:
            raise ValueError("it has a tensor of an unknown type")
        size = dtype.itemsize
        storage = Storage(storage.key, dtype, storage.numel * storage.dtype.itemsize // size, storage.start // size)
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, Storage) or not all(map(_is_size, numbers)):
        raise ValueError("it has a tensor with an invalid shape")
    last = offset + sum((count - 1) * step for count, step in zip(shape, stride, strict=True))
    if 0 not in shape and last >= storage.numel:
        raise ValueError(f"storage {storage.key!r:.60} is shorter than its tensors")
    return TensorRecord(storage, offset, tuple(shape), tuple(stride))
