"""Several processes that run one command: how they find each other, agree, and end."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import inspect
import os
import re
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Iterator
from typing import Annotated, Any

import jax
import numpy as np

from ntkit.cli.ranges import Integers
from ntkit.runs import environment
from ntkit.runs.processes import Group

# After how many seconds without a sign of life a process is taken for dead. JAX's own are 100.
HEARTBEAT_SECONDS = 20

# JAX's own variable, for an address to listen on that the others do not know, as behind a router.
_BIND = "JAX_COORDINATOR_BIND_ADDRESS"

# Options that each process may have its own of.
_OWN = ("coordinator", "process", "out", "resume", "data_dir")


@dataclasses.dataclass(frozen=True)
class DistributedOptions:
    """On which devices: all that JAX sees, or those of all processes that were started together."""

    distributed: bool = False
    """Use all devices of all processes that run this same command. JAX finds the others by itself on TPU slices and
    under SLURM, Open MPI or Kubernetes; elsewhere the next three options say who they are."""

    coordinator: str | None = None
    """Address of the first process, HOST:PORT, that it listens on and that the others reach it by."""

    processes: Annotated[int, Integers(1, 2**16)] | None = None
    """Number of processes."""

    process: Annotated[int, Integers(0)] | None = None
    """Number of this one, from 0. Process 0 writes and prints the results."""

    def start(self) -> None:
        """Connect to the other processes, and check that they have the same options.

        JAX must not have computed anything before.
        """
        by_hand = {"coordinator": self.coordinator, "processes": self.processes, "process": self.process}
        given = {name: value for name, value in by_hand.items() if value is not None}
        for name, value in given.items():
            if not self.distributed:
                raise ValueError(f"{name}: got {value!r}, expected --distributed beside it")
        if not self.distributed:
            return
        for name in by_hand:
            if given and name not in given:
                raise ValueError(f"{name}: got none, expected it beside {', '.join(f'--{other}' for other in given)}")
        if given:
            self._check_by_hand()
        if not jax.distributed.is_initialized():  # or else by a program that runs this command
            self._connect(bool(given))
        if not self.group().leads:
            warnings.simplefilter("ignore")  # process 0 gives them too
        self._check_same()

    def mesh(self) -> jax.sharding.Mesh | None:
        """Give a mesh of all devices, or None for a single one of a single process."""
        devices = np.array(jax.devices())
        return jax.sharding.Mesh(devices, ("all",)) if self.distributed or devices.size > 1 else None

    def group(self) -> Group:
        """Give the processes that run this command."""
        return Group(self.distributed and jax.process_count() > 1)

    @contextlib.contextmanager
    def working(self) -> Iterator[Group]:
        """Give the processes that run this command; where one of them ends early, end too, with a line that says so."""
        group = self.group()
        if not group.several:
            yield group
            return
        command = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", type(self).__name__).lower()
        line = f"ntkit {command}: another process has ended, or cannot be reached; what is saved can be resumed"
        _say_when_aborted(line)
        self._check_same()
        try:
            yield group
        except Exception as error:
            # The runtime's own errors begin with the name of a status, whatever their type.
            status = re.match(r"(?!RESOURCE_EXHAUSTED)[A-Z]{3,}[A-Z_]*: .*", str(error))
            if status is not None:
                print(f"{line} ({status[0]})", file=sys.stderr)
            elif isinstance(error, ValueError | OSError | ArithmeticError) or type(error) is RuntimeError:
                raise  # in all processes, or when the others have ended
            else:
                traceback.print_exc()
            # Not an ordinary exit, which would wait for the others, as they for this one.
            sys.stderr.flush()
            os._exit(1 if status is None else 2)

    def _check_by_hand(self) -> None:
        host, _, port = (self.coordinator or "").rpartition(":")
        # An IPv6 address has brackets around it.
        if not (re.fullmatch(r"\[[^\[\]]+\]|[^:\[\]]+", host) and port.isdecimal() and 0 < int(port) < 2**16):
            raise ValueError(f"coordinator: got {self.coordinator!r}, expected HOST:PORT")
        processes, process = self.processes or 0, -1 if self.process is None else self.process
        if not 0 <= process < processes:
            raise ValueError(f"process: got {process}, expected 0 to {processes - 1}")
        if process == 0 and _BIND not in os.environ:
            self._check_free(host.strip("[]"), int(port))

    def _check_free(self, host: str, port: int) -> None:
        """Require that this process can listen at an address: JAX's own message is of many lines."""
        try:
            for family, kind, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                with socket.socket(family, kind) as listener:
                    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    listener.bind(address)
        except OSError as error:
            raise ConnectionError(
                f"coordinator: got {self.coordinator!r}, expected an address of this machine with a free port: "
                f"{error.strerror}"
            ) from error

    def _connect(self, by_hand: bool) -> None:
        if "JAX_CPU_COLLECTIVES_IMPLEMENTATION" not in os.environ:
            # The older JAX has none by default.
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        options: dict[str, Any] = {}
        if "heartbeat_timeout_seconds" in inspect.signature(jax.distributed.initialize).parameters:
            options["heartbeat_timeout_seconds"] = HEARTBEAT_SECONDS
        if by_hand and _BIND not in os.environ:
            # By default it is all addresses of this machine.
            options["coordinator_bind_address"] = self.coordinator
        try:
            jax.distributed.initialize(self.coordinator, self.processes, self.process, **options)
        # JAX's own for a cluster that it does not find, XLA's for an address that does not answer.
        except (ValueError, RuntimeError) as error:
            if by_hand:
                raise ConnectionError(f"coordinator: got {self.coordinator!r}: {error}") from error
            raise ValueError(
                "distributed: got no cluster that JAX can find, expected a TPU slice, SLURM, Open MPI or Kubernetes, "
                "or --coordinator, --processes and --process"
            ) from error

    def _check_same(self) -> None:
        """Require the same options in all processes: with others they would compute one thing of two kinds."""
        group = self.group()
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        device = environment.device()
        settings = {name: device[name] for name in ("x64", "matmul_precision", "prng")}
        # First what decides how many more there are to compare.
        group.check_same(command=type(self).__name__, resume=options.get("resume") is not None, settings=settings)
        group.check_same(**{name: value for name, value in options.items() if name not in _OWN})


# Options that say where a command runs, and not what it computes.
DISTRIBUTED = tuple(field.name for field in dataclasses.fields(DistributedOptions))

_handlers: list[Any] = []


def _say_when_aborted(line: str) -> None:
    """Have the last word where JAX's runtime aborts this process, as it does when another one has died."""
    if os.name != "posix" or _handlers:
        return

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def say(number: int) -> None:
        os.write(2, f"{line}\n".encode())
        os._exit(2)

    # Python's own handlers run in the main thread, later: an abort does not wait for that.
    ctypes.CDLL(None).signal(signal.SIGABRT, say)
    _handlers.append(say)
