"""What the device can compute in each precision."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch

from raymap3r_ros.doctor.lines import FAIL, OK, WARNING, Line, Target

NAME = "precision"
PRECISIONS = ("float32", "bfloat16", "float16")
# Lowest compute capability with matrix units for the precision (CUDA C++ programming guide, table of features).
CAPABILITY = {"float32": (0, 0), "bfloat16": (8, 0), "float16": (7, 0)}
# Flags of Linux in /proc/cpuinfo, on x86-64 and on ARM.
FLAGS = {"bfloat16": ("avx512_bf16", "amx_bf16", "bf16"), "float16": ("avx512_fp16", "amx_fp16", "asimdhp")}


def check(target: Target, root: Path = Path("/")) -> Iterator[Line]:
    """A line for each precision: whether products are right, and whether the device has instructions for them."""
    for precision in PRECISIONS:
        yield _check(precision, target, root)


def _check(precision: str, target: Target, root: Path) -> Line:
    chosen = precision == target.options.precision
    try:
        right = products_are_right(precision, target.device)
    except RuntimeError as error:
        right, found = False, f"not supported: {str(error).splitlines()[0]}"
    else:
        found = "products of small whole numbers are wrong"
    if not right:
        return Line(NAME, precision, FAIL if chosen else WARNING, found, "choose another --precision")
    native = has_instructions(precision, target.device, root)
    values = {"native": native, "chosen": chosen}
    if native:
        return Line(NAME, precision, OK, "supported by the hardware", values=values)
    found = "runs, but without matrix instructions of the hardware: slower than float32, or hardly faster"
    if chosen:
        return Line(NAME, precision, WARNING, found, "choose --precision float32, unless memory is short", values)
    return Line(NAME, precision, OK, found, values=values)


def products_are_right(precision: str, device: torch.device) -> bool:
    """Whether a product of matrices of small whole numbers is exact up to the rounding of its result."""
    kind = getattr(torch, precision)
    one, other = ((torch.arange(64 * 64).view(64, 64) * factor % 7 - 3).to(device, kind) for factor in (5, 3))
    exact = one.cpu().double() @ other.cpu().double()
    error = ((one @ other).cpu().double() - exact).abs()
    return bool((error <= exact.abs() * torch.finfo(kind).eps).all())  # false for NaN


def has_instructions(precision: str, device: torch.device, root: Path = Path("/")) -> bool:
    """Whether the device has instructions that multiply matrices or vectors of this precision."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= CAPABILITY[precision]
    try:
        text = (root / "proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    flags = set(" ".join(re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)).split())
    return precision == "float32" or not flags.isdisjoint(FLAGS[precision])
