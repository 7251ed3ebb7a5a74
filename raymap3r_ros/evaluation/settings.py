"""The settings that the results of an evaluation depend on."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from typing import Any

import torch

from raymap3r_ros import __version__
from raymap3r_ros.evaluation.plan import EvaluationPlan, Variant
from raymap3r_ros.network import Network
from raymap3r_ros.streaming import METHOD, StreamOptions
from raymap3r_ros.streaming.rehearsal import rehearsed
from raymap3r_ros.streaming.stream_options import uses_keyframes
from raymap3r_ros.text import counted

PACKAGES = ("torch", "numpy", "scipy", "evo")  # whose versions are recorded


def describe_settings(
    command: str, network: Network, variants: list[Variant], plan: EvaluationPlan, keys: dict[str, str], seconds: float
) -> dict[str, Any]:
    """Return the settings for a JSON file. `keys`: of each variant's options, by the variant's name."""
    device = next(network.parameters()).device
    return {
        "command": command,
        "checkpoint": network.source,
        "trained": network.trained,
        "manifest": network.manifest,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "seconds": round(seconds, 1),
        "versions": {
            "raymap3r": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "plan": dataclasses.asdict(plan),
        "options": {keys[variant.name]: variant.settings() for variant in variants},
    }


def settings_text(settings: dict[str, Any], options: StreamOptions) -> str:
    """Return the lines below the tables. `options`: those common to all rules."""
    plan = settings["plan"]
    versions = ", ".join(f"{name} {version}" for name, version in settings["versions"].items())
    return "\n".join(
        (
            f"{settings['checkpoint']}, on {settings['device']} in {settings['seconds']:.0f} s ({versions})",
            f"all rules: router {options.router}, smoothing {options.smoothing}, a reset every "
            f"{options.reset_interval} frames, alignment {options.reset_alignment}, "
            f"{_keyframes(options)}, token pooling {options.token_pooling}, mask {options.mask.kind}; intrinsics "
            f"{'given' if plan['known_intrinsics'] else 'estimated'}",
            "mean over sequences (95 % interval by bootstrap over sequences); * best of its group",
        )
    )


def _keyframes(options: StreamOptions) -> str:
    if not uses_keyframes(options):
        return "keyframes off"
    return f"{counted(options.keyframes.size, 'keyframe')}, {rehearsed(options, METHOD)} rehearsed"
