import collections
import contextlib
import io
import os
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntkit.runs import Run
from ntkit.runs.checkpoints import latest

Pair = collections.namedtuple("Pair", ["left", "right"])


@pytest.fixture
def run(tmp_path):
    return Run.create(tmp_path / "run", {})


def bits(leaf):
    if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(leaf.dtype), leaf.shape, np.asarray(jax.random.key_data(leaf)).tobytes()
    if isinstance(leaf, np.generic | np.ndarray | jax.Array):
        return type(leaf), str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes(), getattr(leaf, "weak_type", None)
    return type(leaf), repr(leaf)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, left), right in zip(jax.tree_util.tree_flatten_with_path(a)[0], jax.tree.leaves(b), strict=True):
        assert bits(left) == bits(right), jax.tree_util.keystr(path)


def blank(leaf):
    """A leaf of the same type with other bits."""
    if isinstance(leaf, str | bool | int | float):
        return type(leaf)()
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(99, impl=jax.random.key_impl(leaf)), leaf.shape)
    if isinstance(leaf, np.generic):
        return type(leaf)(0)
    return np.zeros_like(leaf) if isinstance(leaf, np.ndarray) else jnp.zeros(leaf.shape, leaf.dtype)


def everything():
    odd = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, 1 / 3], np.float32)
    odd.view(np.uint32)[2] |= 0x1234  # a NaN with a message in it
    return {
        "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(4), (2, 3)),
        "rbg": jax.random.key(5, impl="rbg"),
        "old key": jax.random.PRNGKey(6),
        "odd": jnp.asarray(odd),
        "negative zeros": jnp.full((4,), -0.0),
        "numpy zeros": np.full((2, 2), -0.0),
        "bfloat16": jnp.arange(5, dtype=jnp.bfloat16) / 3,
        "half": jnp.arange(5, dtype=jnp.float16) / 3,
        "scalar": jnp.float32(0.1),
        "weak": jnp.asarray(0.1),
        "weak array": jnp.broadcast_to(jnp.asarray(0.1), (3,)),
        "bool": jnp.array([True, False]),
        "empty": jnp.zeros((0, 3)),
        "float64": np.random.default_rng(0).normal(size=(3, 4)),
        "generic": np.float64(1 / 3),
        "complex": np.array([1 + 2j]),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "nested": [Pair((1, 2.5), None), (), {"flag": True, "name": "κ", "big": 2**70, "nan": float("nan")}],
    }


def test_every_kind_of_leaf_returns_bit_for_bit(run):
    state = everything()
    run.save(7, state)
    step, restored = Run.resume(run.path).restore(jax.tree.map(blank, state))
    assert step == 7
    assert_same(state, restored)
    assert isinstance(restored["nested"][0], Pair)
    assert jax.random.normal(restored["key"]) == jax.random.normal(state["key"])


def test_an_optimizer_state_and_abstract_likes(run):
    optax = pytest.importorskip("optax")
    optimizer = optax.chain(optax.clip(1.0), optax.adam(optax.cosine_decay_schedule(1e-2, 10)))
    params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    _, state = optimizer.update(params, optimizer.init(params), params)
    run.save(1, (params, state, jax.random.key(0)))
    like = jax.eval_shape(lambda: (params, optimizer.init(params), jax.random.key(1)))
    _, restored = run.restore(like)
    assert_same((params, state, jax.random.key(0)), restored)


def test_restored_arrays_stay_movable(run):
    """An array that JAX may place freely must not come back bound to a device."""
    free, bound = jnp.ones(2), jax.device_put(jnp.ones(2), jax.devices()[0])
    run.save(1, [free, bound])
    _, restored = run.restore([free, bound])
    committed = [getattr(x, "committed", getattr(x, "_committed", None)) for x in restored]
    assert committed == [False, True]


@pytest.mark.slow
def test_arrays_over_several_devices(tmp_path):
    code = f"""
import jax, numpy as np
from ntkit.runs import Run
from jax.sharding import NamedSharding, PartitionSpec as P
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("d",))
x = jax.device_put(np.arange(16.0, dtype=np.float32).reshape(8, 2), NamedSharding(mesh, P("d")))
run = Run.create({str(tmp_path / "run")!r}, {{}})
run.save(1, {{"x": x}})
_, state = run.restore({{"x": x * 0}})
assert state["x"].sharding == x.sharding and (state["x"] == x).all(), state
"""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_last_two_steps_are_kept(run):
    for step in (0, 10, 20, 30):
        run.save(step, step)
    assert sorted(os.listdir(run.path / "checkpoints")) == ["00000020.npz", "00000030.npz"]
    assert run.step == 30
    assert run.restore(0) == (30, 30)


def test_saving_a_step_again_replaces_it(run):
    run.save(1, 1)
    for value in range(12):
        run.save(2, value)
    assert run.restore(0) == (2, 11)
    assert sorted(os.listdir(run.path / "checkpoints")) == ["00000001.npz", "00000002.npz"]


def test_bad_steps_and_states(run):
    run.save(5, {"x": 1})
    with pytest.raises(ValueError, match=r"step: got 4, expected at least 5, the step of the latest checkpoint"):
        run.save(4, {"x": 1})
    with pytest.raises(ValueError, match=r"step: got -1, expected an integer of at least 0"):
        run.save(-1, {"x": 1})
    for leaf, name in (
        (object(), "object"),
        (np.array(["a"]), "ndarray"),
        (jax.ShapeDtypeStruct((1,), jnp.float32), "ShapeDtypeStruct"),
    ):
        with pytest.raises(ValueError, match=rf"state\['x'\]\[1\]: got {name}, expected an array, "):
            run.save(6, {"x": [0, leaf]})
    assert run.restore({"x": 0}) == (5, {"x": 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": jnp.ones((3, 2))}, r"like\['x'\]: got float32\[3, 2\], expected float32\[2, 3\]"),
        ({"x": np.ones((2, 3))}, r"like\['x'\]: got float64\[2, 3\]"),
        ({"k": jax.random.key(0, impl="rbg")}, r"like\['k'\]: got key<rbg>.*, expected key<fry>\[\]"),
        ({"k": jax.random.PRNGKey(0)}, r"like\['k'\]: got .*, expected key<fry>"),
        ({"k": object()}, r"like\['k'\]: got object, expected key<fry>\[\]"),
        ({"n": 1.0}, r"like\['n'\]: got float, expected int"),
        ({"z": 1}, r"like: got a state with \['z'\] too many and nothing too few"),
        ({"n": None}, r"like: got a state with nothing too many and \['n'\] too few"),
    ],
)
def test_a_like_of_another_structure(run, change, message):
    state = {"x": jnp.ones((2, 3)), "k": jax.random.key(0), "n": 1}
    run.save(1, state)
    with pytest.raises(ValueError, match=message):
        run.restore(state | change)
    assert run.step == 1


def test_a_half_written_checkpoint_is_ignored_and_swept(run):
    run.save(1, {"x": jnp.ones(3)})
    folder = run.path / "checkpoints"
    (folder / ".00000002.npz.0123456789ab.tmp").write_bytes(b"PK")
    assert run.step == 1
    assert run.restore({"x": jnp.zeros(3)})[0] == 1
    assert os.listdir(folder) == ["00000001.npz"]


def flipped(content, at, bit):
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


def test_a_flipped_bit_never_gives_another_state(run):
    for step in (1, 2):
        run.save(step, everything() | {"step": step})
    folder = run.path / "checkpoints"
    path, whole = folder / "00000002.npz", latest(folder)
    content = path.read_bytes()
    unnoticed = 0
    for at in range(0, len(content), 11):
        path.write_bytes(flipped(content, at, at % 8))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = latest(folder)
        if found.step == 2:
            # A bit that says nothing of the state, such as the date in the archive.
            unnoticed += 1
            assert not caught
            assert (found.leaves, found.notes) == (whole.leaves, whole.notes)
            assert found.arrays.keys() == whole.arrays.keys()
            assert all(found.arrays[name].tobytes() == whole.arrays[name].tobytes() for name in whole.arrays)
        else:
            assert found.step == 1
            assert ["cannot be read" in str(warning.message) for warning in caught] == [True], str(caught[0])
            assert "\n" not in str(caught[0].message)
            assert (folder / "00000002.npz.damaged").exists()
    assert unnoticed < 0.2 * len(content) / 11


@pytest.mark.parametrize("damage", ["empty", "half", "missing", "foreign", "directory", "swapped"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(run, damage):
    for step in (1, 2):
        run.save(step, {"x": jnp.ones(3) * step})
    path = run.path / "checkpoints" / "00000002.npz"
    content = path.read_bytes()
    path.unlink()
    if damage == "directory":
        path.mkdir()
    elif damage == "foreign":
        np.savez(path, x=np.ones(3))
    elif damage == "swapped":
        # A sound archive, of which one array is another one.
        with np.load(io.BytesIO(content)) as archive:
            np.savez(path, **{**archive, "0": np.full(3, 7, np.float32)})
    elif damage != "missing":
        path.write_bytes(content[: len(content) // 2] if damage == "half" else b"")
    with (
        contextlib.nullcontext() if damage == "missing" else pytest.warns(UserWarning, match=r"00000002\.npz cannot be")
    ):
        step, state = run.restore({"x": jnp.zeros(3)})
    assert step == 1
    assert (state["x"] == 1).all()
    run.save(2, {"x": jnp.ones(3) * 3})
    assert run.restore({"x": jnp.zeros(3)})[1]["x"][0] == 3
    assert (run.path / "checkpoints" / "00000002.npz.damaged").exists() == (damage != "missing")


def test_no_readable_checkpoint_is_an_error_not_a_new_beginning(run):
    for step in (1, 2):
        run.save(step, {"x": jnp.ones(3)})
    run.log(1, loss=1.0)
    paths = sorted((run.path / "checkpoints").iterdir())
    for path in paths:
        path.write_bytes(flipped(path.read_bytes(), 400, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            OSError, match=r"none of the checkpoints .* can be read \(00000002\.npz: .*; 00000001"
        ) as caught:
            run.restore({"x": jnp.zeros(3)})
    assert "\n" not in str(caught.value)
    assert sorted((run.path / "checkpoints").iterdir()) == paths
    assert len(run.metrics()) == 1


def test_checkpoints_of_an_older_form_are_no_new_beginning(run):
    (run.path / "checkpoints" / "00000005" / "arrays").mkdir(parents=True)
    run.log(1, loss=1.0)
    with pytest.raises(OSError, match="none of the checkpoints"):
        run.restore({"x": 1})
    assert len(run.metrics()) == 1


def test_a_configuration_changed_after_the_checkpoint_is_refused(run):
    run.save(3, {"x": jnp.ones(3)})
    path = run.path / "config.json"
    path.write_text(path.read_text().replace('"config": {}', '"config": {"seed": 1}'))
    changed = Run.resume(run.path)
    with pytest.raises(
        ValueError, match=r"config\.json.*checkpoint of step 3; these keys differ: seed: .* nothing, .* 1"
    ):
        changed.restore({"x": jnp.zeros(2)})


def test_saving_and_restoring_are_quiet(run, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.save(1, everything())
        run.restore(everything())
    assert capfd.readouterr() == ("", "")


# A chaotic loop, so that one lost, doubled or rounded step changes every bit of the end. Imports are done once:
# every run is a fork, and the process that forks never starts JAX's backend, whose threads a fork would lose.
KILLS = """
import os, random, signal, sys, time, warnings
import jax, jax.numpy as jnp, numpy as np
from ntkit.runs import Run

warnings.filterwarnings("ignore", "os.fork")
config, steps = {"steps": 24}, 24

def update(state):
    key, noise = jax.random.split(state["key"])
    x = 3.99 * state["x"] * (1 - state["x"]) * (1 - 1e-3 * jax.random.uniform(noise, state["x"].shape))
    return {"x": x, "key": key, "n": state["n"] + 1}

def loop(path, resume, ready):
    state = {"x": jnp.linspace(0.1, 0.9, 50_000), "key": jax.random.key(0), "n": 0}
    run = Run.resume(path, config) if resume else Run.create(path, config)
    step, state = run.restore(state) or (0, state)
    os.write(ready, b"x")
    while step < steps:
        state = update(state)
        step += 1
        run.log(step, loss=jnp.mean(state["x"]))
        run.save(step, state)
    np.save(path + ".npy", np.asarray(state["x"]))
    assert state["n"] == steps

def fork(path, resume, delay):
    listen, ready = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            loop(path, resume, ready)
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    os.close(ready)
    os.read(listen, 1)
    os.close(listen)
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

undisturbed, killed = sys.argv[1:]
assert fork(undisturbed, False, None) == 0
dice = random.Random(1)
kills = sum(fork(killed, attempt > 0, dice.uniform(0.05, 0.5)) == -signal.SIGKILL for attempt in range(5))
print(kills)
assert fork(killed, True, None) == 0
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_at_any_moment_then_resume_ends_in_the_same_bits(tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", KILLS, undisturbed, killed], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1
    one, other = np.load(f"{undisturbed}.npy"), np.load(f"{killed}.npy")
    assert one.tobytes() == other.tobytes()
    assert (undisturbed / "metrics.jsonl").read_bytes() == (killed / "metrics.jsonl").read_bytes()
