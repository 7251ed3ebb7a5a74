"""Weights files that take more time or memory than their size, or that different readers read differently."""

import collections
import io
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from raymap3r_ros.errors import CheckpointError
from raymap3r_ros.network import convert_checkpoint, load_network
from raymap3r_ros.network.checkpoint import checkpoint_path, save_network
from raymap3r_ros.network.metadata import copy_with_metadata
from raymap3r_ros.network.torch_file import LEGACY_MAGIC, open_torch_file

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 15  # for one file; the slowest takes about 2 s alone


def archive(path: Path, program: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("any/data.pkl", program)
    return path


def legacy(path: Path, program: bytes) -> Path:
    start = [LEGACY_MAGIC, 1001, {"little_endian": True}]
    path.write_bytes(b"".join(pickle.dumps(one, 2) for one in start) + program + pickle.dumps([], 2))
    return path


def long_text(size: int) -> bytes:
    return b"X" + struct.pack("<I", size) + b"a" * size


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def long_number(size: int) -> bytes:
    return b"\x8b" + struct.pack("<i", size) + b"\x7f" * size


DICTIONARY = b"}(" + b"".join(b"J" + struct.pack("<i", key) + b"N" for key in range(200_000)) + b"u"
MANY = 100_000
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
STORAGE = b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
PROGRAMS = {
    "eight megabytes of small objects": b"(" + b"]" * 8_000_000 + b"l.",
    "eight megabytes of nothing": b"N0" * 4_000_000 + b"N.",
    "a dictionary copied many times": (
        DICTIONARY + b"q\x000ccollections\nOrderedDict\nq\x010" + b"h\x01h\x00\x85R0" * MANY + b"N."
    ),
    "a list of pairs copied many times": (
        b"(" + b"NN\x86" * 200_000 + b"lq\x000ccollections\nOrderedDict\nq\x010" + b"h\x01h\x00\x85R0" * MANY + b"N."
    ),
    "long names": long_text(2**22) + b"q\x000" + text("A") + b"q\x010" + b"h\x00h\x01\x930" * MANY + b"N.",
    "long keys that are numbers": long_number(2**22) + b"q\x000}" + b"h\x00Ns" * MANY + b".",
    "equal long keys": (
        long_text(2**22) + b"q\x000" + long_text(2**22) + b"q\x010}" + b"h\x00Nsh\x01Ns" * MANY + b"."
    ),
    "a tensor with long numbers": (
        REBUILD + b"(" + STORAGE[1:] + long_number(2**24) + long_number(2**24) + b"\x85" + long_number(2**24)
        + b"\x85tR."
    ),
    "a tensor of many dimensions, many times": (
        b"(" + b"K\x01" * 200_000 + b"tq\x000" + REBUILD + b"q\x010" + STORAGE[1:] + b"q\x020"
        + b"h\x01(h\x02K\x00h\x00h\x00tR0" * MANY + b"N."
    ),
    "a long description of a storage, many times": (
        b"(" + b"N" * 200_000 + b"tq\x000" + STORAGE[1:-2] + b"h\x00tq\x010" + b"h\x01Q0" * MANY + b"N."
    ),
}  # fmt: skip


def test_names_of_storages_are_not_hashed(tmp_path: Path):
    """The last pickle of the older form: hashing this nested tuple takes 2^200 steps."""
    path = legacy(tmp_path / "slow.pth", b"N.")
    path.write_bytes(path.read_bytes()[: -len(pickle.dumps([], 2))] + b"]K\x01" + b"2\x86" * 200 + b"a." + bytes(8))
    with pytest.raises(CheckpointError, match=r"slow\.pth .*name is not a string"):
        load_network(path)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_pickle_ends_soon(tmp_path: Path, name: str):
    for write in (archive, legacy):
        path = write(tmp_path / "slow.pth", PROGRAMS[name])
        start = time.process_time()
        with pytest.raises(CheckpointError, match=r"slow\.pth"):
            load_network(path)
        assert time.process_time() - start < SECONDS


def test_reading_can_be_interrupted(tmp_path: Path):
    """Ctrl-C while a file is read that takes as long as possible."""
    path = archive(tmp_path / "slow.pth", b"N0" * 500_000 + b"N.")
    program = (
        "import signal; from raymap3r_ros.network.torch_file import open_torch_file\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "print('ready', flush=True)\n"
        "while True:\n"
        f"    with open_torch_file({str(path)!r}): pass\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        process.stdout.readline()
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.wait(60)
        assert time.monotonic() - start < 20 and b"KeyboardInterrupt" in process.stderr.read()


# ---------------------------------------------------------------------------------------------------------- archives


def valid(path: Path, **content) -> Path:
    torch.save({"model": content or {"x": torch.arange(1000.0)}}, path)
    return path


def refused(path: Path, reason: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{path.name} .*{reason}"):
        load_network(path)


def test_an_entry_that_occurs_twice_is_refused(tmp_path: Path):
    """Readers differ in which of the two they use."""
    path = valid(tmp_path / "twice.pth")
    with zipfile.ZipFile(path, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("twice/data.pkl", pickle.dumps({"model": {}}, 2))
    refused(path, "data.pkl.* occurs twice")


@pytest.mark.parametrize("tail", [b"x", bytes(30), b"PK\x05\x06" + bytes(18)])
def test_a_file_with_bytes_after_its_directory_is_refused(tmp_path: Path, tail: bytes):
    """Readers search the end for a directory, from different sides."""
    path = valid(tmp_path / "tail.pth")
    path.write_bytes(path.read_bytes() + tail)
    refused(path, "no directory at its end|directory")


def test_a_directory_before_another_one_is_refused(tmp_path: Path):
    """An archive inside the comment of another one."""
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as file:
        file.writestr("any/data.pkl", pickle.dumps({"model": {}}, 2))
    path = valid(tmp_path / "nested.pth")
    data = bytearray(path.read_bytes())
    data[-2:] = struct.pack("<H", len(other.getvalue()))
    path.write_bytes(bytes(data) + other.getvalue())
    refused(path, "directory")


def test_bytes_before_the_archive_are_refused(tmp_path: Path):
    path = valid(tmp_path / "shifted.pth")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("first", b"x")
    path.write_bytes((tmp_path / "a.zip").read_bytes() + path.read_bytes())
    refused(path, "directory")


def test_entries_that_share_their_bytes_are_refused(tmp_path: Path):
    """A file of 0.5 MB with a thousand entries of 0.4 MB each: every directory entry points at the first one."""
    path = tmp_path / "shared.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("shared/data.pkl", pickle.dumps({"model": {}}, 2))
        file.writestr("shared/data/0", bytes(400_000))
        first = file.infolist()[-1]
        for index in range(1, 1000):
            entry = zipfile.ZipInfo(f"shared/data/{index}")
            entry.file_size = entry.compress_size = first.file_size
            entry.CRC, entry.header_offset = first.CRC, first.header_offset
            file.filelist.append(entry)
            file.NameToInfo[entry.filename] = entry
    assert path.stat().st_size < 2**19
    refused(path, "its entries have .* bytes")


def test_a_directory_of_megabytes_is_not_read(tmp_path: Path):
    path = tmp_path / "entries.pth"
    with zipfile.ZipFile(path, "w") as file:
        for index in range(60_000):
            file.writestr(f"entries/data/{index:0>100}", b"")
        file.writestr("entries/data.pkl", pickle.dumps({"model": {}}, 2))
    refused(path, "directory")


def test_a_tall_byteorder_entry_is_not_read(tmp_path: Path):
    path = tmp_path / "order.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("order/data.pkl", pickle.dumps({"model": {}}, 2))
        file.writestr("order/byteorder", b"little" + bytes(2**20))
    refused(path, "not little-endian")


def test_an_archive_above_four_gigabytes_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its directory has the longer form, which is forced here."""
    small = valid(tmp_path / "small.pth", x=torch.arange(4.0))
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 50)
    with zipfile.ZipFile(small) as old, zipfile.ZipFile(tmp_path / "large.pth", "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    assert b"PK\x06\x06" in (tmp_path / "large.pth").read_bytes()
    with open_torch_file(tmp_path / "large.pth") as file:
        assert file.read(file.content["model"]["x"]).tolist() == [0, 1, 2, 3]


# --------------------------------------------------------------------------------------------- tensors of other kinds


@pytest.mark.parametrize("kind", ["meta", "sparse", "quantised", "complex", "int8", "bool", "nested"])
def test_tensors_of_other_kinds_are_one_error(tmp_path: Path, kind: str):
    tensor = {
        "meta": lambda: torch.empty(4, device="meta"),
        "sparse": lambda: torch.eye(4).to_sparse(),
        "quantised": lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
        "complex": lambda: torch.ones(4, dtype=torch.complex64),
        "int8": lambda: torch.ones(4, dtype=torch.int8),
        "bool": lambda: torch.ones(4, dtype=torch.bool),
        "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    }[kind]()
    path = tmp_path / "odd.pth"
    try:
        torch.save({"model": collections.OrderedDict(x=tensor)}, path)
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"torch cannot save it: {error}")
    with pytest.raises(CheckpointError, match=r"odd\.pth"):
        load_network(path)
    with pytest.raises(CheckpointError, match=r"odd\.pth"), open_torch_file(path) as file:
        if kind in ("complex", "int8", "bool"):
            raise CheckpointError(f"{path}: readable")
        file.read(file.content["model"]["x"])


# --------------------------------------------------------------------------------------------- paths and full disks


@pytest.mark.parametrize("work", [load_network, lambda path: convert_checkpoint(path, "out.safetensors")])
@pytest.mark.parametrize("path", ["~nosuchuser/w.pth", "~nosuchuser/w.safetensors"])
def test_the_home_of_a_user_who_does_not_exist(work, path: str):
    with pytest.raises(CheckpointError, match=r"~nosuchuser/w.*home directory.*without ~"):
        work(path)


@pytest.mark.parametrize(
    "work",
    [
        lambda source, target: convert_checkpoint(source, target),
        lambda source, target: save_network(load_network(source), target),
        lambda source, target: copy_with_metadata(source, target, {"a": "b"}),
    ],
)
def test_a_disk_that_becomes_full(tmp_path: Path, work):
    """A limit on the file size makes the system refuse in the middle of a file, as a full disk does."""
    source, target = checkpoint_path("one_room"), tmp_path / "out" / "w.safetensors"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"cannot write .*w\.safetensors.*(too large|full)"):
            work(source, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, previous)
    assert not list(target.parent.iterdir())


def test_a_target_that_is_a_device_is_replaced_by_nothing(tmp_path: Path):
    with pytest.raises(CheckpointError, match="cannot write"):
        convert_checkpoint("one_room", "/dev/full/w.safetensors")
