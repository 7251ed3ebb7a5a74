"""What a user may choose about a training run, and the runs that we name."""

from __future__ import annotations

from dataclasses import dataclass

from raymap3r_ros.errors import OptionError
from raymap3r_ros.network.config import PRESETS
from raymap3r_ros.options import check_options, option
from raymap3r_ros.synthetic import WORLDS


@dataclass(frozen=True)
class TrainOptions:
    """One training run. Lengths of sequences grow along it; a batch always holds the same number of frames."""

    preset: str = option("mini", "shape of the network", choices=tuple(PRESETS))
    world: str = option("varied", "where the scenes play", choices=WORLDS)
    seed: int = option(0, "of the first weights and of all scenes", low=0, high=10_000)
    steps: int = option(100_000, "steps of the optimiser", low=1, high=1_000_000)
    frames: int = option(64, "frames in a batch of one process: sequences times their length", low=2, high=65_536)
    shortest: int = option(2, "frames of the first sequences", low=2, high=256)
    longest: int = option(16, "frames of the longest sequences", low=2, high=256)
    ray_share: float = option(0.5, "share of the frames that are also asked by rays alone", low=0.0, high=1.0)
    reuse: int = option(4, "batches made of the same pictures, in another order each time", low=1, high=1000)
    world_share: float = option(
        0.15, "share of the frames whose points in the first camera's frame are asked", low=0.0, high=1.0
    )
    rgb_share: float = option(0.1, "share of the ray-asked frames whose colours are asked too", low=0.0, high=1.0)
    pose_weight: float = option(1.0, "weight of the pose loss", low=0.0, high=100.0)
    match_weight: float = option(
        0.0,
        "weight, falling to 0 halfway, of telling which tokens of two frames show the same point",
        low=0.0,
        high=100.0,
    )
    place_weight: float = option(
        0.0,
        "weight of telling where in the world each token is: only one fixed place can be known",
        low=0.0,
        high=100.0,
    )
    learning_rate: float = option(1e-3, "after the warm-up", low=1e-8, high=1.0)
    warmup: int = option(500, "steps over which the learning rate rises", low=0, high=1_000_000)
    cooldown: float = option(0.2, "share of the steps, at the end, over which it falls to 0", low=0.0, high=1.0)
    weight_decay: float = option(0.03, "of the optimiser, on matrices", low=0.0, high=1.0)
    average: float = option(0.999, "decay per step of the averaged weights, which are what is kept", low=0.0, high=1.0)
    precision: str = option("float32", "arithmetic of encoders and decoder", choices=("float32", "bfloat16"))

    def __post_init__(self) -> None:
        check_options(self)
        if not self.shortest <= self.longest <= self.frames:
            raise OptionError(
                f"shortest is {self.shortest} and longest {self.longest}: they must rise, to at most the "
                f"{self.frames} frames of a batch"
            )

    def sequence_length(self, step: int) -> int:
        """Frames of a sequence at this step: doubled again and again in the first 4 tenths of the run."""
        doublings = max(1, (self.longest // self.shortest).bit_length() - 1)
        return min(self.longest, self.shortest * 2 ** int(step / (0.4 * self.steps) * doublings))


RECIPES: dict[str, tuple[str, TrainOptions]] = {
    "mini": (
        "any rendered room or open ground",
        TrainOptions(frames=4096, steps=12_000, match_weight=0.3, precision="bfloat16", learning_rate=1.5e-3),
    ),
    "one_room": (
        "one single rendered room, and no other place",
        # Twice as many frames a step from two processes: torchrun --nproc-per-node 2.
        TrainOptions(
            world="one_room",
            steps=6000,
            frames=48,
            world_share=0.05,
            place_weight=0.5,
            pose_weight=2.0,
            rgb_share=0.0,
            warmup=200,
            cooldown=0.6,
            average=0.998,
        ),
    ),
}
