"""What the node tells about itself: rates, losses, latency, stage times, errors."""

from __future__ import annotations

import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from raymap3r_ros.rates import significant

WINDOW = 5.0  # seconds over which rates are counted and for which an event colours the status
SAMPLES = 200  # latest frames that latencies and stage times are taken over
LOST_SHARE = 0.5  # of the images that were stamped, below which the middleware is blamed
PROFILE_HINT = "use the Fast DDS profile of config/fastdds.xml, on the publisher's side above all"


class Rate:
    """Events per second over the last WINDOW seconds."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()
        self._start: float | None = None

    def add(self, now: float) -> None:
        """Count one event."""
        if self._start is None:
            self._start = now
        self._times.append(now)
        self._forget(now)

    def value(self, now: float) -> float:
        """Events per second."""
        self._forget(now)
        if self._start is None:
            return 0.0
        return len(self._times) / min(WINDOW, max(1.0, now - self._start))

    def _forget(self, now: float) -> None:
        while self._times and self._times[0] < now - WINDOW:
            self._times.popleft()


class StampRates:
    """Finds out from the stamps alone how many of a camera's images arrive, whatever the speed they are played at."""

    def __init__(self) -> None:
        self._images: deque[float] = deque(maxlen=100)
        self._infos: deque[float] = deque(maxlen=100)

    def clear(self) -> None:
        """Start anew: the stamps have jumped."""
        self._images.clear()
        self._infos.clear()

    def image(self, stamp: float) -> None:
        """An image with this stamp, in seconds, has arrived."""
        self._images.append(stamp)

    def camera_info(self, stamp: float) -> None:
        """A camera_info with this stamp has arrived; small messages get through where large ones are lost."""
        self._infos.append(stamp)

    def arriving(self) -> float:
        """Images per second of stamp time."""
        return _rate(self._images)

    def stamped(self) -> float:
        """What the camera makes per second of stamp time."""
        gaps = sorted(later - earlier for earlier, later in zip(self._images, list(self._images)[1:], strict=False))
        # Of many images lost, some pairs of neighbours still get through: nearly the smallest gap is the period.
        period = gaps[len(gaps) // 10] if len(gaps) >= 5 else 0.0
        return max(1 / period if period > 0 else 0.0, _rate(self._infos))


def _rate(stamps: deque[float]) -> float:
    return (len(stamps) - 1) / (stamps[-1] - stamps[0]) if len(stamps) >= 5 and stamps[-1] > stamps[0] else 0.0


# Frames taken in, published; not processed because a newer one came first, or lost on the way or for want of room;
# messages that are no image; frames of which the network or the GPU made nothing; images that came while the node was
# paused; new memories after the first.
COUNTS = (
    "frames in",
    "frames out",
    "frames dropped",
    "frames lost",
    "bad frames",
    "failed frames",
    "frames paused",
    "resets",
)


class Monitor:
    """Collects events from every thread and makes one DiagnosticStatus of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._in, self._out = Rate(), Rate()
        self._stamps = StampRates()
        self._from_stamp: deque[float] = deque(maxlen=SAMPLES)
        self._from_arrival: deque[float] = deque(maxlen=SAMPLES)
        self._stages: dict[str, deque[float]] = {}
        self._error, self._error_time = "", -WINDOW
        self._warning, self._warning_time = "", -WINDOW

    def arrived(self, stamp: float, jump: bool) -> None:
        """A good image has arrived; `jump`: its stamp does not follow the last one's."""
        with self._lock:
            self._counts["frames in"] += 1
            self._in.add(time.monotonic())
            if jump:
                self._stamps.clear()
            self._stamps.image(stamp)

    def camera_info(self, stamp: float) -> None:
        """A camera_info has arrived."""
        with self._lock:
            self._stamps.camera_info(stamp)

    def published(self, from_stamp: float, from_arrival: float, stages: dict[str, float]) -> None:
        """A frame is out. Latencies in seconds, `stages` in milliseconds."""
        with self._lock:
            self._counts["frames out"] += 1
            self._out.add(time.monotonic())
            self._from_stamp.append(from_stamp)
            self._from_arrival.append(from_arrival)
            for name, value in stages.items():
                self._stages.setdefault(name, deque(maxlen=SAMPLES)).append(value)

    def count(self, what: str, number: int = 1) -> None:
        """Add to one of COUNTS, of which "frames in" and "frames out" count themselves."""
        with self._lock:
            self._counts[what] += number

    def warning(self, text: str) -> None:
        """Something that the user should look at."""
        with self._lock:
            self._warning, self._warning_time = text, time.monotonic()

    def error(self, text: str) -> None:
        """Something that went wrong."""
        with self._lock:
            self._error, self._error_time = text, time.monotonic()

    def status(
        self, name: str, state: str, facts: dict[str, object], standing: Iterable[str] = ()
    ) -> DiagnosticStatus:
        """All that is known now.

        name: of the node; state: of its life cycle; facts: more values to show; standing: warnings that hold as long
        as the caller gives them.
        """
        with self._lock:
            now = time.monotonic()
            frames_in, frames_out = self._in.value(now), self._out.value(now)
            arriving, stamped = self._stamps.arriving(), self._stamps.stamped()
            warnings = list(standing)
            if state == "active" and frames_in == 0:
                warnings.append("no images are arriving")
            elif state == "active" and 0 < arriving < LOST_SHARE * stamped:
                warnings.append(
                    f"images arrive at {significant(arriving)} Hz but are stamped at {significant(stamped)} Hz: "
                    f"{PROFILE_HINT}"
                )
            if now - self._warning_time < WINDOW:
                warnings.append(self._warning)
            level, texts = DiagnosticStatus.OK, [state]
            if warnings:
                level, texts = DiagnosticStatus.WARN, warnings
            if now - self._error_time < WINDOW:
                level, texts = DiagnosticStatus.ERROR, [self._error, *warnings]
            values = {
                "state": state,
                "rate in (Hz)": significant(frames_in),
                "rate out (Hz)": significant(frames_out),
                "rate stamped (Hz)": significant(stamped),
                **{what: self._counts[what] for what in COUNTS},
                **_latencies("from stamp", self._from_stamp),
                **_latencies("from arrival", self._from_arrival),
                **{f"stage {stage} (ms)": f"{statistics.median(v):.2f}" for stage, v in self._stages.items()},
                **facts,
                "last error": self._error,
            }
        return DiagnosticStatus(
            level=level,
            name=f"{name}: stream",
            message="; ".join(texts),
            hardware_id=name,  # always the same: viewers find a status by it
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )


def _latencies(what: str, samples: deque[float]) -> dict[str, str]:
    if not samples:
        return {}
    ordered = sorted(samples)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    return {
        f"latency {what}, median (ms)": f"{statistics.median(ordered) * 1e3:.1f}",
        f"latency {what}, p95 (ms)": f"{p95 * 1e3:.1f}",
    }
