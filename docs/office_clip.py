#!/usr/bin/env python3
"""Write raymap3r_ros/clients/office_clip, the real images of `raymap3r demo`, from the recording.

python docs/office_clip.py RECORDING

RECORDING is freiburg1_rpy of the TUM RGB-D dataset, reduced to 320x240. NOTICE.md in the folder lists the changes.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
import torch

from raymap3r_ros.geometry.cameras import pose_encoding
from raymap3r_ros.io.png import quantise_depth
from raymap3r_ros.io.tum import write_tum
from raymap3r_ros.synthetic.export import CAMERA, DEPTH_UNIT, TRAJECTORY
from raymap3r_ros.training.composites import CompositedSequence
from raymap3r_ros.training.recording import Recording, read_recording

SIZE = (240, 320)  # height, width
QUALITY = 85  # of the JPEG images
STEPS = 500  # depth values per metre, for small files
FOLDER = Path(__file__).resolve().parents[1] / "raymap3r_ros" / "clients" / "office_clip"


def write_trajectory(path: Path, recording: Recording, frames: slice) -> None:
    """Write the poses of some frames, rounded to a micrometre."""
    encoding = pose_encoding(recording.pose[frames].double()).numpy()[:, [0, 1, 2, 4, 5, 6, 3]]
    stamps = [round(stamp * 1e6) * 1000 for stamp in recording.stamp[frames].tolist()]
    write_tum(path, stamps, encoding.round(6))


def write_clip(recording: Recording, folder: Path) -> None:
    """Write the held-out frames to `folder`, in the layout that docs/synthetic.md describes."""
    held_out = slice(recording.trained, None)
    lists = {"rgb": [], "depth": []}
    for name in lists:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for old in (folder / name).iterdir():
            old.unlink()
    for image, depth, stamp in zip(
        recording.images[held_out], recording.depth[held_out, 0], recording.stamp[held_out].tolist(), strict=True
    ):
        files = {name: f"{name}/{stamp:.6f}.{kind}" for name, kind in (("rgb", "jpg"), ("depth", "png"))}
        pixels = cv2.cvtColor(image.permute(1, 2, 0).numpy(), cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(folder / files["rgb"]), pixels, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        coarse = quantise_depth(depth.float().numpy(), STEPS) * np.uint16(DEPTH_UNIT // STEPS)
        enlarged = coarse.repeat(SIZE[0] // coarse.shape[0], 0).repeat(SIZE[1] // coarse.shape[1], 1)
        cv2.imwrite(str(folder / files["depth"]), enlarged, [cv2.IMWRITE_PNG_COMPRESSION, 9])
        for name, file in files.items():
            lists[name].append(f"{stamp:.6f} {file}")
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(["# timestamp filename", *lines, ""]))
    matrix = CompositedSequence("", recording, SIZE, recording.trained).intrinsics
    fx, fy, cx, cy = (matrix[index] for index in ((0, 0), (1, 1), (0, 2), (1, 2)))
    (folder / CAMERA).write_text(f"# fx fy cx cy\n{fx:.4f} {fy:.4f} {cx:.4f} {cy:.4f}\n")
    write_trajectory(folder / TRAJECTORY, recording, held_out)
    write_trajectory(folder / "trained.txt", recording, slice(recording.trained))


def main() -> None:
    torch.set_grad_enabled(False)
    write_clip(read_recording(Path(sys.argv[1]), SIZE), FOLDER)
    print(FOLDER, sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()), "bytes")


if __name__ == "__main__":
    main()
