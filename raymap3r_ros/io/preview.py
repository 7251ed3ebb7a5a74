"""Pictures of results: a row of panels per frame, and a sheet that summarises a recording.

All pictures are (h, w, 3) uint8 RGB arrays.
"""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from raymap3r_ros.text import printable

BACKGROUND = (22, 24, 28)
TEXT = (228, 230, 233)
FAINT_TEXT = (146, 151, 158)
WARNING = (255, 176, 32)
GRID = (44, 47, 53)
UNKNOWN = (58, 61, 66)  # pixels without depth
MOVING = (255, 64, 48)
GAP = 4  # pixels between panels
TITLE_HEIGHT = 24
CAPTION_HEIGHT = 26
UNTRAINED = "UNTRAINED WEIGHTS: geometry is meaningless"


@functools.lru_cache(maxsize=8)
def load_font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Return Pillow's own font, in pixels if it is scalable."""
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow before 10.1 has one small bitmap font
        return ImageFont.load_default()


def _text(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    color: tuple[int, int, int],
    size: int,
    side: str = "left",
    outline: int = 0,
) -> float:
    """Draw text and return its length in pixels. `at` is the middle of its `side` ("left", "center", "right")."""
    font = load_font(size)
    text = printable(text)  # names of files may contain line ends, of which Pillow cannot measure the length
    # The bitmap font has no anchors, only Latin-1 letters, and a height of 11 pixels.
    scales = isinstance(font, ImageFont.FreeTypeFont)
    if scales:  # Pillow's scalable font has only the letters of ASCII
        letters = (letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
        text = "".join(letters).encode("ascii", "replace").decode()
    else:
        text = text.encode("latin-1", "replace").decode("latin-1")
    length = draw.textlength(text, font)
    x, y = at[0] - {"left": 0, "center": length / 2, "right": length}[side], at[1]
    draw.text(
        (x, y if scales else y - 5.5), text, color, font, anchor="lm" if scales else None,
        stroke_width=outline, stroke_fill=BACKGROUND,
    )  # fmt: skip
    return length


class DepthRange:
    """Near and far end of the depth colours, smoothed over time so that colours do not flicker."""

    def __init__(self, memory: float = 0.9) -> None:
        self._memory = memory
        self._ends: np.ndarray | None = None  # logarithms of metres

    def update(self, depth: np.ndarray) -> tuple[float, float]:
        """Add a depth map (H, W) in metres; return the range (near, far) in metres to draw it with."""
        known = depth[np.isfinite(depth) & (depth > 0)]
        if known.size:
            near, middle, far = np.log(np.percentile(known, (2, 50, 98)))
            ends = np.array((near, far))
            if self._ends is None or not self._ends[0] <= middle <= self._ends[1]:
                self._ends = ends  # the scene has changed
            else:
                self._ends = self._memory * self._ends + (1 - self._memory) * ends
        if self._ends is None:
            return 0.1, 10.0
        near, far = np.exp(self._ends)
        return float(near), float(max(far, near * 1.05))  # a frontal wall has almost no range


def color_depth(depth: np.ndarray, near: float, far: float) -> np.ndarray:
    """Return depth (H, W) metres as colours: red near to blue far, linear in inverse depth, grey where unknown."""
    known = np.isfinite(depth) & (depth > 0)
    closeness = (1 / np.where(known, depth, far) - 1 / far) / (1 / near - 1 / far)
    colors = _colormap(closeness, cv2.COLORMAP_TURBO, 0.06, 0.94)
    colors[~known] = UNKNOWN
    return colors


def color_dynamic_map(dynamic_map: np.ndarray) -> np.ndarray:
    """Return a dynamic map (H, W) in 0..1 as colours, from black (static) to pale yellow (moving)."""
    return _colormap(dynamic_map, cv2.COLORMAP_INFERNO)


def overlay_mask(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the image (h, w, 3) with moving pixels tinted and outlined. `mask`: (h, w) bool."""
    picture = image.copy()
    picture[mask] = (0.45 * picture[mask] + 0.55 * np.array(MOVING)).astype(np.uint8)
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(picture, outlines, -1, (255, 255, 255), 1, cv2.LINE_AA)


@dataclass(frozen=True)
class _Panel:
    """One picture of a row."""

    title: str
    picture: np.ndarray
    note: str = ""
    bar: np.ndarray | None = None  # colour scale, left of the note


def draw_panels(
    image: np.ndarray,
    depth: np.ndarray,
    dynamic_map: np.ndarray | None,
    mask: np.ndarray | None,
    caption: str,
    *,
    depth_range: tuple[float, float] | None = None,
    warning: str = "",
    panel_width: int = 320,
    with_motion: bool = True,
) -> np.ndarray:
    """Return a row `image | depth | dynamic map | image with mask` with titles and a line of text below.

    `image` (h, w, 3) uint8 RGB, `depth` (H, W) metres, `dynamic_map` (H, W) 0..1 and `mask` (H, W) bool show the same
    view, the image at the same or a higher resolution; the last two are None if motion was not estimated for this
    frame. Without `with_motion` the row is `image | depth`, with larger panels over the same width.
    `depth_range`: near and far in metres (see DepthRange); by default from this depth map. `warning` is drawn at
    the right of the caption. The size of the row depends only on the shape of the image, `panel_width` and
    `with_motion`, and is even in both directions, as video requires.
    """
    near, far = DepthRange().update(depth) if depth_range is None else depth_range
    width = 4 * panel_width + 3 * GAP
    count = 4 if with_motion else 2
    panel_width = (width - (count - 1) * GAP) // count
    size = panel_width, 2 * round(panel_width * image.shape[0] / image.shape[1] / 2)
    picture = _resize(image, size)
    panels = [
        _Panel("image", picture),
        _Panel(
            "depth", _resize(color_depth(depth, near, far), size, nearest=True),
            f"{_metres(near)} to {_metres(far)} m", _bar(cv2.COLORMAP_TURBO, 0.94, 0.06),
        ),
    ]  # fmt: skip
    if with_motion:
        panels += [_dynamic_map_panel(dynamic_map, picture), _mask_panel(mask, picture)]
    return _draw_row(panels, width, caption, warning)


def _dynamic_map_panel(dynamic_map: np.ndarray | None, picture: np.ndarray) -> _Panel:
    title = "dynamic map"
    if dynamic_map is None:
        return _Panel(title, np.full_like(picture, BACKGROUND), "not estimated for this frame")
    resized = _resize(color_dynamic_map(dynamic_map), (picture.shape[1], picture.shape[0]))
    return _Panel(title, resized, "0 still, 1 moving", _bar(cv2.COLORMAP_INFERNO))


def _mask_panel(mask: np.ndarray | None, picture: np.ndarray) -> _Panel:
    title = "moving mask"
    if mask is None:
        return _Panel(title, picture, "not estimated for this frame")
    # Enlarged as a soft map and thresholded again, so that the outline has no steps.
    size = picture.shape[1], picture.shape[0]
    soft = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    return _Panel(title, overlay_mask(picture, soft > 0.5), f"{100 * mask.mean():.1f} % moving")


def _draw_row(panels: Sequence[_Panel], width: int, caption: str, warning: str) -> np.ndarray:
    """Return panels of one size side by side, with their titles above and the caption below."""
    height, panel_width = panels[0].picture.shape[:2]
    row = np.full((TITLE_HEIGHT + height + CAPTION_HEIGHT, width, 3), BACKGROUND, np.uint8)
    lefts = [position * (panel_width + GAP) for position in range(len(panels))]
    for left, panel in zip(lefts, panels, strict=True):
        row[TITLE_HEIGHT : TITLE_HEIGHT + height, left : left + panel_width] = panel.picture
    canvas = Image.fromarray(row)
    draw = ImageDraw.Draw(canvas)
    for left, panel in zip(lefts, panels, strict=True):
        title_end = left + 6 + _text(draw, (left + 6, TITLE_HEIGHT / 2), panel.title, TEXT, 14)
        right = left + panel_width - 6
        note_start = right - _text(draw, (right, TITLE_HEIGHT / 2), panel.note, FAINT_TEXT, 12, "right")
        if panel.bar is not None:
            bar_start = int(note_start) - 8 - panel.bar.shape[1]
            if bar_start > title_end:
                canvas.paste(Image.fromarray(panel.bar), (bar_start, (TITLE_HEIGHT - panel.bar.shape[0]) // 2))
    bottom = TITLE_HEIGHT + height + CAPTION_HEIGHT / 2
    _text(draw, (6, bottom), caption, FAINT_TEXT, 13)
    if warning:
        _text(draw, (width - 6, bottom), warning, WARNING, 14, "right")
    return np.asarray(canvas)


@dataclass(frozen=True)
class MapView:
    """An orthographic view of the world (x right, y down, z forward)."""

    title: str
    across: int  # world axis that points to the right of the picture
    up: int  # world axis along the picture's vertical
    up_sign: int  # 1 where it points up the page, -1 where down
    toward: int  # world axis along the line of sight
    toward_sign: int  # 1 where it points to the viewer


FROM_ABOVE = MapView("from above", across=0, up=2, up_sign=1, toward=1, toward_sign=-1)
FROM_RIGHT = MapView("from the right", across=2, up=1, up_sign=-1, toward=0, toward_sign=1)


def draw_map(
    positions: np.ndarray, points: np.ndarray, colors: np.ndarray, size: tuple[int, int], view: MapView = FROM_ABOVE
) -> np.ndarray:
    """Return the camera's path over the static cloud, in parallel projection.

    `positions` (n, 3) and `points` (m, 3) metres in the world, `colors` (m, 3) uint8; `size` = (width, height) of
    the picture. Seen from above, the camera's first viewing direction points up the page.
    """
    width, height = size
    canvas = np.full((height, width, 3), BACKGROUND, np.uint8)
    axes, signs = [view.across, view.up], np.array([1.0, view.up_sign])
    path = positions[np.isfinite(positions).all(axis=1)][:, axes] * signs
    ground = points[:, axes] * signs
    if not len(path):
        return canvas
    low, high = path.min(axis=0), path.max(axis=0)
    if len(ground):
        # A few outliers must not shrink the scene to a dot: the outermost points are cut off, the path never is.
        low = np.minimum(low, np.percentile(ground, 2, axis=0))
        high = np.maximum(high, np.percentile(ground, 98, axis=0))
    room = np.array([width - 40, height - TITLE_HEIGHT - 40])
    scale = float(np.min(room / np.maximum(high - low, 1e-6)))
    middle = (low + high) / 2
    center = np.array([width / 2, (height + TITLE_HEIGHT) / 2])

    def pixels(places: np.ndarray) -> np.ndarray:
        return (places - middle) * [scale, -scale] + center

    spacing = _draw_grid(canvas, pixels, middle, scale)
    if len(ground):
        # The points nearest to the viewer are painted last.
        order = np.argsort(points[:, view.toward] * view.toward_sign, kind="stable")
        _draw_points(canvas, pixels(ground[order]), colors[order])
    trace = np.rint(pixels(path) * 16).astype(np.int32)  # sixteenths of a pixel
    _draw_path(canvas, trace)

    canvas[:TITLE_HEIGHT] = BACKGROUND
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    _text(draw, (6, TITLE_HEIGHT / 2), view.title, TEXT, 14)
    _text(draw, (width - 6, TITLE_HEIGHT / 2), f"grid {spacing:g} m", FAINT_TEXT, 12, "right")
    for (x, y), label, leftward_from in ((trace[0] / 16, "start", 60), (trace[-1] / 16, "end", width - 60)):
        side, offset = ("right", -9) if x > leftward_from else ("left", 9)
        _text(draw, (x + offset, y), label, TEXT, 12, side, outline=2)
    return np.asarray(picture)


def _draw_grid(
    canvas: np.ndarray, pixels: Callable[[np.ndarray], np.ndarray], middle: np.ndarray, scale: float
) -> float:
    """Draw grid lines of a round spacing; return it in metres. `pixels` maps metres (2,) to pixels (2,)."""
    height, width = canvas.shape[:2]
    spacing = _round_number(90 / scale)
    for axis, extent in enumerate((width, height)):
        reach = extent / scale
        first = math.floor((middle[axis] - reach) / spacing)
        for number in range(first, first + math.ceil(2 * reach / spacing) + 2):
            at = round(pixels(np.where(np.arange(2) == axis, number * spacing, middle))[axis])
            ends = ((at, 0), (at, height)) if axis == 0 else ((0, at), (width, at))
            cv2.line(canvas, *ends, GRID, 1)
    return spacing


def _draw_points(canvas: np.ndarray, places: np.ndarray, colors: np.ndarray) -> None:
    """Draw points at `places` (m, 2) pixels as squares of 2 x 2; later ones cover earlier ones."""
    height, width = canvas.shape[:2]
    spots = np.rint(places).astype(np.int64)
    inside = ((spots >= 0) & (spots < (width, height))).all(axis=1)
    columns, rows = spots[inside].T
    dots = 0.85 * colors[inside] + 0.15 * np.array(BACKGROUND)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        canvas[np.minimum(rows + row, height - 1), np.minimum(columns + column, width - 1)] = dots


def _draw_path(canvas: np.ndarray, trace: np.ndarray) -> None:
    """Draw a line through `trace` (n, 2), in sixteenths of a pixel, coloured by time, with dots at its ends."""
    line_colors = _colormap(np.linspace(0, 1, len(trace))[None], cv2.COLORMAP_TURBO, 0.2, 0.95)[0].tolist()
    cv2.polylines(canvas, [trace], False, BACKGROUND, 5, cv2.LINE_AA, 4)
    for start, end, color in zip(trace[:-1].tolist(), trace[1:].tolist(), line_colors[1:], strict=True):
        cv2.line(canvas, start, end, color, 2, cv2.LINE_AA, 4)
    for spot, color in ((trace[0].tolist(), line_colors[0]), (trace[-1].tolist(), line_colors[-1])):
        cv2.circle(canvas, spot, 6 * 16, BACKGROUND, -1, cv2.LINE_AA, 4)
        cv2.circle(canvas, spot, 4 * 16, color, -1, cv2.LINE_AA, 4)


def draw_sheet(
    rows: Sequence[np.ndarray],
    positions: np.ndarray,
    points: np.ndarray,
    colors: np.ndarray,
    title: str,
    lines: Sequence[str],
    warning: str = "",
) -> np.ndarray:
    """Return a recording on one page: a title, rows of `draw_panels`, the scene from above and from the side, text.

    `positions` (n, 3), `points` (m, 3) and `colors` (m, 3) as for `draw_map`.
    """
    width = rows[0].shape[1]
    left = (width - GAP) // 2
    right = width - left - GAP
    line_height = 24
    text_height = TITLE_HEIGHT + line_height * len(lines)
    side_height = 260
    head = 74 if warning else 44
    top = head + sum(row.shape[0] for row in rows)
    canvas = np.full((top + side_height + text_height, width, 3), BACKGROUND, np.uint8)
    canvas[head:top] = np.concatenate(rows)
    canvas[top:, :left] = draw_map(positions, points, colors, (left, side_height + text_height))
    canvas[top : top + side_height, -right:] = draw_map(positions, points, colors, (right, side_height), FROM_RIGHT)
    picture = Image.fromarray(canvas)
    draw = ImageDraw.Draw(picture)
    _text(draw, (6, 22), title, TEXT, 20)
    if warning:
        draw.rectangle((0, 42, width, 70), fill=WARNING)
        _text(draw, (width / 2, 56), warning, BACKGROUND, 17, "center")
    for number, line in enumerate(lines):
        middle = top + side_height + TITLE_HEIGHT + line_height * number
        _text(draw, (left + GAP + 10, middle), line, TEXT, 15)
    return np.asarray(picture)


def _resize(picture: np.ndarray, size: tuple[int, int], nearest: bool = False) -> np.ndarray:
    if (picture.shape[1], picture.shape[0]) == size:
        return picture
    enlarge = cv2.INTER_NEAREST if nearest else cv2.INTER_CUBIC
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if picture.shape[1] > size[0] else enlarge)


def _colormap(values: np.ndarray, colormap: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Return values (h, w), clipped to 0..1, as colours from the part `low` to `high` of an OpenCV colour map."""
    steps = 255 * (low + (high - low) * np.clip(np.nan_to_num(values), 0, 1))
    return cv2.cvtColor(cv2.applyColorMap(np.rint(steps).astype(np.uint8), colormap), cv2.COLOR_BGR2RGB)


def _bar(colormap: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    return _colormap(np.tile(np.linspace(0, 1, 60), (10, 1)), colormap, low, high)


def _metres(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _round_number(value: float) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that is not below `value`."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value * (1 - 1e-9))
