import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ntkit
from ntkit import data, features, gp, networks, regression
from tests import flat
from tests.precision import in_double

RNG = np.random.default_rng(0)
X = RNG.uniform(size=(12, 4, 4, 1)).astype(np.float32)
NEW = RNG.uniform(size=(5, 4, 4, 1)).astype(np.float32)
Y = np.asarray(data.one_hot(np.arange(12) % 3, 3))
KEY = jax.random.key(0)
FC, CONV = ntkit.ntk(ntkit.fc(2)), ntkit.nngp(ntkit.convnet(1, activation="erf"))
ZCA = data.ZCA.fit(X)


@ntkit.pytree_dataclass
class RBF(ntkit.Kernel):
    scale: float
    name: str = ntkit.static_field(default="mine")

    def gram(self, x1, x2):
        one, other = (x.reshape(len(x), -1) for x in (x1, x1 if x2 is None else x2))
        return jnp.exp(-self.scale * jnp.sum((one[:, None] - other[None]) ** 2, axis=-1))


class Mine(nn.Module):
    width: int
    windows: tuple[int, ...] = (1, 2)

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(self.width)(x.reshape(len(x), -1))))


def trained(module, **options):
    return flat.train(module, X, Y, key=KEY, steps=2, **options)


MODELS = {
    "fit": lambda: regression.fit(FC, X, Y, 1e-3),
    "flow": lambda: regression.flow(FC + 0.5 * FC * CONV, X, Y, 3.0),
    "posterior": lambda: gp.condition(FC, X, Y, 1e-3),
    "ensemble": lambda: gp.ensemble(FC, CONV, X, Y, 3.0),
    "of pixels": lambda: regression.fit(data.of_pixels(CONV, ZCA), X, Y),
    "preprocessed": lambda: data.of_pixels(regression.fit(FC, X, Y), data.Standardize.fit(X)),
    "cg": lambda: regression.fit(FC, X, Y, 1e-2, solver=regression.CG(1e-3)),
    "network": lambda: trained(ntkit.convnet(1).flax(3, width=4)),
    "centred": lambda: trained(ntkit.fc(1).flax(3, width=8), centred=True),
    "cnn": lambda: trained(networks.simple_cnn(3, width=2)),
    "linearized": lambda: networks.linearize(trained(ntkit.fc(1).flax(3, width=8))),
}


@pytest.mark.parametrize("name", MODELS)
def test_predictions_are_the_same_to_the_last_bit(name, tmp_path) -> None:
    model = MODELS[name]()
    ntkit.save(model, tmp_path / "model.npz")
    again = ntkit.load(tmp_path / "model.npz")
    assert type(again) is type(model)
    assert jax.tree.structure(again) == jax.tree.structure(model)
    assert np.array_equal(again(NEW), model(NEW))
    # And once more: what was loaded can be kept.
    ntkit.save(again, tmp_path / "again.npz")
    assert np.array_equal(ntkit.load(tmp_path / "again.npz")(NEW), model(NEW))


def test_networks_of_pixels(tmp_path) -> None:
    model = trained(data.of_pixels(ntkit.fc(1).flax(3, width=8), ZCA), centred=True)
    ntkit.save(model, tmp_path / "model.npz")
    again = ntkit.load(tmp_path / "model.npz")
    assert np.array_equal(again(NEW), model(NEW))
    # It is gone on with.
    assert np.array_equal(trained(again)(NEW), trained(model)(NEW))


@pytest.mark.parametrize(
    "kernel", [FC, CONV, ntkit.ntk(ntkit.fc(1), "neural_tangents"), 2 * FC, data.of_pixels(FC, data.Identity())]
)
def test_kernels(kernel, tmp_path) -> None:
    ntkit.save(kernel, tmp_path / "kernel.npz")
    again = ntkit.load(tmp_path / "kernel.npz")
    assert again.engine == kernel.engine
    assert np.array_equal(again(X, NEW), kernel(X, NEW))


def test_learned_hyper_parameters_and_their_dtypes(tmp_path) -> None:
    learned = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), FC)
    ntkit.save(learned, tmp_path / "kernel.npz")
    again = ntkit.load(tmp_path / "kernel.npz")
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(learned), strict=True):
        assert one.dtype == other.dtype
        assert one == other
    assert jnp.asarray(1.5).weak_type
    weak = jax.tree.map(jnp.asarray, FC)
    ntkit.save(weak, tmp_path / "weak.npz")
    assert all(leaf.weak_type for leaf in jax.tree.leaves(ntkit.load(tmp_path / "weak.npz")))


def test_features_and_the_history_of_a_network(tmp_path) -> None:
    found = features.eigenfeatures(FC, X, Y)
    ntkit.save(found, tmp_path / "features.npz")
    again = ntkit.load(tmp_path / "features.npz")
    assert np.array_equal(again[2](NEW), found[2](NEW))
    network = trained(ntkit.fc(1).flax(3, width=8))
    ntkit.save(network, tmp_path / "network.npz")
    again = ntkit.load(tmp_path / "network.npz")
    assert np.array_equal(again.losses, network.losses)
    assert again.history.keys() == network.history.keys()
    # An attack is compiled once for both.
    assert jax.tree.structure(again) == jax.tree.structure(network)


def test_classes_of_one_s_own(tmp_path) -> None:
    model = regression.fit(RBF(0.5), X, Y)
    ntkit.save(model, tmp_path / "model.npz")
    with pytest.raises(ValueError, match=r"it has a .*test_saving\.RBF, which is not known here; give the class"):
        ntkit.load(tmp_path / "model.npz")
    again = ntkit.load(tmp_path / "model.npz", classes=[RBF])
    assert again.kernel == model.kernel
    assert np.array_equal(again(NEW), model(NEW))
    network = trained(Mine(6))
    ntkit.save(network, tmp_path / "network.npz")
    assert np.array_equal(ntkit.load(tmp_path / "network.npz", classes=[Mine])(NEW), network(NEW))


REFUSED = {
    "a function": (lambda: data.of_pixels(lambda x: x, ZCA), r"as model\.model.*, which has no form in a file"),
    "stax": (lambda: ntkit.from_stax(lambda x1, x2, get: x1), r"got a function as model\.kernel_fn"),
    "empirical": (lambda: ntkit.empirical_ntk(lambda p, x: x @ p, np.ones((3, 2))), r"as model\."),
    "a number": (lambda: 3, "model: got 3, expected a kernel"),
    "a class": (lambda: RBF, "model: got a type as model"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_form_in_a_file(name, tmp_path) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as error:
        ntkit.save(make(), tmp_path / "model.npz")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "model.npz").exists()


def loaded(path):
    """What is in a file, or that it is refused by its name."""
    try:
        return ntkit.load(path)
    except ValueError as error:
        return "refused" if str(error).startswith("path: got ") else str(error)


def test_damaged_and_foreign_files(tmp_path) -> None:
    path = tmp_path / "model.npz"
    ntkit.save(FC, path)
    whole = path.read_bytes()
    for at in range(0, len(whole), 97):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert loaded(path) in (FC, "refused")  # of some bytes of a zip file nothing depends
    for content in (b"", b"text", whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"expected a file that ntkit\.save wrote"):
            ntkit.load(path)
    np.savez(path, images=X)
    with pytest.raises(ValueError, match=r"expected a file that ntkit\.save wrote"):
        ntkit.load(path)
    with pytest.raises(FileNotFoundError):
        ntkit.load(tmp_path / "none.npz")


def test_numbers_of_float64_ask_for_x64(tmp_path) -> None:
    with in_double():
        ntkit.save(regression.fit(FC, X.astype(np.float64), Y), tmp_path / "model.npz")
    with pytest.raises(ValueError, match=r"numbers of float64: jax\.config\.update"):
        ntkit.load(tmp_path / "model.npz")
