"""Long texts in log and diagnostics, and the throttle of repeated problems."""

from raymap3r_ros.node.diagnostics import Monitor
from raymap3r_ros.node.reporter import Reporter
from raymap3r_ros.text import LONGEST_TEXT

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
