"""The slider's half in the kernel: what it has not is refused by name; the browser's half is tested in a browser."""

import math

import pytest
from traitlets import TraitError

from nesskit.widgets.slider import Slider


@pytest.mark.parametrize("value", [0, 65, 3.7, math.nan, math.inf, -1])
def test_what_a_slider_of_whole_numbers_has_not_is_refused_and_the_value_stays(value):
    slider = Slider(value=5, min=1, max=64, step=1, whole=True, description="direction i")
    with pytest.raises(TraitError, match=r"^direction i must be a whole number from 1 to 64, got"):
        slider.value = value
    assert slider.value == 5
    with pytest.raises(TraitError, match="direction i must be"):
        Slider(value=value, min=1, max=64, step=1, whole=True, description="direction i")


def test_whole_numbers_are_ints_whatever_the_browser_sends():
    slider = Slider(value=5, min=1, max=64, step=1, whole=True, description="image")
    slider.set_state({"value": 7.0})
    assert slider.value == 7
    assert isinstance(slider.value, int)


@pytest.mark.parametrize(("value", "fits"), [(1e-3, True), (0.0123, True), (1.0, True), (9e-4, False), (1.01, False)])
def test_the_bounds_of_a_logarithmic_slider_are_exponents(value, fits):
    slider = Slider(value=0.03, min=-3, max=0, step=0.02, log=True, description="ε")
    if fits:
        slider.value = value
        assert slider.value == value
    else:
        with pytest.raises(TraitError, match=r"^ε must be a number from 0\.001 to 1, got"):
            slider.value = value
        assert slider.value == 0.03
