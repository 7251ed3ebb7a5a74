"""The diagnostics of the node: rates, losses, latency, stage times, errors."""

from __future__ import annotations

import itertools
import secrets
import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from raymap3r_ros.rates import significant

WINDOW = 5.0  # seconds over which rates are counted, and for which a warning or an error sets the level
SAMPLES = 200  # frames, the latest, that latencies and stage times are medians of
LOST_SHARE = 0.5  # of the stamped images; if fewer arrive, the middleware loses them
NEWEST = 20  # gaps between images that show a new, lower rate
MULTIPLE, REGULAR = 0.15, 0.7  # this share of a camera's gaps are multiples of its period, within this part of it
BURSTS = 2.0  # ratio of the neighbours that arrive to those expected if images are lost at random
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
    """Estimates from the stamps alone how many of a camera's images arrive, at any playback speed."""

    def __init__(self) -> None:
        self._images: deque[float] = deque(maxlen=100)
        self._infos: deque[float] = deque(maxlen=100)

    def clear(self) -> None:
        """Start again after a jump of the stamps, or a pause."""
        self._images.clear()
        self._infos.clear()

    def image(self, stamp: float) -> None:
        """Add the stamp of an image that has arrived, in seconds."""
        self._images.append(stamp)

    def camera_info(self, stamp: float) -> None:
        """Add the stamp of a camera_info that has arrived. Small messages arrive where large ones are lost."""
        self._infos.append(stamp)

    def arriving(self) -> float:
        """Images per second of stamp time."""
        return _rate(self._images)

    def stamped(self) -> float:
        """Images per second of stamp time that the camera publishes."""
        images = list(self._images)
        gaps = [later - earlier for earlier, later in itertools.pairwise(images) if later > earlier]
        # The newest gaps alone show that the camera has become slower.
        period = max(_period(gaps), _period(gaps[-NEWEST:]))
        arriving = self.arriving()
        if period <= 0:
            return _rate(self._infos)
        # If images are lost, neighbours arrive with the same probability as all images. More of them are bursts.
        neighbours = sum(gap < 1.5 * period for gap in gaps)
        bursts = neighbours > BURSTS * arriving * period * len(gaps)
        # The gaps that losses leave are multiples of the period. Others are a camera without a fixed rate.
        multiples = sum(abs(gap / period - round(gap / period)) < MULTIPLE for gap in gaps)
        regular = multiples >= REGULAR * len(gaps)
        return max(1 / period if regular and not bursts else arriving, _rate(self._infos))


def _period(gaps: list[float]) -> float:
    """The period of a camera in seconds, of whose images some are lost; 0 for fewer than 5 gaps.

    Even if many are lost, some neighbours arrive: nearly the smallest gaps are the period.
    """
    if len(gaps) < 5:
        return 0.0
    small = 1.5 * sorted(gaps)[len(gaps) // 10]
    period = statistics.median(gap for gap in gaps if gap <= small)
    short = [gap for gap in gaps if gap < 4.5 * period]  # several periods are known more exactly than one
    return sum(short) / sum(max(1, round(gap / period)) for gap in short)


def _rate(stamps: deque[float]) -> float:
    return (len(stamps) - 1) / (stamps[-1] - stamps[0]) if len(stamps) >= 5 and stamps[-1] > stamps[0] else 0.0


COUNTS = (
    "frames in",  # received
    "frames out",  # published
    "frames without pose",  # among these: a transform is missing
    "frames dropped",  # replaced by a newer one
    "frames lost",  # on the way to the node, or because the queue was full
    "bad frames",  # messages that are not a valid image
    "failed frames",  # failed in the network
    "blank frames",  # not processed, because they show nothing
    "frames paused",  # received while the node was paused
    "resets",  # new segments and new worlds after the first
)


class Monitor:
    """Collects events from all threads for one DiagnosticStatus."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._instance = secrets.token_hex(4)
        self._counts: Counter[str] = Counter()
        self._in, self._out, self._bad = Rate(), Rate(), Rate()
        self._stamps = StampRates()
        self._from_stamp: deque[float] = deque(maxlen=SAMPLES)
        self._from_arrival: deque[float] = deque(maxlen=SAMPLES)
        self._stages: dict[str, deque[float]] = {}
        self._error, self._error_time = "", -WINDOW
        self._warning, self._warning_time = "", -WINDOW
        self._standing: dict[str, tuple[str, float]] = {}  # text and time, by subject
        self._started = -WINDOW  # when the node was activated or resumed

    def start(self) -> None:
        """Count rates from now on: images that arrived before, or were ignored in a pause, are not part of them."""
        with self._lock:
            self._in, self._out, self._bad = Rate(), Rate(), Rate()
            self._stamps.clear()
            self._started = time.monotonic()

    def arrived(self, stamp: float, jump: bool) -> None:
        """Record a valid image; `jump`: its stamp does not follow the last one."""
        with self._lock:
            self._counts["frames in"] += 1
            self._in.add(time.monotonic())
            if jump:
                self._stamps.clear()
            self._stamps.image(stamp)

    def camera_info(self, stamp: float) -> None:
        """Record a camera_info, by its stamp in seconds."""
        with self._lock:
            self._stamps.camera_info(stamp)

    def published(self, from_stamp: float, from_arrival: float, stages: dict[str, float]) -> None:
        """Record a published frame: latencies in seconds, `stages` in milliseconds."""
        with self._lock:
            self._counts["frames out"] += 1
            self._out.add(time.monotonic())
            self._from_stamp.append(from_stamp)
            self._from_arrival.append(from_arrival)
            for name, value in stages.items():
                self._stages.setdefault(name, deque(maxlen=SAMPLES)).append(value)

    def count(self, name: str, number: int = 1) -> None:
        """Add to one of COUNTS; `arrived` and `published` already count "frames in" and "frames out"."""
        with self._lock:
            self._counts[name] += number
            if name == "bad frames":
                self._bad.add(time.monotonic())

    def warning(self, text: str) -> None:
        """Record something that the user should check."""
        with self._lock:
            self._warning, self._warning_time = text, time.monotonic()

    def stand(self, subject: str, text: str) -> None:
        """Record what holds at the moment about a subject, "" if nothing."""
        with self._lock:
            self._standing[subject] = text, time.monotonic()

    def error(self, text: str) -> None:
        """Record an error."""
        with self._lock:
            self._error, self._error_time = text, time.monotonic()

    def status(
        self, name: str, state: str, facts: dict[str, object], standing: Iterable[str] = ()
    ) -> DiagnosticStatus:
        """The status now.

        Args:
            name: full name of the node.
            state: of its life cycle.
            facts: more values.
            standing: warnings that hold at the moment.
        """
        with self._lock:
            now = time.monotonic()
            frames_in, frames_out = self._in.value(now), self._out.value(now)
            arriving, stamped = self._stamps.arriving(), self._stamps.stamped()
            warnings = list(standing)
            if state == "active" and frames_in == 0 and now - self._started >= WINDOW:
                refused = self._bad.value(now) > 0
                warnings.append("all images are refused" if refused else "no images are arriving")
            elif state == "active" and 0 < arriving < LOST_SHARE * stamped:
                warnings.append(
                    f"images arrive at {significant(arriving)} Hz but are stamped at {significant(stamped)} Hz: "
                    f"unless the camera sends them irregularly, the others are lost; {PROFILE_HINT}"
                )
            warnings += [text for text, when in self._standing.values() if text and now - when < WINDOW]
            if now - self._warning_time < WINDOW:
                warnings.append(self._warning)
            level, texts = DiagnosticStatus.OK, [state]
            if warnings:
                level, texts = DiagnosticStatus.WARN, warnings
            if now - self._error_time < WINDOW:
                level, texts = DiagnosticStatus.ERROR, [self._error, *warnings]
            values = {
                "state": state,
                "instance": self._instance,
                "rate in (Hz)": significant(frames_in),
                "rate out (Hz)": significant(frames_out),
                "rate stamped (Hz)": significant(stamped),
                **{count: self._counts[count] for count in COUNTS},
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
            hardware_id=name,  # never changes: viewers identify a status by it
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )


def _latencies(origin: str, samples: deque[float]) -> dict[str, str]:
    if not samples:
        return {}
    ordered = sorted(samples)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    return {
        f"latency {origin}, median (ms)": f"{statistics.median(ordered) * 1e3:.1f}",
        f"latency {origin}, p95 (ms)": f"{p95 * 1e3:.1f}",
    }
