"""`ntkit info`: what is installed, and on what it runs."""

from __future__ import annotations

import dataclasses

from ntkit._neural_tangents import FIRST_UNTRIED_JAX, OLDEST_JAX
from ntkit.cli.tables import print_table
from ntkit.kernels.closed_form import ENGINES
from ntkit.runs.environment import device, versions


@dataclasses.dataclass(frozen=True)
class Info:
    """Show versions, devices and the kernel engines that work here."""

    def run(self) -> None:
        """Print the table."""
        import jax

        oldest, untried = (".".join(map(str, version)) for version in (OLDEST_JAX, FIRST_UNTRIED_JAX))
        supported = f"at least {oldest}, below {untried}"
        rows: list[dict[str, object]] = [{"what": name, "value": value} for name, value in versions().items()]
        rows += [{"what": name, "value": value} for name, value in device().items()]
        rows.append({"what": "devices", "value": ", ".join(str(one) for one in jax.devices())})
        rows.append({"what": "JAX versions supported", "value": supported})
        rows.append({"what": "kernel engines", "value": ", ".join(ENGINES)})
        print_table("ntkit", rows)
