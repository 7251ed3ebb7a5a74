"""Runs all variants of the method over the same frames and scores them against the ground truth.

Each sequence is rendered or read once: all variants step through it side by side, one frame at a time, and share the
image tokens, which do not depend on the variant.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raymap3r_ros.errors import InputError
from raymap3r_ros.evaluation.cost import Cost, CountedNetwork
from raymap3r_ros.evaluation.kidnap import TrackedFrame, kidnap_values
from raymap3r_ros.evaluation.plan import EvaluationPlan, Variant
from raymap3r_ros.evaluation.scorer import SequenceRun, SequenceScorer
from raymap3r_ros.evaluation.sequences import PosedSequence, checked_frames
from raymap3r_ros.network import Network
from raymap3r_ros.streaming import Stream
from raymap3r_ros.streaming.preprocessing import frame_image
from raymap3r_ros.streaming.result import WorldChange
from raymap3r_ros.streaming.world_files import load_world, save_world


def run_sequences(
    network: Network,
    sequences: Sequence[PosedSequence],
    variants: Sequence[Variant],
    plan: EvaluationPlan,
    *,
    suite: str,
    world: str = "",
    on_frame: Callable[[int], None] = lambda count: None,
) -> Iterator[SequenceRun]:
    """Run all variants over all sequences; yields the results in order.

    `on_frame` is called from any thread with the number of frames processed since the last call. Raises InputError if
    there is no sequence or no variant, or if frames cannot be used.
    """
    tasks = batch_tasks(sequences, variants, plan, suite=suite, world=world)
    stop = threading.Event()

    def advance(count: int) -> None:
        if stop.is_set():
            raise _StoppedError
        on_frame(count)

    with ThreadPoolExecutor(plan.workers) as pool:
        try:
            for done in pool.map(lambda task: task(network, on_frame=advance), tasks):
                yield from done
        finally:
            stop.set()  # after an error the other batches end with their next frame


def batch_tasks(
    sequences: Sequence[PosedSequence], variants: Sequence[Variant], plan: EvaluationPlan, *, suite: str, world: str
) -> list[Callable[..., list[SequenceRun]]]:
    """Return functions of a network that run all variants over the batches of the sequences, in order.

    They can be called in any order, in threads or other processes. Raises InputError if there is nothing to run.
    """
    if not sequences or not variants:
        raise InputError(f"{suite}: nothing to run: {len(sequences)} sequences, {len(variants)} variants")
    return [
        functools.partial(_run_task, batch=batch, variants=variants, plan=plan, suite=suite, world=world)
        for batch in _batches(sequences, plan)
    ]


def _run_task(
    network: Network,
    *,
    batch: list[PosedSequence],
    variants: Sequence[Variant],
    plan: EvaluationPlan,
    suite: str,
    world: str,
    on_frame: Callable[[int], None] = lambda count: None,
) -> list[SequenceRun]:
    if batch[0].kidnapped:
        (sequence,) = batch
        values = _run_kidnapped(network, sequence, variants, plan, on_frame)
        frames = sequence_length(sequence, plan)
        return [SequenceRun(suite, world, sequence.name, frames, np.empty((0, 4, 4)), {}, values, [])]
    scorers = _run_batch(network, batch, variants, plan, on_frame)
    return [
        dataclasses.replace(scorer.finish(suite, world), unposed=sequence.unposed)
        for sequence, scorer in zip(batch, scorers, strict=True)
    ]


def sequence_length(sequence: PosedSequence, plan: EvaluationPlan) -> int:
    """Number of frames of the sequence that are run."""
    return min(sequence.length, plan.frames) if plan.frames else sequence.length


class _StoppedError(Exception):
    """Another batch failed, or the caller stopped iterating."""


class SharedEncoder:
    """A network that encodes a batch of images once for several streams.

    The streams must have the same precision and step in turn: the last image is recognised by its values.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._image: Tensor | None = None
        self._tokens: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def encode_image(self, image: Tensor) -> Tensor:
        """Same as `Network.encode_image`."""
        if self._image is None or not torch.equal(self._image, image):
            self._image, self._tokens = image, self._network.encode_image(image)
        return self._tokens


# ------------------------------------------------------------------------------------------------------- one batch


def _batches(sequences: Sequence[PosedSequence], plan: EvaluationPlan) -> Iterator[list[PosedSequence]]:
    """Consecutive sequences of one length, up to `plan.batch` of them, with at least one batch per worker.

    Only the stream of a single camera searches it after a jump.
    """
    size = min(plan.batch, -(-len(sequences) // plan.workers)) if not sequences[0].kidnapped else 1
    batch: list[PosedSequence] = []
    for sequence in sequences:
        if batch and (len(batch) == size or sequence_length(sequence, plan) != sequence_length(batch[0], plan)):
            yield batch
            batch = []
        batch.append(sequence)
    yield batch


def _run_batch(
    network: Network,
    batch: list[PosedSequence],
    variants: Sequence[Variant],
    plan: EvaluationPlan,
    on_frame: Callable[[int], None],
) -> list[SequenceScorer]:
    length = sequence_length(batch[0], plan)
    shared = SharedEncoder(network)
    # Variants with equal results over this length run once.
    streams = {
        setup: Stream(CountedNetwork(shared), dataclasses.replace(setup[0], execution="plain"), setup[2])
        for setup in (variant.setup(length) for variant in variants)
    }
    costs = {setup: Cost() for setup in streams}
    step = -(-length // plan.judged_frames)
    scorers = [SequenceScorer(variants, plan, length, step, sequence) for sequence in batch]
    sources = [islice(checked_frames(sequence), length) for sequence in batch]
    for index, frames in enumerate(zip(*sources, strict=True)):
        images = _stack([frame.image for frame in frames], batch)
        height, width = images.shape[1:3]
        long_edge = variants[0].options.image_size or network.config.image_size
        framing = frame_image(width, height, long_edge, network.config.patch_size)
        intrinsics = None
        if plan.known_intrinsics and all(frame.intrinsics is not None for frame in frames):
            intrinsics = np.stack([frame.intrinsics for frame in frames])
        scored = index % step == 0
        for scorer, frame in zip(scorers, frames, strict=True):
            scorer.add_truth(frame, framing, scored)
        for setup, stream in streams.items():
            options, known, _ = setup
            # At a reset the alignment uses the motion estimate.
            resets = bool(options.reset_interval) and index % options.reset_interval == 0
            record: dict[str, Any] = {}
            result = stream.step(
                images,
                intrinsics=intrinsics,
                pose=np.stack([scorer.given_pose(known) for scorer in scorers]) if known != "none" else None,
                motion=scored or resets,
                record=record if scored else None,
            )
            costs[setup].add(stream, index, motion=scored or resets)
            motion = record.get("motion")
            ray_depth = None if motion is None else motion.ray_points[..., 2] * result.scale[:, None, None]
            for place, scorer in enumerate(scorers):
                scorer.add_result(setup, result.camera(place), None if ray_depth is None else ray_depth[place], scored)
        on_frame(len(batch))
    for scorer in scorers:
        scorer.add_costs({setup: cost.values() for setup, cost in costs.items()})
    return scorers


def _run_kidnapped(
    network: Network,
    sequence: PosedSequence,
    variants: Sequence[Variant],
    plan: EvaluationPlan,
    on_frame: Callable[[int], None],
) -> dict[str, dict[str, float]]:
    """The figures of each variant without known poses on one sequence, whose camera is searched after each jump."""
    shared, length = SharedEncoder(network), sequence_length(sequence, plan)
    streams = {
        variant.name: Stream(
            CountedNetwork(shared), dataclasses.replace(variant.options, execution="plain"), variant.method
        )
        for variant in variants
        if variant.poses == "none"
    }
    tracked: dict[str, list[TrackedFrame]] = {name: [] for name in streams}
    costs = {name: Cost() for name in streams}
    jumps, begin = 0, 0
    same: dict[str, int | None] = dict.fromkeys(streams)  # the world of a session that is the one of the first session
    with TemporaryDirectory() as folder:
        for index, frame in enumerate(islice(checked_frames(sequence), length)):
            jumped = frame.jumps != jumps
            if jumped:
                jumps, begin = frame.jumps, index
            for number, name in enumerate(streams):
                if jumped and sequence.sessions:
                    saved = Path(folder, f"{number}.safetensors")
                    streams[name], same[name] = _next_session(streams[name], saved, first=jumps == 1)
                elif jumped:
                    streams[name].reset(relocalize=True)
                intrinsics = frame.intrinsics if plan.known_intrinsics else None
                result = streams[name].step(frame.image, intrinsics=intrinsics, motion=False)
                costs[name].add(streams[name], result.frame, motion=False)
                if result.healthy:
                    pose, found = result.pose.double().cpu().numpy(), result.world_change is WorldChange.RETURNED
                    place = jumps, index - begin, frame.room, frame.pose
                    world = result.world
                    if sequence.sessions:  # each counts its worlds from 0
                        world = 0 if world == same[name] else world + jumps * length
                    tracked[name].append(TrackedFrame(*place, world, pose, found))
            on_frame(1)
    return {name: kidnap_values(frames, length) | costs[name].values() for name, frames in tracked.items()}


def _next_session(stream: Stream, saved: Path, *, first: bool) -> tuple[Stream, int | None]:
    """A new stream that begins with the saved world, and the number of this world in it; None without one.

    In the `first` jump the world of `stream` is saved before.
    """
    if first and (world := stream.current_world()) is not None:
        save_world(saved, stream.network, world)
    new = Stream(stream.network, stream.options, stream.method)
    if not saved.exists() or not stream.options.keyframes.relocalize:
        return new, None
    return new, new.add_world(load_world(saved, stream.network))


def _stack(images: list[np.ndarray], batch: list[PosedSequence]) -> np.ndarray:
    """(B, h, w, 3). Raises InputError if sizes differ."""
    shapes = {image.shape for image in images}
    if len(shapes) > 1:
        names = ", ".join(f"{sequence.name} {image.shape}" for sequence, image in zip(batch, images, strict=True))
        raise InputError(f"images of one batch differ in size ({names}); run them with a batch of 1")
    return np.stack(images)
