"""Pictures: the tests check what a person reads from them."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from raymap3r_ros.io import preview
from raymap3r_ros.io.video_file import EvenSample, VideoFile

HEIGHT, WIDTH = 36, 64


def panels_of(row: np.ndarray, width: int = 320) -> list[np.ndarray]:
    inside = row[preview.TITLE_HEIGHT : -preview.CAPTION_HEIGHT]
    return [inside[:, left : left + width] for left in (n * (width + preview.GAP) for n in range(4))]


def scene():
    image = np.full((HEIGHT, WIDTH, 3), (40, 90, 160), np.uint8)
    depth = np.full((HEIGHT, WIDTH), 4.0)
    depth[:, :20] = 1.0
    depth[:5] = np.nan
    dynamic_map = np.zeros((HEIGHT, WIDTH))
    dynamic_map[:, 40:] = 1.0
    return image, depth, dynamic_map, dynamic_map > 0.5


def test_row_shows_image_depth_dynamic_map_and_mask():
    image, depth, dynamic_map, mask = scene()
    row = preview.draw_panels(image, depth, dynamic_map, mask, "frame 3", depth_range=(1.0, 4.0))
    assert row.dtype == np.uint8
    assert row.shape == (180 + preview.TITLE_HEIGHT + preview.CAPTION_HEIGHT, 4 * 320 + 3 * preview.GAP, 3)
    assert not np.array(row.shape[:2]) % 2 @ (1, 1)
    shown, colors, dynamic, overlay = panels_of(row)
    assert (shown == image[0, 0]).all()
    near, far, unknown = colors[90, 40], colors[90, 200], colors[10, 200]
    assert near[0] > 150 > near[2] and far[2] > far[0]  # red near, blue far
    assert tuple(unknown) == preview.UNKNOWN
    assert dynamic[90, 100].sum() < 20 and dynamic[90, 300].sum() > 500  # dark: static, bright: dynamic
    assert (overlay[90, 100] == image[0, 0]).all()
    assert int(overlay[90, 300, 0]) - overlay[90, 300, 2] > 50  # tinted red


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (33, 61), (384, 512)])
def test_rows_have_even_sizes_for_any_shape_and_need_no_motion(size):
    row = preview.draw_panels(np.zeros((*size, 3), np.uint8), np.ones(size), None, None, "")
    assert row.shape[0] % 2 == row.shape[1] % 2 == 0
    assert (panels_of(row)[2] == preview.BACKGROUND).all()


def test_row_without_motion_is_as_wide_and_has_two_larger_panels():
    image, depth, dynamic_map, mask = scene()
    row = preview.draw_panels(image, depth, None, None, "", with_motion=False)
    width = preview.draw_panels(image, depth, dynamic_map, mask, "").shape[1]
    panel_width = (width - preview.GAP) // 2
    assert row.shape[1] == width and row.shape[0] % 2 == 0
    inside = row[preview.TITLE_HEIGHT : -preview.CAPTION_HEIGHT]
    assert inside.shape[0] == pytest.approx(panel_width * HEIGHT / WIDTH, abs=1)
    assert (inside[:, :panel_width] == image[0, 0]).all()
    assert (inside[:, -panel_width:] != preview.BACKGROUND).any(axis=2).all()


def test_depth_may_be_unknown_everywhere_and_constant():
    image, depth, dynamic_map, mask = scene()
    for value in (np.nan, 0.0, 2.0):
        preview.draw_panels(image, np.full_like(depth, value), dynamic_map, mask, "")


def test_warning_is_visible_in_the_caption_also_with_the_font_of_an_old_pillow(monkeypatch):
    image, depth, dynamic_map, mask = scene()

    def warning_pixels() -> int:
        preview.load_font.cache_clear()
        row = preview.draw_panels(image, depth, dynamic_map, mask, "résumé 走", warning=preview.UNTRAINED)
        caption = row[-preview.CAPTION_HEIGHT :, -320:].astype(int)
        return int((np.abs(caption - preview.WARNING).sum(axis=2) < 60).sum())

    assert warning_pixels() > 300
    # Pillow before 10.1 has a bitmap font only, without a size.
    monkeypatch.setattr(ImageFont, "load_default", lambda: ImageFont.load_default_imagefont())
    assert warning_pixels() > 300
    preview.load_font.cache_clear()


@pytest.mark.parametrize(("text", "drawn"), [("küche naïf", "kuche naif"), ("\u4e00 1", "? 1"), ("ﬁle…", "file...")])
def test_letters_that_the_font_lacks_are_replaced_by_similar_ones(text, drawn):
    pictures = [Image.new("RGB", (200, 30)) for _ in range(2)]
    for picture, words in zip(pictures, (text, drawn), strict=True):
        preview._text(ImageDraw.Draw(picture), (4, 15), words, preview.TEXT, 14)
    assert np.array_equal(*map(np.asarray, pictures)) and np.asarray(pictures[0]).any()


def test_range_of_depth_colours_is_stable_and_follows_cuts():
    rng = np.random.default_rng(0)
    depth_range = preview.DepthRange()
    first = depth_range.update(rng.uniform(1, 5, (40, 40)))
    assert first == pytest.approx((1.08, 4.92), abs=0.1)
    after_outlier = depth_range.update(rng.uniform(1, 5, (40, 40)) * np.where(rng.random((40, 40)) < 0.1, 30, 1))
    assert after_outlier[1] < 1.5 * first[1]
    cut = depth_range.update(rng.uniform(20, 40, (40, 40)))
    assert cut == pytest.approx((20.4, 39.6), abs=0.5)
    assert depth_range.update(np.full((4, 4), np.nan)) == cut


def test_top_view_shows_forward_up_and_right_to_the_right():
    positions = np.array([[0, 0, 0], [0, 0, 1], [0, 0, 2.0]])
    points = np.array([[2.0, -1, 2], [-2.0, 1, 0]])
    colors = np.array([[255, 0, 255], [0, 255, 0]], np.uint8)
    picture = preview.draw_map(positions, points, colors, (300, 300)).astype(int)

    def middle(mask: np.ndarray) -> np.ndarray:
        assert mask.any()
        return np.argwhere(mask).mean(axis=0)

    magenta = middle((picture[..., 0] > 180) & (picture[..., 1] < 40) & (picture[..., 2] > 180))
    green = middle((picture[..., 1] > 180) & (picture[..., 0] < 40) & (picture[..., 2] < 40))
    assert magenta[0] < green[0] and magenta[1] > green[1]  # (row, column): ahead is up, right is right
    side = preview.draw_map(positions, points, colors, (300, 300), preview.FROM_RIGHT).astype(int)
    magenta = middle((side[..., 0] > 180) & (side[..., 1] < 40) & (side[..., 2] > 180))
    green = middle((side[..., 1] > 180) & (side[..., 0] < 40) & (side[..., 2] < 40))
    assert magenta[1] > green[1] and magenta[0] < green[0]  # ahead is right, up is up


@pytest.mark.parametrize("count", [0, 1, 2])
def test_top_view_and_sheet_of_few_frames(count):
    positions, nothing = np.zeros((count, 3)), np.zeros((0, 3))
    preview.draw_map(positions, nothing, nothing.astype(np.uint8), (120, 90))
    image, depth, dynamic_map, mask = scene()
    row = preview.draw_panels(image, depth, dynamic_map, mask, "")
    sheet = preview.draw_sheet([row], positions, nothing, nothing.astype(np.uint8), "a", ["b"], "careful")
    assert sheet.shape[1] == row.shape[1] and sheet.shape[0] > row.shape[0] + 200


def test_sample_is_spread_evenly_over_a_stream_of_any_length():
    for length in (1, 5, 8, 9, 100, 1000):
        sample = EvenSample(8)
        for index in range(length):
            if sample.wants_next():
                sample.keep(index)
        assert len(sample.kept) <= 8
        assert len(set(np.diff(sample.kept))) <= 1 and sample.kept[0] == 0
        assert sample.kept[-1] >= length - 1 - sample.step
        spread = sample.spread(3)
        assert len(spread) == min(3, length) and spread[0] == 0 and spread[-1] == sample.kept[-1]


def pictures(count: int):
    for index in range(count):
        yield np.full((40, 60, 3), (200, 10 * index, 30), np.uint8)


def test_video_can_be_read_back(tmp_path):
    with VideoFile(tmp_path, "preview", 10) as video:
        for picture in pictures(6):
            video.write(picture)
        assert not (tmp_path / "preview.mp4").exists()
    assert [item.name for item in tmp_path.iterdir()] == ["preview.mp4"]
    capture = cv2.VideoCapture(str(video.path))
    assert capture.get(cv2.CAP_PROP_FPS) == 10
    frames = [capture.read()[1][..., ::-1] for _ in range(6)]
    assert not capture.read()[0]
    for frame, picture in zip(frames, pictures(6), strict=True):
        assert np.abs(frame.astype(int) - picture).mean() < 8


@pytest.mark.parametrize("fps", [1e-3, 6.6666667, 14.285714, 23.976, 59.94, 1000])
def test_video_supports_any_rate(tmp_path, fps, caplog):
    with VideoFile(tmp_path, "preview", fps) as video:
        for picture in pictures(3):
            video.write(picture)
    assert video.path.name == "preview.mp4" and not caplog.text
    assert cv2.VideoCapture(str(video.path)).get(cv2.CAP_PROP_FPS) == pytest.approx(np.clip(fps, 1, 60), rel=0.01)


def test_video_leaves_nothing_after_an_error_or_without_pictures(tmp_path):
    with pytest.raises(RuntimeError), VideoFile(tmp_path, "preview", 10) as video:
        video.write(next(pictures(1)))
        raise RuntimeError
    with VideoFile(tmp_path, "preview", 10):
        pass
    assert not list(tmp_path.iterdir())


def test_without_a_codec_an_animated_picture_is_written(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(cv2.VideoWriter, "isOpened", lambda self: False, raising=True)
    with VideoFile(tmp_path, "preview", 10) as video:
        for picture in pictures(6):
            video.write(picture)
    assert "OpenCV cannot write preview.mp4 here; writing an animated GIF" in caplog.text
    assert video.path.name == "preview.gif"
    assert [item.name for item in tmp_path.iterdir()] == ["preview.gif"]
    with Image.open(video.path) as animation:
        assert animation.n_frames == 6
        assert animation.info["duration"] == 100
        animation.seek(5)
        assert np.abs(np.asarray(animation.convert("RGB")).astype(int) - (200, 50, 30)).max() < 10
