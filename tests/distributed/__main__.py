"""Run every check of this package over all devices: `python -m tests.distributed DIRECTORY [ADDRESS PROCESS]`.

A process takes seconds to start, so all checks share it. With an address it is one of two processes, which run the
same checks; the mesh is over the devices of both. A check is a function `check_*(mesh, directory)` of one of `MODULES`.
"""

import importlib
import sys
from pathlib import Path

import jax
import numpy as np

from ntkit.cli.distributed import DistributedOptions

MODULES = ("checks_gram", "checks_kip", "checks_regression", "checks_cli")


def main(directory: str, address: str | None = None, process: str | None = None) -> None:
    if address is not None:
        DistributedOptions(distributed=True, coordinator=address, processes=2, process=int(process)).start()
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, -1), ("rows", "columns"))
    for module in MODULES:
        checks = vars(importlib.import_module(f"tests.distributed.{module}"))
        for name, check in checks.items():
            if name.startswith("check_"):
                # The last line of a run that hangs or dies says where.
                print(name, flush=True)
                check(mesh, Path(directory))
    print("all passed", flush=True)


main(*sys.argv[1:])
