"""Long texts in log and diagnostics, and the throttle of repeated problems."""

from raymap3r_ros.node.diagnostics import Monitor
from raymap3r_ros.node.reporter import Reporter
from raymap3r_ros.text import LONGEST_TEXT, THROTTLE

REMEDY = "convert the checkpoint again"


class Log:
    def __init__(self):
        self.lines = []
        self.debug = self.info = self.warning = self.error = self.lines.append


def test_long_error_keeps_its_remedy_in_log_and_diagnostics():
    log, monitor = Log(), Monitor()
    Reporter(log, monitor).fail(f"the file has other tensors: {'blocks.0.weight, ' * 1000}; {REMEDY}")
    message = monitor.status("node", "active", {}).message
    for text in (log.lines[0], message.split("; no images")[0]):
        assert text.startswith("the file has other tensors: blocks.0") and REMEDY in text
        assert len(text) < LONGEST_TEXT + 10


def test_foreign_text_does_not_defeat_the_throttle():
    log = Log()
    reporter = Reporter(log, Monitor())
    for number in range(200):
        reporter.fail(f"the callback failed: {'x' * number}", throttle=True, problem="the callback")
    assert len(log.lines) == 1


def test_what_stands_is_logged_when_it_begins_or_changes_but_not_more_often_than_the_throttle(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    log, monitor = Log(), Monitor()
    reporter = Reporter(log, monitor)
    for number in range(40):  # two drivers, and a third that comes and goes
        reporter.stand("publishers", f"/image has several publishers: {', '.join('abc'[: 2 + number % 2])}")
        clock[0] += 0.5
    assert 2 <= len(log.lines) <= 1 + 20 / THROTTLE
    assert "a, b, c" in monitor.status("node", "active", {}).message
    log.lines.clear()
    clock[0] += THROTTLE
    for number in range(10):
        reporter.stand("silence", f"nothing for {number} s", again=number == 9)
        clock[0] += 1
    assert log.lines == ["nothing for 0 s", "nothing for 9 s"]
    reporter.stand("silence", "")
    clock[0] += THROTTLE
    reporter.stand("silence", "nothing for 5 s")
    assert len(log.lines) == 3
