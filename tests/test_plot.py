import io
import os

import numpy as np
import pytest
from matplotlib.text import Text

from ntkit import plot
from ntkit.features import Sweep
from ntkit.networks import Convergence, Dynamics
from ntkit.runs import Result

DYNAMICS = Dynamics((0, 1, 2), np.stack([np.eye(4), np.eye(4) + 1, np.diag([1.0, 2, 3, 4])]))
CONVERGENCE = Convergence((0, 1), np.array([2.0, 1.0]), np.ones(2), np.ones((2, 2)), np.ones((2, 2)))
SWEEP = Sweep(*(np.array([0.5, 0.25]) for _ in range(5)))


def render(figure):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def tiles(screen, image):
    """How often an image, given as whole numbers 0…255, stands on the screen, enlarged by some whole factor."""
    screen, image = (np.dot(x.astype(np.int32), (65536, 256, 1)) for x in (screen, image))
    for zoom in range(1, 60):
        tile = np.repeat(np.repeat(image, zoom, 0), zoom, 1)
        h, w = tile.shape
        if h > screen.shape[0] or w > screen.shape[1]:
            break
        bottom, right = screen.shape[0] - h + 1, screen.shape[1] - w + 1
        corners = (screen[:bottom, :right] == tile[0, 0]) & (screen[h - 1 :, w - 1 :] == tile[-1, -1])
        corners &= (screen[h - 1 :, :right] == tile[-1, 0]) & (screen[:bottom, w - 1 :] == tile[0, -1])
        found = sum(np.array_equal(screen[y : y + h, x : x + w], tile) for y, x in np.argwhere(corners))
        if found:
            return found
    return 0


def codes(shape, seed=0):
    """Random images as 0…255, each of which uses the whole range."""
    values = np.random.default_rng(seed).integers(0, 256, shape)
    values[:, 0, 0], values[:, -1, -1] = 0, 255
    return values


@pytest.mark.parametrize(
    ("n", "shape"),
    [(10, (8, 8, 1)), (100, (8, 8, 1)), pytest.param(500, (8, 8, 1), marks=pytest.mark.slow), (20, (32, 32, 3))],
)
def test_every_pixel_is_shown_as_it_is(n, shape):
    values = codes((n, *shape))
    labels = np.eye(10)[np.arange(n) % 10] - 0.1
    figure = plot.image_grid(3 * values / 255 - 1, labels, title="title")
    assert len(figure.axes) == 1
    screen = render(figure)
    assert screen.shape[1] * figure.get_figheight() == pytest.approx(screen.shape[0] * figure.get_figwidth())
    for index in (0, n - 1):
        assert tiles(screen, np.broadcast_to(values[index], (*shape[:2], 3))) == 1


def test_scales():
    values = codes((2, 4, 4, 3))
    images = np.stack([values[0] / 255, values[1] / 510])
    assert tiles(render(plot.image_grid(images)), values[1]) == 1
    shared = render(plot.image_grid(images, scale="grid"))
    assert tiles(shared, values[0]) == 1
    assert tiles(shared, values[1]) == 0
    shifted = render(plot.image_grid(images * 2 - 1, scale=(-1.0, 1.0)))
    # Half the codes lie midway between two and may be rounded either way.
    assert np.abs(shifted.astype(int) - shared).max() <= 1
    assert tiles(render(plot.image_grid(images * 9 - 4, scale=(0.0, 1.0))), values[0]) == 0


def test_constant_and_diverged_images_are_drawn():
    images = np.zeros((3, 4, 4, 1))
    images[1], images[2, 0, 0] = 7, np.nan
    labels = np.full((3, 3), np.nan)
    labels[0] = 0
    assert render(plot.image_grid(images, labels)).size


def test_one_band_per_class():
    names = ["cat", "dog", "owl"]
    labels = np.repeat(np.arange(3), 4)
    figure = plot.image_grid(codes((12, 8, 8, 1)), labels, class_names=names)
    assert [text.get_text() for text in figure.axes[0].texts] == names
    heights = [text.get_position()[1] for text in figure.axes[0].texts]
    assert heights == sorted(heights)
    shuffled = np.random.default_rng(0).permutation(12)
    again = plot.image_grid(codes((12, 8, 8, 1))[shuffled], labels[shuffled], class_names=names)
    assert render(again).shape == render(figure).shape


def test_a_single_image_per_class_is_named_above():
    figure = plot.image_grid(codes((3, 8, 8, 1)), np.eye(3)[[2, 0, 1]], class_names=["a", "b"], title="t")
    assert [text.get_text() for text in figure.axes[0].texts] == ["t", "a", "b", "2"]


def test_bars_have_the_colours_of_own_and_other_class():
    labels = np.array([[0.9, 0.1, -0.1], [0.2, 0.7, 0.1]])
    images = np.zeros((2, 8, 8, 1))
    blue, orange = (47, 111, 219), (232, 89, 12)

    def count(figure, colour):
        return int(np.all(render(figure) == colour, axis=-1).sum())

    own = plot.image_grid(images, labels)
    assert count(own, blue) > 0
    assert count(own, orange) == 0
    moved = plot.image_grid(images, labels, classes=[0, 0])
    assert count(moved, orange) > 0
    # Heights are on one scale: 0.9 and 0.2 for the class of the band, 0.7 for the other.
    assert count(moved, blue) / count(moved, orange) == pytest.approx(1.1 / 0.7, rel=0.1)


def test_many_classes_and_one_output_are_said_in_words():
    labels = np.full((2, 100), -0.01)
    labels[0, 42], labels[1, 7] = 0.5, 0.25
    figure = plot.image_grid(np.zeros((2, 8, 8, 1)), labels, classes=[42, 8])
    words = [text.get_text() for text in figure.axes[0].texts]
    assert "42 0.50" in words
    assert "7 0.25" in words
    binary = plot.image_grid(np.zeros((3, 8, 8, 1)), [[-0.5], [0.25], [1.0]], class_names=["no", "yes"])
    words = [text.get_text() for text in binary.axes[0].texts]
    assert words == ["no", "-0.50", "yes", "+0.25", "+1.00"]


def test_columns():
    wide = render(plot.image_grid(np.zeros((6, 8, 8, 1)), columns=6))
    narrow = render(plot.image_grid(np.zeros((6, 8, 8, 1)), columns=1))
    assert wide.shape[1] > 3 * wide.shape[0]
    assert narrow.shape[0] > 3 * narrow.shape[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": np.zeros((2, 64))}, r"images: got shape \(2, 64\), expected \(n, height, width, channels\)"),
        ({"images": np.zeros((2, 8, 8, 2))}, r"images: got .*, expected .* 1 or 3 channels"),
        ({"images": np.zeros((0, 8, 8, 1))}, "images: got .*, expected"),
        ({"labels": np.zeros((3, 10))}, r"labels: got shape \(3, 10\), expected soft labels \(2, C\) or "),
        ({"labels": np.zeros(2)}, "labels: got .*, expected"),
        ({"labels": [1, 2, 3]}, r"labels: got .*, expected integers \(2,\)"),
        ({"classes": [0.5, 1.5]}, r"classes: got float64 of shape \(2,\), expected integers \(2,\)"),
        ({"columns": 0}, "columns: got 0, expected an integer of at least 1"),
        ({"scale": "image "}, "scale: got 'image ', expected 'image', 'grid' or"),
        ({"scale": (1, 0)}, "scale: got"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        plot.image_grid(**{"images": np.zeros((2, 8, 8, 1)), **arguments})


def test_history_panels():
    metrics = [{"step": s, "loss": 1 / s, "seconds": 2.0} for s in range(1, 500)]
    metrics += [{"step": s, "test_accuracy": 0.5, "robust_accuracy": 0.25, "note": "x"} for s in (100, 200)]
    figure = plot.history(metrics, title="run")
    left, right = figure.axes
    assert left.get_yscale() == "log"
    assert right.get_yscale() == "linear"
    assert np.array_equal(left.lines[0].get_ydata(), [1 / s for s in range(1, 500)])
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["test accuracy", "robust accuracy"]
    assert render(figure).size


@pytest.mark.parametrize(
    "metrics",
    [
        [],
        [{"step": 1, "note": "x"}],
        [{"step": 1, "loss": 0.0}],
        [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": float("inf")}],
        [{"step": 1, "accuracy": 0.5}],
        [{"step": s, "loss": 0.0 if s == 300 else 1.0} for s in range(400)],
    ],
)
def test_histories_of_short_and_failed_runs(metrics):
    assert render(plot.history(metrics)).size


def rows_of(network, steps, **accuracies):
    return [
        {"network": network, "steps": step, "accuracy": {name: values[i] for name, values in accuracies.items()}}
        for i, step in enumerate(steps)
    ]


def test_transfer_panels():
    clean, kernel = [[0.8, 1.0], [0.9, 0.9]], [[0.25], [0.5]]
    rows = rows_of("wide", (10, 1000), clean=clean, white_box=kernel) + rows_of("narrow", (10,), clean=clean)
    figure = plot.transfer(rows[::-1], names={"clean": "as they are"}, title="title")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["narrow", "wide"]
    wide = figure.axes[1]
    assert wide.get_xscale() == "log"
    drawn = {line.get_label(): line.get_xydata() for line in wide.lines}
    np.testing.assert_allclose(drawn["as they are"], [[10, 0.9], [1000, 0.9]])
    np.testing.assert_allclose(drawn["white_box"], [[10, 0.25], [1000, 0.5]])
    # One standard deviation on either side, at the first time only.
    band = wide.collections[0].get_paths()[0].vertices
    assert {round(float(y), 6) for x, y in band if x == 10} >= {0.8, 1.0}
    assert {round(float(y), 6) for x, y in band if x == 1000} == {0.9}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["as they are", "white_box"]
    assert render(figure).size
    assert len(plot.transfer([{**row, "network": str(i)} for i in range(5) for row in rows]).axes) == 5
    with pytest.raises(ValueError, match=r"rows: got \[\], expected one row or more"):
        plot.transfer([])


def test_save_is_atomic_and_repeatable(tmp_path):
    figure = plot.history([{"step": 1, "loss": 1.0}])
    plot.save(figure, tmp_path / "a.png")
    first = (tmp_path / "a.png").read_bytes()
    plot.save(plot.history([{"step": 1, "loss": 1.0}]), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == first
    assert b"Software" not in first
    from matplotlib.image import imread

    assert imread(io.BytesIO(first)).shape[1] == round(figure.get_figwidth() * figure.dpi)
    plot.save(figure, tmp_path / "a.pdf")
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(ValueError, match=r"path: got '.*a\.what', expected an ending among .*png"):
        plot.save(figure, tmp_path / "a.what")
    with pytest.raises(FileNotFoundError, match="none"):
        plot.save(figure, tmp_path / "none" / "a.png")
    assert sorted(os.listdir(tmp_path)) == ["a.pdf", "a.png"]


NAME = r"$\frac{1$"


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plot.image_grid(codes((2, 8, 8, 1)), labels=[0, 1], class_names=[NAME, NAME], title=NAME),
        lambda: plot.image_grid(codes((2, 8, 8, 1)), labels=np.ones((2, 40)), class_names=[NAME] * 40),
        lambda: plot.image_grid(codes((4, 8, 8, 1)), labels=[0, 1, 0, 1], class_names=[NAME, NAME]),
        lambda: plot.history([{"step": 1, NAME + "loss": 1.0, NAME + "loss 2": 1.0}], title=NAME),
        lambda: plot.history([{"step": 1, NAME + "accuracy": 1.0}]),
        lambda: plot.transfer([{"network": NAME, "steps": 1, "accuracy": {NAME: [0.5]}}], title=NAME),
        lambda: plot.transfer([{"network": "n", "steps": 1, "accuracy": {"a": [0.5]}}], names={"a": NAME}),
        lambda: plot.dynamics({NAME: DYNAMICS.summary(top=1)}, title=NAME),
        lambda: plot.convergence({NAME: CONVERGENCE}, title=NAME),
        lambda: plot.features(SWEEP, title=NAME),
    ],
)
def test_names_are_drawn_as_they_are(draw):
    figure = draw()
    assert render(figure).size
    texts = [text for text in figure.findobj(Text) if "frac" in text.get_text()]
    assert texts
    # Not as a formula, and without the signs that say so.
    assert {text._preprocess_math(text.get_text())[1] for text in texts} == {False}
    assert any(NAME in text._preprocess_math(text.get_text())[0] for text in texts)


def test_a_long_name_does_not_make_a_figure_as_wide():
    figure = plot.image_grid(codes((4, 8, 8, 1)), labels=[0, 1, 0, 1], class_names=["x" * 10**6] * 2, title="y" * 10**6)
    assert render(figure).shape[1] < 4000


def test_sizes(tmp_path):
    rows = [{"images": n, "excess risk": 0.1 / n, "bound": 1.0 / n if n > 1 else None} for n in (1, 2, 10)]
    figure = plot.sizes(Result("t", {"degrees of freedom": 4.5}, {"sizes": rows}))
    (axes,) = figure.axes
    excess, bound, degrees = axes.get_lines()
    assert excess.get_xdata().tolist() == [1, 2, 10]
    assert bound.get_ydata().tolist() == [0.5, 0.1]
    assert degrees.get_xdata()[0] == 4.5
    plot.save(figure, tmp_path / "sizes.png")
    for other in (Result("t"), Result("t", {"degrees of freedom": 4.5}), rows):
        with pytest.raises(ValueError, match=r"result: got .*, expected a result of ntkit.distill.excess_risks"):
            plot.sizes(other)
