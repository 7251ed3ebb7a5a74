"""Files of `torch.save`: tensors are read, the rest is skipped or refused, and nothing is imported or called."""

import builtins
import collections
import functools
import importlib
import io
import operator
import os
import pathlib
import pickle
import pickletools
import struct
import subprocess
import sys
import time
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raymap3r_ros.errors import CheckpointError
from raymap3r_ros.network import load_network
from raymap3r_ros.network.pickle_machine import Skipped, TensorRecord
from raymap3r_ros.network.torch_file import LEGACY_MAGIC, open_torch_file

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")


def read(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The "model" entry of a file as tensors, and the names of the skipped objects."""
    with open_torch_file(path) as file:
        return {key: file.read(record) for key, record in file.content["model"].items()}, file.skipped


def archive(path: Path, program: bytes) -> Path:
    """A zip file of torch with this pickle and no storage."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("any/data.pkl", program)
        file.writestr("any/version", "3\n")
        file.writestr("any/byteorder", "little")
    return path


def legacy(path: Path, program: bytes) -> Path:
    """A file in the form before torch 1.6 with this pickle and no storage."""
    start = [LEGACY_MAGIC, 1001, {"little_endian": True}]
    path.write_bytes(b"".join(pickle.dumps(one, 2) for one in start) + program + pickle.dumps([], 2))
    return path


# ------------------------------------------------------------------------------------------------------ what is read


FORMS = ["hydra_main.pth", "hydra_main_legacy.pth", "namespace.pth", "omegaconf_load.pth"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_published_file_is_read(shared: Path, form: str):
    path = shared / "checkpoint_forms" / form
    tensors, skipped = read(path)
    assert {key: value.tolist() for key, value in tensors.items()} == {
        "module.enc_norm.weight": [[0, 1, 2], [3, 4, 5]],
        "module.dec_norm.bias": [[1, 2, 3], [4, 5, 6]],
    }
    assert not skipped  # configuration objects of omegaconf and argparse are expected
    with pytest.raises(
        CheckpointError,
        match=r"does not hold this network\. 2 misshapen: .* 1246 missing: dec_blocks\.0\.attn.* and 1236 more",
    ):
        load_network(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_values_equal_those_of_torch_load(tmp_path: Path, zipped: bool):
    big = torch.arange(60, dtype=torch.float32)
    content = {
        "plain": torch.randn(3, 4),
        "transposed": torch.randn(3, 4).T,
        "window": big[7:19].view(3, 4),
        "second window": big[20:50:3],
        "repeated": torch.tensor(2.5).expand(4, 5),
        "scalar": torch.tensor(7.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(5)),
        "double": torch.randn(3).double(),
        "half": torch.randn(3).half(),
        "bfloat16": torch.randn(3).bfloat16(),
        "long": torch.tensor([2**40, -1]),
        "bool": torch.tensor([True, False]),
    }
    path = tmp_path / "file.pth"
    torch.save({"model": content}, path, _use_new_zipfile_serialization=zipped)
    tensors, _ = read(path)
    expected = torch.load(path, weights_only=True)["model"]
    assert tensors.keys() == expected.keys()
    for key, value in tensors.items():
        assert value.dtype == expected[key].dtype and torch.equal(value, expected[key].data), key


class _Config:
    def __init__(self, values: dict) -> None:
        self.values = values


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_objects_other_than_tensors_are_skipped(tmp_path: Path, protocol: int, zipped: bool):
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(3)).sum().backward()
    optimizer.step()
    cache = collections.defaultdict(dict)
    cache["now"][("%Y",)] = "2026"
    content = {
        "args": types.SimpleNamespace(cache=cache, kind=int, shape=torch.Size((2,)), device=torch.device("cpu")),
        "config": _Config({"path": pathlib.PurePosixPath("/a"), "numbers": {1, 2}, 3: [b"x", 2.5, None, True]}),
        "optimizer": optimizer.state_dict(),
        "scaler": {"scale": np.float64(2.0), "array": np.arange(3)},
        "precision": torch.bfloat16,
        "model": net.state_dict(),
        "best_so_far": float("inf"),
    }
    path = tmp_path / "file.pth"
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    with open_torch_file(path) as file:
        assert file.skipped == (f"{__name__}._Config",)
        assert isinstance(file.content["config"], Skipped) and file.content["best_so_far"] == float("inf")
        for key, value in net.state_dict().items():
            assert torch.equal(file.read(file.content["model"][key]), value)


def test_an_unknown_class_is_neither_imported_nor_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The module creates a folder when imported; the class ends the process when restored."""
    canary = tmp_path / "canary"
    (tmp_path / "unknown.py").write_text(
        f"import os\nos.mkdir({str(canary)!r})\n"
        "class Config:\n    def __setstate__(self, state):\n        raise SystemExit\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    program = b"\x80\x02}(X\x04\x00\x00\x00argscunknown\nConfig\n)\x81}bX\x05\x00\x00\x00model}u."
    for write in (archive, legacy):
        with open_torch_file(write(tmp_path / "file.pth", program)) as file:
            assert file.skipped == ("unknown.Config",)
            assert file.content["args"].name == "unknown.Config"
    assert not canary.exists() and "unknown" not in sys.modules


# --------------------------------------------------------------------------------------------------- what is refused


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call

    def __call__(self):
        """pickle only accepts callable objects."""


def touch(path: str) -> None:
    """A function of a module that is not blocked by its name."""
    Path(path).mkdir()


OS = Call(importlib.import_module, "os")
GADGETS = {
    "system": lambda canary: Call(os.system, f"mkdir {canary}"),
    "eval": lambda canary: Call(eval, f"__import__('os').mkdir({str(canary)!r})"),
    "exec": lambda canary: Call(exec, f"import os; os.mkdir({str(canary)!r})"),
    "a class that starts programs": lambda canary: Call(subprocess.Popen, ("mkdir", str(canary))),
    "a function of ours": lambda canary: Call(touch, str(canary)),
    "getattr": lambda canary: Call(Call(getattr, OS, "mkdir"), str(canary)),
    "partial": lambda canary: Call(functools.partial(os.mkdir, str(canary))),
    "partial alone": lambda canary: functools.partial(print, str(canary)),
    "attrgetter": lambda canary: Call(operator.attrgetter("system"), OS),
    "methodcaller": lambda canary: operator.methodcaller("mkdir"),
    "import": lambda canary: Call(importlib.import_module, "antigravity"),
    "a map": lambda canary: Call(list, Call(map, os.mkdir, [str(canary)])),
    "default factory": lambda canary: collections.defaultdict(os.getcwd),
    "open": lambda canary: Call(open, str(canary), "w"),
    "nested pickle": lambda canary: Call(torch.storage._load_from_bytes, pickle.dumps(Call(touch, str(canary)))),
    "download": lambda canary: Call(torch.hub.load, "owner/nothing", "x"),
    "pickle in numpy": lambda canary: Call(np.load, str(canary), None, True),
    "builtin type with a callback": lambda canary: Call(builtins.sorted, [1], Call(touch, str(canary))),
    "bytes of any length": lambda canary: Call(bytearray, 2**45),
}


@pytest.mark.parametrize(
    "place", ["instead", "beside", "inside", "as a key", "in a tuple of a key", "in a configuration"]
)
@pytest.mark.parametrize("gadget", GADGETS)
def test_a_malicious_file_is_refused_and_nothing_runs(tmp_path: Path, gadget: str, place: str):
    canary = tmp_path / "canary"
    attack = GADGETS[gadget](canary)
    content = {
        "instead": lambda: attack,
        "beside": lambda: {"model": {"pose_token": 1}, "args": attack},
        "inside": lambda: {"model": {"pose_token": 1, "enc_norm.bias": attack}},
        "as a key": lambda: {"model": {Keyed(attack): 1}},
        "in a tuple of a key": lambda: {"model": {("x", (Keyed(attack),)): 1}},
        "in a configuration": lambda: {"model": {}, "args": types.SimpleNamespace(deep=[{"x": (attack,)}])},
    }[place]()
    program = pickle.dumps(content, 2)
    for write in (archive, legacy):
        path = write(tmp_path / "evil.pth", program)
        with pytest.raises(CheckpointError, match=r"evil\.pth is refused: it names .*Nothing in it was executed"):
            load_network(path)
        assert [entry.name for entry in tmp_path.iterdir()] == ["evil.pth"]
        path.unlink()


class Keyed:
    """Wraps an attack, which may not be hashable, as the key of a dictionary."""

    def __init__(self, attack):
        self.attack = attack

    def __reduce__(self):
        return (tuple, ([self.attack],))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("gadget", ["system", "getattr", "a function of ours"])
def test_every_protocol_is_refused(tmp_path: Path, gadget: str, protocol: int):
    canary = tmp_path / "canary"
    program = pickle.dumps({"model": GADGETS[gadget](canary)}, protocol)
    for write in (archive, legacy):
        with pytest.raises(CheckpointError, match=r"is refused: it names"):
            load_network(write(tmp_path / "evil.pth", program))
    bare = tmp_path / "bare.pth"
    bare.write_bytes(program)
    with pytest.raises(CheckpointError, match=r"bare\.pth"):
        load_network(bare)
    assert not canary.exists()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        # A name that leaves a harmless class, by dots or by a module that is a path.
        (text("collections") + text("OrderedDict.__init__.__globals__") + b"\x93.", "it names"),
        (text("omegaconf.dictconfig") + text("os.system") + b"\x93.", "it names"),
        (text("pathlib") + text("os.system") + b"\x93.", "it names"),
        (text("typing") + text("sys.modules") + b"\x93.", "it names"),
        (text("torch") + text("os.system") + b"\x93.", "it names"),
        (text("torch._utils") + text("_rebuild_tensor_v2.__globals__") + b"\x93.", "it names"),
        (text("../../tmp/x") + text("Config") + b"\x93.", "it names"),
        (text("subprocess") + text("Popen") + b"\x93.", "it names"),
        (text("code") + text("InteractiveInterpreter") + b"\x93.", "it names"),
        (b"(S'mkdir x'\nios\nsystem\n.", "it names"),  # INST
        (b"(cos\nsystem\nS'mkdir x'\no.", "it names"),  # OBJ
        # The stand-in of a class, called twice, and attributes of a class.
        (b"cargparse\nNamespace\n)\x81)R.", "it calls something"),
        (b"X\x01\x00\x00\x00x)R.", "it calls something"),
        (b"cargparse\nNamespace\nX\x01\x00\x00\x00xR.", "it calls something"),
        # Codes of copyreg's registry, which bypass the lookup of names, and external buffers.
        (b"\x82\x01.", "it uses EXT1|its pickle uses EXT1"),
        (b"\x83\x01\x00.", "its pickle uses EXT2"),
        (b"\x84\x01\x00\x00\x00.", "its pickle uses EXT4"),
        (b"\x97.", "its pickle uses NEXT_BUFFER"),
    ],
)
def test_handwritten_programs_are_refused(tmp_path: Path, program: bytes, reason: str):
    list(pickletools.genops(program))  # a valid program, not a damaged one
    for write in (archive, legacy):
        with pytest.raises(CheckpointError, match=f"is refused: ({reason}).*Nothing in it was executed"):
            load_network(write(tmp_path / "evil.pth", program))


@pytest.mark.parametrize(
    "program",
    [
        b"ctyping\nAny\n}b.",  # attributes of a class
        b"ctyping\nAny\n(X\x01\x00\x00\x00x)t\x86b.",
        b"0.", b"a.", b"t.", b"h\x05.", b"R.", b"Q.", b"(NQ.", b"s.", b"u.", b"N\x93.", b"NN\x93.", b"}", b"",
        b"}Nu.", b"(N}u.", b"\x8b\xff\xff\xff\x7f.", b"X\xff\xff\xff\xffx.", b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fx.",
        b"ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00((NN\x89tR.",
    ],
)  # fmt: skip
def test_meaningless_programs_are_reported(tmp_path: Path, program: bytes):
    for write in (archive, legacy):
        with pytest.raises(CheckpointError, match=r"odd\.pth"):
            load_network(write(tmp_path / "odd.pth", program))


def test_programs_with_exponential_cost_end_soon(tmp_path: Path):
    # Nested tuples of twice the same tuple: hashing, comparing or printing one takes 2^200 steps.
    doubled = b"}K\x01" + b"2\x86" * 200
    start = time.perf_counter()
    for program in (
        b"}X\x05\x00\x00\x00model" + doubled + b"K\x01ss.",
        doubled + b".",
        b"ctorch._utils\n_rebuild_tensor_v2\n" + doubled + b"R.",
        doubled + b"Q.",
        b"(" * 300_000 + b".",
        b"]" * 300_000 + b"a" * 299_999 + b".",
        b"N0" * 2_200_000 + b".",
    ):
        with pytest.raises(CheckpointError):
            load_network(archive(tmp_path / "long.pth", program))
    assert time.perf_counter() - start < 120


# --------------------------------------------------------------------------------------------------- what is damaged


def sample(path: Path, zipped: bool = True) -> Path:
    content = {"model": {f"tensor.{index}": torch.randn(40, 5) for index in range(6)}, "epoch": 3}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_damage_at_any_position_gives_one_type_of_error(tmp_path: Path, zipped: bool):
    rng = np.random.default_rng(0)
    sound = sample(tmp_path / "sound.pth", zipped).read_bytes()
    path = tmp_path / "damaged.pth"
    refused = 0
    for turn in range(300):
        data = bytearray(sound)
        if turn % 3 == 0:
            data = data[: rng.integers(len(data))]
        # The pickle is near the beginning.
        for position in rng.integers(0, len(sound) if turn % 2 else 1200, 1 + turn % 8):
            if position < len(data):
                data[position] = rng.integers(256)
        path.write_bytes(bytes(data))
        try:
            with open_torch_file(path) as file:
                model = file.content.get("model") if isinstance(file.content, dict) else None
                for record in model.values() if isinstance(model, dict) else ():
                    if isinstance(record, TensorRecord) and 4 * np.prod(record.shape, dtype=float) < 1e6:
                        file.read(record)
        except CheckpointError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 30


def test_changed_values_are_detected(tmp_path: Path):
    """The zip form has a checksum of each storage."""
    path = sample(tmp_path / "file.pth")
    data = bytearray(path.read_bytes())
    place = data.index(np.float32(torch.load(path)["model"]["tensor.3"][7, 2]).tobytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=r"file\.pth cannot be read .*CRC"):
        read(path)


def rewritten(source: Path, target: Path, change) -> Path:
    """Copy an archive. `change` maps the bytes of each entry to new bytes, or to None to omit the entry."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            data = change(entry.filename.partition("/")[2], old.read(entry))
            if data is not None:
                new.writestr(entry.filename, data)
    return target


def test_inconsistent_archives_are_reported(tmp_path: Path):
    sound, path = sample(tmp_path / "sound.pth"), tmp_path / "file.pth"
    for name, data, message in (
        ("byteorder", b"big", "not little-endian"),
        ("data/2", bytes(100), "shorter than its tensors"),
        ("data/2", None, "no item named"),
        ("data.pkl", None, "0 entries NAME/data.pkl"),
    ):
        changed = rewritten(sound, path, lambda entry, old, name=name, data=data: data if entry == name else old)
        with pytest.raises(CheckpointError, match=rf"file\.pth cannot be read as a checkpoint: .*{message}"):
            read(changed)


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path: Path):
    """`as_strided` would read memory beyond the storage."""
    path = tmp_path / "file.pth"
    torch.save({"model": {"x": torch.zeros(8)}}, path)
    for old, new in ((b"K\x08\x85", b"K\x09\x85"), (b"K\x01\x85", b"K\x02\x85")):  # shape, stride
        changed = rewritten(path, tmp_path / "changed.pth", lambda _, data, old=old, new=new: data.replace(old, new))
        with pytest.raises(CheckpointError, match="shorter than its tensors"):
            read(changed)


def test_bare_pickles_and_other_files_are_reported(tmp_path: Path):
    path = tmp_path / "file.pth"
    for data, message in (
        (b"not a checkpoint", "neither a zip archive nor a pickle"),
        (pickle.dumps({"model": {}}), "not one of torch"),
        (pickle.dumps(LEGACY_MAGIC, 2), "pickle exhausted|no end"),
        (b"PK\x03\x04" + bytes(50), "download seems incomplete: it has 54 bytes"),
        (b"hello, this is text\n", "neither a zip archive nor a pickle; it begins with b'hello"),
    ):
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=rf"file\.pth cannot be read as a checkpoint: .*({message})"):
            load_network(path)
    buffer = io.BytesIO()
    torch.save(torch.nn.Linear(2, 2), buffer)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match='no dictionary of tensors under "model"'):
        load_network(path)
    torch.save({"model": torch.nn.Linear(2, 2)}, path)
    with pytest.raises(CheckpointError, match=r'a torch\.nn\.modules\.linear\.Linear object under "model"'):
        load_network(path)
