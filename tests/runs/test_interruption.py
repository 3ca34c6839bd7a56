import os
import signal
import subprocess
import sys
import threading

import pytest

import ntkit.runs.interruption
from ntkit.runs import Interruption

# The module alone, since importing the whole package takes a second.
LOOP = f"""
import runpy, sys, time
Interruption = runpy.run_path({ntkit.runs.interruption.__file__!r})["Interruption"]
try:
    with Interruption() as interruption:
        print("ready", flush=True)
        deadline = time.monotonic() + 20
        while not interruption.requested and time.monotonic() < deadline:
            time.sleep(0.01)
        print("saved after", interruption.signal.name, flush=True)
        if "stubborn" in sys.argv:
            time.sleep(20)
except KeyboardInterrupt:
    print("at once", flush=True)
"""


def start(*arguments):
    child = subprocess.Popen(
        [sys.executable, "-c", LOOP, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "ready\n"
    return child


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_lets_the_step_finish(number):
    child = start()
    child.send_signal(number)
    output, errors = child.communicate(timeout=20)
    assert output == f"saved after {number.name}\n"
    assert f"{number.name}: finishing the step…" in errors
    assert child.returncode == 0


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_stops_at_once(first):
    child = start("stubborn")
    child.send_signal(first)
    assert child.stdout.readline() == f"saved after {first.name}\n"
    child.send_signal(signal.SIGTERM)
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=10)[0] == "at once\n"


def test_previous_handlers_return():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interruption() as interruption:
        assert signal.getsignal(signal.SIGINT) != before[0]
        assert not interruption.requested
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.requested
        assert interruption.signal is signal.SIGINT
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    with pytest.raises(RuntimeError), Interruption():
        raise RuntimeError
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_in_another_thread_it_does_nothing():
    seen = []

    def work():
        with Interruption() as interruption:
            seen.append((interruption.requested, signal.getsignal(signal.SIGINT)))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
