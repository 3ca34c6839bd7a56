"""`ntkit info`: what is installed, and on what it runs."""

from __future__ import annotations

import dataclasses
from typing import Any

from ntkit import _neural_tangents as nt
from ntkit.cli.tables import print_tables
from ntkit.kernels.closed_form import ENGINES
from ntkit.runs import Result
from ntkit.runs.environment import device, versions


@dataclasses.dataclass(frozen=True)
class Info:
    """Show versions, devices and the kernel engines that work here."""

    def run(self) -> None:
        """Print the table."""
        import jax

        oldest, newest = (".".join(map(str, version)) for version in (nt.OLDEST_JAX, nt.NEWEST_TRIED_JAX))
        supported = f"{oldest} or newer; neural-tangents is tried up to {newest}"
        engines = [name for name in ENGINES if name != "neural_tangents" or nt.is_installed()]
        rows: list[dict[str, Any]] = [{"what": name, "value": value} for name, value in versions().items()]
        rows += [{"what": name, "value": value} for name, value in device().items()]
        rows.append({"what": "devices", "value": ", ".join(str(one) for one in jax.devices())})
        rows.append({"what": "JAX versions supported", "value": supported})
        rows.append({"what": "kernel engines", "value": ", ".join(engines)})
        print_tables(Result("ntkit", tables={"info": rows}))
