import gc
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import ntkit.runs.interruption
from ntkit.runs import Interrupted, Interruptible, Interruption, uninterrupted

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


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", SIGNALS)
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


def test_a_program_under_nohup_outlives_its_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruptible(), Interruption() as interruption:
            signal.raise_signal(signal.SIGHUP)
            assert not interruption.requested
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_program_and_cleaning_up_is_not_disturbed(number):
    before = {each: signal.getsignal(each) for each in (*SIGNALS, signal.SIGALRM)}
    cleaned = []

    def program():
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.5)
            cleaned.append(True)

    with pytest.raises(Interrupted, match=r"^stopped$") as caught, Interruptible():
        program()
    assert caught.value.signal is number
    assert cleaned
    assert {each: signal.getsignal(each) for each in before} == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def in_a_destructor():
    class Dying:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    Dying()


def in_a_callback_of_the_garbage_collector():
    def callback(phase, info):
        gc.callbacks.remove(callback)
        signal.raise_signal(signal.SIGTERM)

    gc.callbacks.append(callback)
    gc.collect()


@pytest.mark.parametrize("lose", [in_a_destructor, in_a_callback_of_the_garbage_collector])
def test_an_interrupt_that_is_lost_comes_again(lose, capsys):
    def program():
        lose()
        time.sleep(10)

    with pytest.raises(Interrupted) as caught, Interruptible():
        program()
    assert caught.value.signal is signal.SIGTERM
    assert capsys.readouterr().err == ""


def test_an_interrupt_that_is_lost_before_a_loop_lets_the_loop_finish_its_step():
    with Interruptible():
        in_a_destructor()
        with Interruption() as interruption:
            deadline = time.monotonic() + 10
            while not interruption.requested and time.monotonic() < deadline:
                time.sleep(0.01)
        assert interruption.signal is signal.SIGTERM


def test_what_an_import_makes_of_an_interrupt_is_one():
    def half_done():
        try:
            signal.raise_signal(signal.SIGINT)
        except BaseException:
            raise ImportError("numpy._core.multiarray failed to import") from None

    with pytest.raises(Interrupted, match=r"^stopped$"), Interruptible():
        half_done()


def test_what_belongs_together_is_done_before_a_signal():
    done = []

    def program():
        with uninterrupted():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            done.append(True)
        done.append(False)

    with pytest.raises(Interrupted) as caught, Interruptible():
        program()
    assert done == [True]
    assert caught.value.signal is signal.SIGTERM
    with Interruption() as interruption:
        with uninterrupted():
            signal.raise_signal(signal.SIGTERM)
            assert not interruption.requested
        assert interruption.signal is signal.SIGTERM
