"""Options of a training run, and the named recipes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from raymap3r_ros.errors import OptionError
from raymap3r_ros.network.config import PRESETS
from raymap3r_ros.options import check_options, option
from raymap3r_ros.training.sources import RECORDING, SOURCES


@dataclass(frozen=True)
class TrainOptions:
    """One training run. The sequences get longer during the run; a batch always has the same number of frames."""

    preset: str = option("mini", "shape of the network", choices=tuple(PRESETS))
    world: str = option("varied", "source of the images", choices=(*SOURCES, RECORDING))
    seed: int = option(0, "seed of the initial weights and of all scenes", low=0, high=10_000)
    steps: int = option(100_000, "steps of the optimiser", low=1, high=1_000_000)
    frames: int = option(
        64, "frames in a batch of one process: sequences times their length; `longest` or more", low=2, high=65_536
    )
    shortest: int = option(2, "frames of the first sequences; `longest` or fewer", low=2, high=256)
    longest: int = option(16, "frames of the longest sequences; `frames` or fewer", low=2, high=256)
    ray_share: float = option(0.5, "share of the frames that also go through the ray branch", low=0.0, high=1.0)
    known_share: float = option(
        0.0, "share of the sequences in which the network also gets the camera's pose", low=0.0, high=1.0
    )
    reuse: int = option(8, "times that each image is used, in other orders and company", low=1, high=1000)
    world_share: float = option(
        0.15, "share of the frames with a loss on points in the first camera's frame", low=0.0, high=1.0
    )
    rgb_share: float = option(0.1, "share of the frames of the ray branch with a loss on colours", low=0.0, high=1.0)
    pose_weight: float = option(1.0, "weight of the pose loss", low=0.0, high=100.0)
    match_weight: float = option(
        0.0,
        "weight of matching the tokens of consecutive frames; falls to 0 at half of the run",
        low=0.0,
        high=100.0,
    )
    place_weight: float = option(
        0.0,
        "weight of the position of each token in the world; only useful for a single fixed world",
        low=0.0,
        high=100.0,
    )
    learning_rate: float = option(1e-3, "learning rate after the warm-up", low=1e-8, high=1.0)
    warmup: int = option(500, "steps over which the learning rate rises", low=0, high=1_000_000)
    cooldown: float = option(0.2, "share of the steps, at the end, with a falling learning rate", low=0.0, high=1.0)
    weight_decay: float = option(0.03, "weight decay of matrices", low=0.0, high=1.0)
    average: float = option(0.999, "decay per step of the averaged weights, which are saved", low=0.0, high=1.0)
    precision: str = option(
        "float32", "precision of encoders, decoder and dense heads", choices=("float32", "bfloat16")
    )

    def __post_init__(self) -> None:
        check_options(self)
        if not self.shortest <= self.longest <= self.frames:
            raise OptionError(
                f"shortest is {self.shortest} and longest {self.longest}: they must increase, up to the "
                f"{self.frames} frames of a batch"
            )

    def sequence_length(self, step: int) -> int:
        """Frames of a sequence at this step: doubled repeatedly during the first 40 % of the run."""
        doublings = max(1, (self.longest // self.shortest).bit_length() - 1)
        return min(self.longest, self.shortest * 2 ** int(step / (0.4 * self.steps) * doublings))


# Two processes (torchrun --nproc-per-node 2) give twice as many frames per step.
_ONE_PLACE = TrainOptions(
    world="one_room",
    steps=8000,
    frames=96,
    shortest=4,
    reuse=10,
    world_share=0.05,
    place_weight=0.5,
    pose_weight=2.0,
    rgb_share=0.0,
    known_share=0.2,
    warmup=200,
    cooldown=0.6,
    average=0.998,
)
RECIPES: dict[str, tuple[str, TrainOptions]] = {
    "mini": (
        "any rendered room or open ground",
        TrainOptions(frames=4096, steps=12_000, match_weight=0.3, precision="bfloat16", learning_rate=1.5e-3),
    ),
    "one_room": (
        "one rendered room, for that room only",
        _ONE_PLACE,
    ),
    "one_office": (
        "one real place, from a recording of it, for that place only",
        dataclasses.replace(_ONE_PLACE, world=RECORDING, match_weight=0.3),
    ),
}
