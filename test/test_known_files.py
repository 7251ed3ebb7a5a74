"""Files that are not what their name promises: pointers, web pages and archives, at every entrance."""

import json
import lzma
import tarfile
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from raymap3r_ros.errors import CheckpointError, InputError
from raymap3r_ros.evaluation.datasets import files
from raymap3r_ros.io import open_recording
from raymap3r_ros.io.tum import read_tum
from raymap3r_ros.known_files import known_content, unlike_weights
from raymap3r_ros.network import convert_checkpoint, load_network

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
ANNEX = b"/annex/objects/SHA256E-s12345--4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393.mp4\n"
PAGES = (
    b"<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head></html>",
    b"\xef\xbb\xbf\r\n  <HTML lang=en><body>Sign in</body></HTML>",
    b'<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Strict//EN">',
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>',
    b"<!-- saved from a > b --><!-- twice -->\n<html></html>",
)
STANDS_FOR_ANOTHER = {
    POINTER: "git lfs pull",
    ANNEX: "git annex get",
    **dict.fromkeys(PAGES, "a web page, .* download"),
}
each = pytest.mark.parametrize(("content", "cure"), STANDS_FOR_ANOTHER.items(), ids=range(len(STANDS_FOR_ANOTHER)))


@each
def test_weights(tmp_path, content, cure):
    for name in ("w.safetensors", "w.pth", "w.ckpt"):
        (tmp_path / name).write_bytes(content)
        for use in (load_network, lambda path: convert_checkpoint(path, tmp_path / "out.safetensors")):
            with pytest.raises(CheckpointError, match=rf"{name} is .*{cure}"):
                use(tmp_path / name)


@each
def test_recordings(tmp_path, content, cure):
    for name in ("v.mp4", "v", "i.png", "b.mcap", "b.db3", "b.bag"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}: is .*{cure}"):
            open_recording(tmp_path / name)
    folder = tmp_path / "bag"
    folder.mkdir()
    (folder / "bag_0.mcap").write_bytes(content)
    with pytest.raises(InputError, match=rf"bag_0\.mcap: is .*{cure}"):
        open_recording(folder)


@each
def test_folders_of_images(tmp_path, content, cure, caplog):
    (tmp_path / "0.png").write_bytes(content)
    with pytest.raises(InputError, match=rf"1 could not be decoded; the first: 0\.png: it is .*{cure}"):
        list(open_recording(tmp_path))
    cv2.imwrite(str(tmp_path / "1.png"), np.full((32, 32, 3), 90, np.uint8))
    recording = open_recording(tmp_path)
    assert len(list(recording)) == 1 and recording.skipped == 1
    assert "git" in caplog.text or "web page" in caplog.text


@each
def test_files_of_data_sets(tmp_path, content, cure):
    path = tmp_path / "camera.txt"
    path.write_bytes(content)
    for read in (
        files.read_text, files.read_image, files.read_grey, files.read_labels, read_tum,
        lambda path: files.read_matrix(path, (3, 3)),
    ):  # fmt: skip
        with pytest.raises(InputError, match=rf"camera\.txt: is .*{cure}"):
            read(path)


def test_links_of_git_annex_without_their_files(tmp_path):
    for path in (tmp_path / "v.mp4", tmp_path / "w.pth", tmp_path / "images" / "0.png"):
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(".git/annex/objects/aa/bb/SHA256E-s1--4d7a2146.png")
    cure = r"is a link that leads nowhere \(get its file with: git annex get"
    with pytest.raises(InputError, match=rf"v\.mp4: {cure}"):
        open_recording(tmp_path / "v.mp4")
    with pytest.raises(CheckpointError, match=rf"w\.pth' {cure}"):
        load_network(tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"the first: 0\.png: a link .* git annex get"):
        list(open_recording(tmp_path / "images"))


def test_empty_images_are_named(tmp_path):
    (tmp_path / "0.png").touch()
    with pytest.raises(InputError, match=r"the first: 0\.png: it is empty"):
        list(open_recording(tmp_path))


def test_other_content_is_not_recognised():
    for start in (b"", b"<", b"<htmlx>", b"<MPD>", b"version https://example.org", b"RIFF", b"{}", b"<?xml ?><MPD>"):
        assert known_content(start) == ""
    assert known_content(b"<!---->" * 146) == ""  # a pattern that tries all groupings would not end


def write_script(path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(3, 2)), path)


def test_a_header_that_begins_like_a_pickle_is_one_of_weights(tmp_path):
    """The length of the header, 640 bytes, begins with the bytes of a pickle."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).ljust(640).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert path.read_bytes().startswith(b"\x80\x02") and safe_open(path, "np").get_tensor("a").tolist() == [0]
    assert unlike_weights(path) == ""


def write_trace(path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(3, 2), torch.zeros(1, 3)), path)


def write_zip(path):
    torch.save({}, path.with_name("inner.pth"))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(path.with_name("inner.pth"), "folder/inner.pth")


def write_tar(path):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.add(__file__, "weights.pth")


def write_arrays(path):
    with path.open("wb") as file:
        np.savez_compressed(file, weight=np.zeros(3))


FORMATS = {
    "script.pth": (write_script, r"a TorchScript program \(torch\.jit\.save\).*module\.state_dict\(\)"),
    "trace.pt": (write_trace, "a TorchScript program"),
    "zipped.pth": (write_zip, "a zip archive that contains weights; unpack it first"),
    "arrays.pth": (write_arrays, "numpy.savez"),
    "tar.pth": (write_tar, "a tar archive"),
    "packed.pth": (lambda path: path.write_bytes(lzma.compress(b"weights")), "an xz archive"),
    "image.pth": (
        lambda path: path.write_bytes(cv2.imencode(".png", np.zeros((8, 8)))[1]),
        "an image, a video or a bag",
    ),
    "photo.safetensors": (
        lambda path: path.write_bytes(cv2.imencode(".jpg", np.zeros((8, 8)))[1]),
        "an image, a video",
    ),
    "error.pth": (lambda path: path.write_text('{"message": "Not Found"}'), "a JSON text"),
    "empty.pth": (Path.touch, "empty; download"),
    "empty.safetensors": (Path.touch, "empty; download"),
    "native.pth": (lambda path: save_file({"a": torch.zeros(2)}, path), "rename it to end in .safetensors"),
    "torch.safetensors": (lambda path: torch.save({"a": torch.zeros(2)}, path), "rename it to end in .pth"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_weights_of_another_format_are_named(tmp_path, name):
    write, text = FORMATS[name]
    write(tmp_path / name)
    with pytest.raises(CheckpointError, match=rf"{name} is {text}|{name} is .*{text}"):
        load_network(tmp_path / name)
