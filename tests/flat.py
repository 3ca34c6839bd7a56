"""Long functions with all of their options side by side, where a test is about many of them at once."""

from ntkit import distill, networks, poison
from ntkit.runs import Session

OF_SESSION = ("run", "log_every", "checkpoint_every", "show_progress", "evaluate")
OF_SUPPORT = {"init": "init", "learn": "learn", "support_batch": "batch"}
OF_TARGETS = {"target_batch": "batch", "augment": "augment", "preprocessing": "preprocessing", "loss": "loss"}


def _taken(options, names):
    return {name: options.pop(name) for name in names if name in options}


def kip(kernel, *arguments, ridge=1e-6, **options):
    """`distill.distill` of `KIP`, with the fields of it and of `Support`, `Targets` and `Session` as arguments."""
    support = {OF_SUPPORT[name]: value for name, value in _taken(options, OF_SUPPORT).items()}
    targets = {OF_TARGETS[name]: value for name, value in _taken(options, OF_TARGETS).items()}
    session = Session(**_taken(options, OF_SESSION))
    return distill.distill(
        distill.KIP(kernel, ridge=ridge),
        *arguments,
        support=distill.Support(**support),
        targets=distill.Targets(**targets),
        session=session,
        **options,
    )


def train(*arguments, **options):
    """`networks.train` with the fields of `Session`, and the learning rate of Adam or SGD, as arguments."""
    session = Session(**_taken(options, OF_SESSION))
    rate, schedule = options.pop("learning_rate", 1e-3), options.pop("schedule", "cosine")
    optimizer, steps = options.get("optimizer", "adam"), options.get("steps", 1000)
    if isinstance(optimizer, str) and optimizer in ("adam", "sgd") and isinstance(steps, int) and steps > 0:
        decay_over = steps if schedule == "cosine" else None
        options["optimizer"] = getattr(networks, optimizer)(rate, decay_over=decay_over)
    return networks.train(*arguments, session=session, **options)


def ntga(*arguments, **options):
    """`poison.ntga` with the fields of `Session` as arguments."""
    return poison.ntga(*arguments, session=Session(**_taken(options, OF_SESSION)), **options)
