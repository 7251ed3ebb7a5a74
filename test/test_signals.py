"""Stop signals, each in a separate process."""

import subprocess
import sys

import pytest

ELSEWHERE = """
import signal, threading
from raymap3r_ros.signals import StopSignal

def receive():
    signal.pthread_kill(threading.get_ident(), signal.{name})

stop = StopSignal()
thread = threading.Timer(0.2, receive)
thread.start()
stop.wait()
print("woken")
"""
BEFORE = """
import os, signal
from raymap3r_ros.signals import StopSignal

stop = StopSignal()
os.kill(os.getpid(), signal.{name})
stop.wait()
print("woken")
"""
BY_HAND = """
import threading
from raymap3r_ros.signals import StopSignal

stop = StopSignal()
threading.Timer(0.2, stop.set).start()
stop.wait()
print("woken")
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("code", [ELSEWHERE, BEFORE], ids=["another thread", "before the wait"])
def test_a_signal_wakes_the_main_thread(code, name):
    assert run(code.format(name=name)) == (0, "woken\n", "")


def test_it_can_be_set_by_hand():
    assert run(BY_HAND) == (0, "woken\n", "")
