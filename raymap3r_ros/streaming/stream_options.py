"""What a user may choose about a stream, and the constants of the method."""

from __future__ import annotations

from dataclasses import dataclass, field

from raymap3r_ros.errors import OptionError
from raymap3r_ros.options import check_options, option

UPDATE_RULES = ("raymap3r", "ttt3r", "cut3r", "ttsa3r", "filt3r", "motion_filter")


@dataclass(frozen=True)
class MaskOptions:
    """The decision "this pixel moves" (see `streaming.mask`)."""

    kind: str = option(
        "absolute",
        "`absolute`: what is nearer than the static scene by more than the noise, by the options below; `published`: "
        "pixels of staticness under a half, some half of any image",
        choices=("absolute", "published"),
        live=True,
    )
    high: float = option(
        4.25,
        "a region surely moves where its mean is this many noise units nearer than the static scene",
        low=0.0,
        high=1000.0,
        live=True,
    )
    low: float = option(
        1.5, "a pixel over this many noise units moves if it touches a sure region", low=0.0, high=1000.0, live=True
    )
    # Chosen with the shipped weights on suite `tune`: two answers of a network differ more at the edges of static
    # things than noise does.
    min_ratio: float = option(
        0.3, "smallest relative depth difference that counts as motion", low=0.0, high=10.0, live=True
    )
    noise_floor: float = option(
        0.02,
        "smallest noise unit, relative depth: the network is never believed to be better",
        low=1e-4,
        high=1.0,
        live=True,
    )
    reach: int = option(
        12,
        "how far a sure region may grow through weaker pixels, in steps of 1/64 of the image's long edge",
        low=0,
        high=200,
        live=True,
    )
    min_width: int = option(
        3,
        "specks and holes narrower than this are removed, in 1/128 of the image's long edge (odd; 1 = keep all)",
        low=1,
        high=31,
        live=True,
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.low > self.high:
            raise OptionError(f"mask.low is {self.low}, above mask.high {self.high}; allowed: low <= high")
        if self.min_width % 2 == 0:
            raise OptionError(f"mask.min_width is {self.min_width}; allowed: odd numbers")


@dataclass(frozen=True)
class StreamOptions:
    """How one stream is run. The defaults are for a live robot."""

    image_size: int = option(
        0, "long edge of the image that the network sees, pixels; 0 = the size it was trained on", low=0, high=4096
    )
    precision: str = option(
        "float32",
        "arithmetic of encoders and decoder (heads are always float32)",
        choices=("float32", "bfloat16", "float16"),
    )
    execution: str = option(
        "auto",
        "how a GPU is told what to do: `graph`, one recorded graph for a whole frame; `compile`, the same with "
        "kernels that are made for this network at the start, which takes minutes, also on a CPU; `plain`, step by "
        "step; `auto`: graph on a GPU, plain on a CPU",
        choices=("auto", "graph", "compile", "plain"),
    )
    update_rule: str = option("raymap3r", "how much each state token takes in of a frame", choices=UPDATE_RULES)
    router: str = option(
        "off",
        "leave the gate and the smoothing off while the camera turns fast: `adaptive` follows the last frames, "
        "`published` decides once at frame 20 as the paper's code does",
        choices=("off", "adaptive", "published"),
    )
    smoothing: str = option(
        "tied",
        "smoothing of the position: `tied` to the predicted one, or `published` (state-aware, integrates steps)",
        choices=("off", "tied", "published"),
    )
    reset_interval: int = option(
        100, "frames after which the memory starts anew, aligned to what was there; 0 = never", low=0, high=1_000_000
    )
    reset_alignment: str = option(
        "robust",
        "how the world goes on when the memory starts anew: by the camera's poses and a `robust` scale, by fitting "
        "the point clouds to each other as `published`, or not at all (`off`: the camera starts again at the origin)",
        choices=("robust", "published", "off"),
    )
    ray_interval: int = option(
        1,
        "ask the rays in every n-th frame: the frames between take less time, have no mask, and are gated by what "
        "moved last",
        low=1,
        high=1000,
    )
    token_pooling: str = option(
        "patch",
        "pixels that make one image token's discrepancy: its true `patch`, or the published `raster` run",
        choices=("patch", "raster"),
    )
    mask: MaskOptions = field(default_factory=MaskOptions)

    def __post_init__(self) -> None:
        check_options(self)
        if self.reset_interval == 1:
            raise OptionError("reset_interval is 1; allowed: 0 (never) or 2 and more")


@dataclass(frozen=True)
class Method:
    """Constants of RayMap3R (arXiv 2603.20588) and of the newer update rules, and our own."""

    warmup_frames: int = 5  # frames of a stream before the ray branch is asked
    gate_from_frame: int = 6  # index of the first frame whose token staticness gates the update
    focal_iterations: int = 10  # Weiszfeld steps for the focal length
    min_ray_confidence: float = 0.1  # discrepancy counts as 0 where the ray branch is less sure
    pixel_sharpness: float = 2.5  # slope of pixel staticness, in interquartile ranges
    token_sharpness: float = 3.0  # slope of token staticness, in interquartile ranges
    staticness_memory: float = 0.8  # share of the old value in the running token staticness
    gate_strength: float = 0.9  # lambda when nothing moves
    cover_damping: float = 0.5  # how much the moving share of tokens weakens lambda and eta
    gate_floor: float = 0.15
    eta_floor: float = 0.5
    time_gate_change: float = 1.5  # TTSA3R: change in mean changes at which its time gate is a half
    filter_start: float = 1.5  # FILT3R: variance of a state token that has seen nothing
    filter_change_memory: float = 0.95  # FILT3R: share of the old value in the running mean change
    filter_noise_low: float = 0.02  # FILT3R: process noise of a token that changes as usual ...
    filter_noise_high: float = 0.5  # ... and of one that jumps, by more than
    filter_jump: float = 3.0  # ... so many mean changes,
    filter_sharpness: float = 20.0  # with this slope between them
    filter_gain_low: float = 0.01  # FILT3R: limits of the gain
    filter_gain_high: float = 0.99
    motion_variance: float = 30.0  # ours: of what a mover puts into a token, in units of a measurement's variance
    router_first_frame: int = 5  # rotation is collected from this frame ...
    router_last_frame: int = 20  # ... to this one, at which the published router decides
    router_threshold: float = 2.0  # degrees per frame, median
    router_margin: float = 0.5  # ours: degrees of hysteresis around the threshold
    router_min_frames: int = 4  # ours: rotations needed before the adaptive router speaks
    smoothing_strength: float = 2.0
    # Ours, the `tied` smoother: the gains of its trackers, 1 = the prediction as it is; and the share of the old value
    # in the running mean of each tracker's squared errors.
    tracker_gains: tuple[float, ...] = (1.0, 0.85, 0.7, 0.5, 0.35, 0.2)
    tracker_memory: float = 0.95
    alignment_points: int = 20_000  # most confident points that take part in a published reset alignment


METHOD = Method()
