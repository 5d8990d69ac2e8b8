"""The subspace viewer: its mathematics against numpy, and its displays against independent computations."""

import re

import numpy as np
import pytest
import torch
from pictures import read_picture
from torch import nn

from nesskit import (
    FrobeniusThreshold,
    Moment,
    NuclearThreshold,
    TaskModel,
    TrainingSettings,
    build_model,
    fit,
    load_stream,
)
from nesskit.errors import AdaptationError, DataError, SpectrumError
from nesskit.experiments.configure import configure
from nesskit.spectra.spectrum import Spectrum
from nesskit.widgets.subspace import (
    SIZES,
    SubspaceViewer,
    perturbed_accuracy,
    perturbed_predictions,
    project,
    rank_one_update,
    sigma_texts,
)


def moment_of(x):
    moment = Moment(np.shape(x)[1])
    moment.update(np.asarray(x, dtype=float))
    return moment


@pytest.fixture(scope="module")
def digits():
    """(moment of the training images, test images, their labels, a model trained on them)."""
    stream = load_stream("permuted-digits", seed=0).first(1)
    model = build_model(stream, configure("permuted-digits").network, seed=0)
    fit(model, stream, "finetune", TrainingSettings(epochs=5, lr=0.05))
    x, y = stream[0].test
    return moment_of(stream[0].train.x), x, y, model


@pytest.fixture
def viewer(digits):
    moment, x, y, model = digits
    return SubspaceViewer(moment, x, y, model=model, rule=FrobeniusThreshold(0.05))


# --- the mathematics


@pytest.mark.parametrize("rank", [0, 1, 4, 6])
def test_an_input_is_the_sum_of_its_occupied_and_its_free_part(rank):
    rng = np.random.default_rng(0)
    inputs, x = rng.standard_normal((50, 6)) * [9, 5, 3, 1, 0.1, 0], rng.standard_normal((3, 6))
    occupied, free = project(x, moment_of(inputs).spectrum(), rank)
    left = np.linalg.svd(inputs.T)[0]  # columns by falling singular value
    u = left[:, 6 - rank :]
    np.testing.assert_allclose(free, x @ u @ u.T, atol=1e-12)
    np.testing.assert_allclose(occupied, x @ (np.eye(6) - u @ u.T), atol=1e-12)
    np.testing.assert_allclose(occupied + free, x, atol=1e-15)


def test_the_update_has_the_size_and_the_direction_that_were_asked_for():
    spectrum = moment_of(np.random.default_rng(0).standard_normal((50, 6))).spectrum()
    weight = torch.randn(4, 6, dtype=torch.float64)
    update = rank_one_update(weight, spectrum, 3, 0.7, seed=5)
    u = spectrum.directions[:, 2]
    assert float(update.norm() / weight.norm()) == pytest.approx(0.7)
    torch.testing.assert_close(update, torch.outer(update @ u, u))
    torch.testing.assert_close(2 * update, rank_one_update(weight, spectrum, 3, 1.4, seed=5))
    assert not torch.allclose(update, rank_one_update(weight, spectrum, 3, 0.7, seed=6))


def test_perturbed_predictions_are_those_of_a_model_with_other_weights(digits):
    moment, x, y, model = digits
    spectrum = moment.spectrum()
    first, second = (layer.weight.detach().double().numpy() for layer in model.backbone.layers)
    head = model.heads[0].weight.detach().double().numpy()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.train()
    for direction, size in ((1, 1.5), (30, 1.0), (64, 2.0)):
        update = rank_one_update(model.backbone.layers[0].weight, spectrum, direction, size)
        hidden = np.maximum(x.numpy() @ (first + update.double().numpy()).T, 0)
        expected = (np.maximum(hidden @ second.T, 0) @ head.T).argmax(axis=1)
        np.testing.assert_array_equal(perturbed_predictions(model, "backbone.layers.0", update, x), expected)
        accuracy = perturbed_accuracy(model, "backbone.layers.0", update, x, y)
        assert accuracy == pytest.approx(100 * np.mean(expected == y.numpy()))
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_models_without_tasks_are_called_with_the_input_alone():
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.9))
    x = torch.randn(20, 4)
    expected = model[0](x).argmax(dim=1)
    assert torch.equal(perturbed_predictions(model, "0", torch.zeros(3, 4), x), expected)  # without dropout
    assert model[1].training


def test_a_model_may_be_a_single_layer():
    model, x, update = nn.Linear(4, 3), torch.randn(20, 4), torch.randn(3, 4)
    expected = (x @ (model.weight + update).T + model.bias).argmax(dim=1)
    assert torch.equal(perturbed_predictions(model, "", update, x), expected)


def test_a_direction_that_no_image_uses_changes_nothing_and_the_largest_one_breaks_predictions(digits):
    moment, x, y, model = digits
    spectrum, weight = moment.spectrum(), model.backbone.layers[0].weight
    zeros = torch.zeros_like(weight)
    before = perturbed_accuracy(model, "backbone.layers.0", zeros, x, y)
    free = perturbed_accuracy(model, "backbone.layers.0", rank_one_update(weight, spectrum, 64, 2.0), x, y)
    occupied = perturbed_accuracy(model, "backbone.layers.0", rank_one_update(weight, spectrum, 1, 2.0), x, y)
    assert before > 90
    assert free == before
    assert occupied < before - 30


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: project(np.ones(6), s, 7), "rank 7 is out of range"),
        (lambda s: project(np.ones(6), s, -1), "rank -1 is out of range"),
        (lambda s: project(np.ones(5), s, 1), "expected inputs of 6 values"),
        (lambda s: rank_one_update(torch.ones(3, 6), s, 0, 1.0), "direction 0 is out of range"),
        (lambda s: rank_one_update(torch.ones(3, 6), s, 7, 1.0), "direction 7 is out of range"),
        (lambda s: rank_one_update(torch.ones(3, 5), s, 1, 1.0), "expected a weight of shape"),
    ],
)
def test_what_does_not_fit_is_said_in_words(call, message):
    with pytest.raises(SpectrumError, match=message):
        call(moment_of(np.eye(6)).spectrum())


# --- the widget


def text_of(line):
    return re.sub("<[^>]*>", "", line.value)


def test_every_direction_is_shown_pixel_by_pixel_in_the_order_of_sigma(viewer, digits):
    spectrum = digits[0].spectrum()
    pictures = viewer._directions.pictures
    assert len(pictures) == 64
    for number in (0, 30, 63):
        u = spectrum.directions[:, number].numpy().reshape(8, 8)
        np.testing.assert_allclose(pictures[number].get_array(), u / np.abs(u).max())
    written = [text.get_text() for text in viewer._directions.values]
    assert written == sigma_texts(spectrum)
    assert written[0] == f"{float(spectrum.singular_values[0]):.3g}"
    assert written[-1] == "≈ 0"


@pytest.mark.parametrize("eps", [0.001, 0.02, 0.1, 1.0])
def test_the_slider_sets_rank_parts_and_the_line_around_free_directions(viewer, digits, eps):
    moment, x = digits[:2]
    viewer.eps.value, viewer.image.value = eps, 7
    singular_values = np.linalg.svd(np.asarray(load_stream("permuted-digits", seed=0)[0].train.x, dtype=float))[1]
    rank = int((singular_values <= viewer.eps.value * np.linalg.norm(singular_values)).sum())
    assert viewer.rank == rank
    u = moment.spectrum().directions[:, 64 - rank :].numpy()
    image = x[6].numpy().astype(float)
    free = u @ (u.T @ image)
    shown = [picture.get_array().ravel() for picture in viewer._parts.pictures]
    for part, expected in zip(shown, (image, image - free, free), strict=True):
        np.testing.assert_allclose(part, expected, atol=1e-9)
    titles = [title.get_text() for title in viewer._parts.titles]
    assert titles == ["x", f"occupied ({64 - rank})", f"free ({rank})"]
    share = f"{(free @ free) / (image @ image):.2%}"
    assert text_of(viewer._split) == f"{share} of ‖x‖² lies in the {rank} free directions of 64."
    path = viewer._directions.border.get_xydata()
    assert area(path) == pytest.approx(rank)


def area(corners):
    if not len(corners):
        return 0.0
    (x, y), (next_x, next_y) = np.transpose(corners), np.transpose(np.roll(corners, -1, axis=0))
    return abs(np.sum(x * next_y - next_x * y)) / 2


@pytest.mark.parametrize("rank", range(8))
def test_the_line_holds_just_the_free_directions_also_in_a_last_row_that_is_not_full(rank):
    spectrum = Spectrum(torch.arange(7.0, 0, -1), torch.eye(7))
    viewer = SubspaceViewer(spectrum, np.eye(7), shape=(1, 7))
    viewer._directions.mark(rank)
    assert area(viewer._directions.border.get_xydata()) == pytest.approx(rank)


@pytest.mark.parametrize(("direction", "size"), [(1, 2.0), (2, 0.5), (20, 1.0), (64, 2.0)])
def test_moving_direction_and_size_shows_what_is_predicted_then(viewer, digits, direction, size):
    moment, x, y, model = digits
    viewer.direction.value, viewer.size.value = direction, size
    weight = model.backbone.layers[0].weight
    update = rank_one_update(weight, moment.spectrum(), direction, size)
    before, now = (perturbed_predictions(model, "backbone.layers.0", u, x) for u in (torch.zeros_like(weight), update))
    accuracy = 100 * float((now == y).double().mean())
    assert torch.equal(viewer.predictions, now)
    assert viewer.accuracy == pytest.approx(accuracy)
    outcome = viewer._outcome
    assert outcome.point.get_xydata() == pytest.approx(np.array([[size, accuracy]]))
    assert np.interp(size, *outcome.curve.get_data()) == pytest.approx(accuracy)
    assert f"u_{{{direction}}}" in outcome.title.get_text()
    for label, index in zip(outcome.labels, outcome.images, strict=True):
        old, new = int(before[index]), int(now[index])
        assert label.get_text() == (f"{new}" if old == new else f"{old} → {new}")
    kind = "free" if direction > 64 - viewer.rank else "occupied"
    said = text_of(viewer._about)
    assert said.startswith(f"Direction {direction} of 64 is {kind}:")
    assert f"accuracy {accuracy:.1f} %" in said
    assert f"{int((now != before).sum())} of 497 predictions changed" in said


def test_one_image_of_each_class_is_followed(viewer, digits):
    assert sorted(digits[2][viewer._outcome.images].tolist()) == list(range(10))


def test_the_buttons_jump_to_both_ends_and_the_frame_follows(viewer):
    first, last = viewer._jumps.children
    first.click()
    assert (viewer.direction.value, viewer._directions.chosen.get_xy()) == (1, (0, 0))
    last.click()
    assert (viewer.direction.value, viewer._directions.chosen.get_xy()) == (64, (7, 7))


def test_without_labels_predictions_are_compared_with_the_old_ones(digits):
    moment, x, _, model = digits
    viewer = SubspaceViewer(moment, x, model=model)
    assert viewer.accuracy == 100
    viewer.direction.value, viewer.size.value = 1, 2.0
    kept = float(
        (viewer.predictions == perturbed_predictions(model, "backbone.layers.0", torch.zeros(128, 64), x))
        .double()
        .mean()
    )
    assert viewer.accuracy == pytest.approx(100 * kept)
    assert "predictions kept" in text_of(viewer._about)


def test_later_training_of_the_model_does_not_reach_the_viewer():
    model = nn.Sequential(nn.Linear(4, 3))
    viewer = SubspaceViewer(moment_of(np.eye(4)), torch.randn(30, 4), model=model)
    with torch.no_grad():
        model[0].weight.mul_(-1)
        model[0].bias.mul_(-1)
    viewer.direction.value = 2
    assert viewer.accuracy == 100


def test_without_a_model_directions_and_parts_are_shown_alone(digits):
    viewer = SubspaceViewer(digits[0].spectrum(), digits[1].view(-1, 1, 8, 8), rule=NuclearThreshold(0.01))
    viewer.direction.value, viewer.image.value, viewer.eps.value = 3, 2, 0.02
    assert np.isnan(viewer.accuracy)
    assert viewer.predictions is None
    assert viewer.rank == NuclearThreshold(viewer.eps.value).null_rank(viewer.spectrum)
    assert "ΔW" not in text_of(viewer._about)


def test_every_control_is_described_and_can_be_found(viewer):
    for name in ("direction", "eps", "image", "size"):
        control = getattr(viewer, name)
        assert control.description
        assert control.tooltip
        assert f"nk-{name}" in control._dom_classes
    assert all(button.tooltip for button in viewer._jumps.children)
    assert "nk-subspace" in viewer._dom_classes
    assert 'role="status"' in viewer._about.value


def test_pages_without_widgets_show_a_picture(viewer):
    bundle, _ = viewer._repr_mimebundle_()
    alt, picture = read_picture(bundle)
    assert alt.startswith("Directions of the inputs")
    assert picture.shape[0] > picture.shape[1] > 400
    assert bundle["text/plain"] == "Subspace viewer"
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_the_slider_offers_the_sizes_that_were_computed(viewer):
    assert (viewer.size.min, viewer.size.max) == (SIZES[0], SIZES[-1])
    assert viewer.size.step == pytest.approx(SIZES[1])


def test_the_threshold_to_begin_with_is_a_step_of_its_slider(viewer):
    """The browser rounds to steps that are counted from the minimum."""
    steps = (np.log10(0.05) - viewer.eps.min) / viewer.eps.step
    assert steps == pytest.approx(round(steps))
    assert viewer.eps.value == pytest.approx(0.05)
    assert viewer.eps.max >= 0


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((Moment(64), np.ones((2, 64))), SpectrumError, "has seen no input yet"),
        ((moment_of(np.eye(32)), np.ones((2, 64))), SpectrumError, "32 dimensions but an image 64 pixels"),
        ((moment_of(np.eye(6)), np.ones((2, 6))), DataError, r"pass shape=\(height, width\)"),
        ((moment_of(np.eye(4)), np.ones((0, 4))), DataError, "one at least"),
        ((moment_of(np.eye(4)), np.ones(4)), DataError, "images must be"),
        ((moment_of(np.eye(4)), np.full((2, 4), np.nan)), DataError, "NaN or infinite"),
    ],
)
def test_inputs_that_cannot_be_shown_are_refused_in_words(arguments, kind, message):
    with pytest.raises(kind, match=message):
        SubspaceViewer(*arguments)


def test_a_model_or_labels_that_do_not_fit_are_refused_in_words():
    moment, x = moment_of(np.eye(4)), np.eye(4)
    with pytest.raises(AdaptationError, match="first linear layer of the model does not take 4 inputs"):
        SubspaceViewer(moment, x, model=TaskModel(nn.Linear(5, 3), 3, [2]))
    with pytest.raises(AdaptationError, match="first linear layer of the model does not take 4 inputs"):
        SubspaceViewer(moment, x, model=nn.Conv2d(1, 1, 2))
    with pytest.raises(AdaptationError, match=r"'1' of the model does not take 4 inputs: .* of 0"):
        SubspaceViewer(moment, x, model=nn.Sequential(nn.Linear(4, 3)), layer="1")
    with pytest.raises(DataError, match="4 images but labels of shape"):
        SubspaceViewer(moment, x, [0, 1], model=nn.Linear(4, 3))


def test_images_of_zeros_and_a_spectrum_of_zeros_are_shown():
    viewer = SubspaceViewer(moment_of(np.zeros((3, 4))), np.zeros((2, 4)), model=nn.Linear(4, 3))
    assert viewer.rank == 4
    assert text_of(viewer._split).startswith("0.00%")
    viewer._repr_mimebundle_()


def test_the_names_of_the_axes_are_not_cut_off(viewer):
    figure = viewer._outcome.figure
    figure.canvas.draw()
    for name in (figure.axes[0].xaxis.label, figure.axes[0].yaxis.label):
        box = name.get_window_extent()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
