"""The shape of a network: one frozen dataclass, and named presets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from raymap3r_ros.errors import OptionError

# Lowest and highest value of each number in a file: a few times those of the public network. A file with larger ones
# is damaged or malicious, and can take any memory and time with few weights.
LIMITS: dict[str, tuple[float, float]] = {
    "image_size": (16, 1024),
    "patch_size": (2, 64),
    **dict.fromkeys(("encoder_width", "decoder_width", "dpt_level_widths"), (4, 4096)),
    **dict.fromkeys(("dpt_width", "dpt_last_width"), (1, 2048)),
    **dict.fromkeys(
        ("encoder_depth", "ray_encoder_depth", "decoder_depth", "memory_depth", "modulation_depth"), (1, 64)
    ),
    **dict.fromkeys(("encoder_heads", "ray_encoder_heads", "decoder_heads", "state_heads", "memory_heads"), (1, 64)),
    **dict.fromkeys(("state_tokens", "memory_slots"), (1, 4096)),
    "mlp_ratio": (1, 16),
    "norm_eps": (1e-12, 1e-2),
    "rope_base": (1.0, 1e6),
}
MAX_GRID = 128  # image tokens along the long edge

HEAD_TYPES = ("dpt", "linear")
STEMS = ("patch", "conv")


@dataclass(frozen=True)
class NetworkConfig:
    """Every width, depth and head count of a CUT3R network (arXiv 2501.12387, section 3).

    The defaults are those of the public 512-pixel checkpoint. Raises OptionError if the numbers are inconsistent.
    """

    image_size: int = 512  # long edge of the training images, pixels
    patch_size: int = 16  # pixels along each side of one image token
    stem: str = "patch"  # from pixels to tokens: one linear map of a `patch`, or `conv` layers, which learn faster
    encoder_width: int = 1024
    encoder_depth: int = 24
    encoder_heads: int = 16
    ray_encoder_depth: int = 2
    ray_encoder_heads: int = 16
    decoder_width: int = 768
    decoder_depth: int = 12  # blocks on each of the two sides
    decoder_heads: int = 12  # image side
    state_heads: int = 16  # state side
    state_tokens: int = 768
    memory_slots: int = 256
    memory_depth: int = 2  # blocks to read and blocks to write
    memory_heads: int = 12
    modulation_depth: int = 2  # pose-modulated blocks before the world-point head
    mlp_ratio: int = 4
    norm_eps: float = 1e-6
    rope_base: float = 100.0
    head_type: str = "dpt"
    dpt_width: int = 256
    dpt_last_width: int = 128
    dpt_level_widths: tuple[int, int, int, int] = (96, 192, 384, 768)

    def __post_init__(self) -> None:
        if self.head_type not in HEAD_TYPES:
            raise OptionError(f"head_type is {self.head_type!r}; it can be {', '.join(HEAD_TYPES)}")
        if self.stem not in STEMS:
            raise OptionError(f"stem is {self.stem!r}; it can be {', '.join(STEMS)}")
        if self.stem == "conv" and self.patch_size.bit_count() != 1:
            raise OptionError(
                f"patch_size is {self.patch_size}; a conv stem halves the image, so it must be 2, 4, 8, ..."
            )
        if self.decoder_depth < 2:
            raise OptionError(f"decoder_depth is {self.decoder_depth}; the heads need at least 2 layers")
        for what, width, heads, multiple in (
            ("encoder", self.encoder_width, self.encoder_heads, 4),
            ("ray_encoder", self.encoder_width, self.ray_encoder_heads, 4),
            ("decoder", self.decoder_width, self.decoder_heads, 4),
            ("state", self.decoder_width, self.state_heads, 4),
            ("memory", 2 * self.decoder_width, self.memory_heads, 1),
        ):
            if heads < 1 or width % (heads * multiple):
                raise OptionError(
                    f"{what}: width {width} is not a multiple of {multiple} x {heads} heads"
                    + (" (rotary positions need four equal quarters in a head)" if multiple == 4 else "")
                )

    @property
    def hook_layers(self) -> tuple[int, int, int, int]:
        """Decoder layers that the heads read; 0 stands for the encoder's tokens."""
        depth = self.decoder_depth
        return 0, depth * 2 // 4, depth * 3 // 4, depth

    def to_dict(self) -> dict:
        """A JSON-ready form; `from_dict` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> NetworkConfig:
        """The reverse of `to_dict`. Raises OptionError for unknown and missing names."""
        known = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or set(values) != known:
            given = set(values) if isinstance(values, dict) else set()
            raise OptionError(
                f"not a network configuration: missing {sorted(known - given)}, unknown {sorted(given - known)}"
            )
        for name, limits in LIMITS.items():
            _check_number(name, values[name], *limits)
        if values["image_size"] > MAX_GRID * values["patch_size"]:
            raise OptionError(
                f"image_size is {values['image_size']} with a patch_size of {values['patch_size']}; allowed: up to "
                f"{MAX_GRID} patches"
            )
        return cls(**{**values, "dpt_level_widths": tuple(values["dpt_level_widths"])})


def _check_number(name: str, value: object, lowest: float, highest: float) -> None:
    """Raise OptionError if a value of a configuration is not a number of the right type and size."""
    count = 4 if name == "dpt_level_widths" else 1
    numbers = value if count > 1 else [value]
    if not isinstance(numbers, list | tuple) or len(numbers) != count:
        raise OptionError(f"{name} is not a list of {count} numbers")
    kinds = (int, float) if isinstance(lowest, float) else (int,)
    for number in numbers:
        if type(number) not in kinds or not lowest <= number <= highest:
            what = "numbers" if float in kinds else "whole numbers"
            raise OptionError(f"{name} is {number!r:.60}; allowed: {what} from {lowest} to {highest}")


PRESETS: dict[str, NetworkConfig] = {
    # The public checkpoint `cut3r_512_dpt_4_64.pth`: 793 M parameters.
    "cut3r_512_dpt": NetworkConfig(),
    # Our own: small enough for a live camera on two CPU cores.
    "mini": NetworkConfig(
        image_size=128,
        patch_size=16,
        stem="conv",
        encoder_width=96,
        encoder_depth=4,
        encoder_heads=4,
        ray_encoder_depth=1,
        ray_encoder_heads=4,
        decoder_width=96,
        decoder_depth=4,
        decoder_heads=4,
        state_heads=4,
        state_tokens=48,
        memory_slots=16,
        memory_depth=1,
        memory_heads=4,
        modulation_depth=1,
        dpt_width=16,
        dpt_last_width=16,
        dpt_level_widths=(16, 16, 32, 32),
    ),
}
