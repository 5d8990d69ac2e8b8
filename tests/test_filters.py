import numpy as np
import pytest
import torch

from nesskit.errors import NesskitError, SettingsError, SpectrumError, UnknownNameError
from nesskit.spectra.filters import (
    FILTERS,
    EnergyThreshold,
    FixedRank,
    FrobeniusThreshold,
    InterferenceBudget,
    NuclearThreshold,
    Probe,
    RelativeThreshold,
    SmallestMultiple,
    SoftFilter,
    parse_filter,
)
from nesskit.spectra.moment import Moment
from nesskit.spectra.spectrum import Spectrum

# Σσ² = 30, ‖·‖_F = 5.477, ‖·‖_* = 10
HAND = Spectrum(torch.tensor([4.0, 3, 2, 1, 0]), torch.eye(5))
NOTHING_SEEN = Spectrum(torch.zeros(5), torch.eye(5))

rng = np.random.default_rng(0)
DIRECTIONS = np.linalg.qr(rng.standard_normal((9, 9)))[0]
GAPS = np.array([100, 30, 10, 3, 1, 0.3, 0.01, 0.003, 0])
INPUTS = (np.linalg.qr(rng.standard_normal((50, 9)))[0] * GAPS) @ DIRECTIONS.T  # one sample a row
WEIGHT, UPDATE = rng.standard_normal((2, 4, 9))
PROBE = Probe(torch.tensor(WEIGHT), torch.tensor(UPDATE))


def spectrum_of(x):
    moment = Moment(x.shape[1])
    moment.update(x)
    return moment.spectrum()


@pytest.mark.parametrize(
    ("rule", "rank"),
    [
        (FrobeniusThreshold(0.2), 2),  # cut 1.095
        (NuclearThreshold(0.2), 3),  # cut 2.0: at the cut counts as small
        (FrobeniusThreshold(0.37), 3),  # cut 2.027
        (NuclearThreshold(0.37), 4),  # cut 3.7
        (RelativeThreshold(0.3), 2),  # cut 1.2
        (RelativeThreshold(0.5), 3),  # cut 2.0
        (EnergyThreshold(0.5), 4),  # 16 of 30
        (EnergyThreshold(0.6), 3),  # 16 are too few, 25 enough
        (EnergyThreshold(0.9), 2),  # 25 are too few, 29 enough
        (EnergyThreshold(1.0), 1),
        (SmallestMultiple(1), 2),  # σ² 1 is the smallest; what was never seen is free anyway
        (SmallestMultiple(4), 3),
        (SmallestMultiple(8.9), 3),
        (FixedRank(3), 3),
        (FixedRank(0), 0),
    ],
    ids=str,
)
def test_hard_rules_free_the_smallest_directions_of_a_hand_worked_spectrum(rule, rank):
    assert rule.null_rank(HAND) == rank
    assert rule.weights(HAND).tolist() == [0] * (5 - rank) + [1] * rank


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (FrobeniusThreshold(0.005), lambda s: s <= 0.005 * np.sqrt((s**2).sum())),
        (FrobeniusThreshold(0.05), lambda s: s <= 0.05 * np.linalg.norm(s)),
        (NuclearThreshold(0.005), lambda s: s <= 0.005 * np.abs(s).sum()),
        (NuclearThreshold(0.0005), lambda s: s <= 0.0005 * np.abs(s).sum()),
        (RelativeThreshold(0.0005), lambda s: s / s.max() <= 0.0005),
        (EnergyThreshold(0.95), lambda s: np.arange(9) > np.argmax(np.cumsum(s**2) / np.sum(s**2) >= 0.95)),
        (EnergyThreshold(0.9999), lambda s: np.arange(9) > np.argmax(np.cumsum(s**2) / np.sum(s**2) >= 0.9999)),
        (FixedRank(4), lambda s: np.arange(9) >= 5),
    ],
    ids=lambda value: "" if callable(value) else str(value),  # a function's own text would differ from run to run
)
def test_ranks_are_those_of_a_plain_svd_of_the_raw_inputs(rule, expected):
    rank = int(expected(np.linalg.svd(INPUTS, compute_uv=False)).sum())
    assert 0 < rank < 9
    assert rule.null_rank(spectrum_of(INPUTS)) == rank


@pytest.mark.parametrize("rule", [FrobeniusThreshold(0.05), NuclearThreshold(0.05), RelativeThreshold(0.05)], ids=str)
def test_thresholds_do_not_depend_on_the_scale_of_the_inputs(rule):
    assert rule.null_rank(spectrum_of(1e-4 * INPUTS)) == rule.null_rank(spectrum_of(INPUTS))


@pytest.mark.parametrize("rule", [FrobeniusThreshold, NuclearThreshold, RelativeThreshold])
def test_eps_to_free_is_where_a_direction_becomes_free(rule):
    needed = float(rule(0.1).eps_to_free(HAND)[1])
    assert rule(needed * 1.001).null_rank(HAND) == rule(needed * 0.999).null_rank(HAND) + 1 == 4


@pytest.mark.parametrize("text", ["frobenius:0.1", "nuclear:0.1", "relative:0.1", "energy:0.9", "soft:1:frobenius"])
def test_everything_is_free_where_nothing_was_seen(text):
    assert parse_filter(text).weights(NOTHING_SEEN).tolist() == [1] * 5


def test_a_rank_above_the_dimension_is_an_error():
    with pytest.raises(SpectrumError, match="rank 6 is out of range: this layer has 5"):
        FixedRank(6).null_rank(HAND)


def test_soft_weights_of_a_hand_worked_spectrum():
    assert SoftFilter(2).weights(HAND).tolist() == pytest.approx([4 / 20, 4 / 13, 1 / 2, 4 / 5, 1])
    in_frobenius = SoftFilter(2 / 30**0.5, "frobenius").weights(HAND)
    torch.testing.assert_close(in_frobenius, SoftFilter(2).weights(HAND))


def test_soft_filter_is_the_exact_minimiser_of_the_penalised_problem():
    """The minimiser of ‖D - X‖² + ‖X I‖²/τ² solves X (1 + I Iᵀ/τ²) = D."""
    tau = 2.0
    spectrum = spectrum_of(INPUTS)
    directions = spectrum.directions.numpy()
    ours = UPDATE @ directions * SoftFilter(tau).weights(spectrum).numpy() @ directions.T
    exact = np.linalg.solve(np.eye(9) + INPUTS.T @ INPUTS / tau**2, UPDATE.T).T
    np.testing.assert_allclose(ours, exact, atol=1e-10)


def in_units_of_outputs(movement):
    """‖movement‖_F in units of the layer's old outputs, from the raw inputs."""
    return np.linalg.norm(movement) / np.linalg.norm(WEIGHT @ INPUTS.T)


@pytest.mark.parametrize("budget", [0.001, 0.01, 0.2, 1.0])
def test_interference_budget_takes_the_last_rank_at_which_the_worst_update_keeps_to_it(budget):
    """Of the updates within the r smallest directions as long as W, the worst puts it all into the worst input."""
    rank = InterferenceBudget(budget).null_rank(spectrum_of(INPUTS), PROBE)
    assert 0 < rank < 9

    def worst(r):
        small = DIRECTIONS[:, 9 - r :]
        left, _, _ = np.linalg.svd(small @ small.T @ INPUTS.T)
        step = np.outer(np.eye(4)[0], left[:, 0]) * np.linalg.norm(WEIGHT)
        return in_units_of_outputs(step @ small @ small.T @ INPUTS.T)

    assert worst(rank) <= budget < worst(rank + 1)


def test_no_update_within_an_interference_budget_moves_the_outputs_by_more():
    budget = 0.2
    spectrum = spectrum_of(INPUTS)
    small = spectrum.null_basis(InterferenceBudget(budget).null_rank(spectrum, PROBE)).numpy()
    for length in (0.1, 1.0, 3.0):
        for _ in range(20):
            step = rng.standard_normal(WEIGHT.shape) @ small @ small.T
            step *= length * np.linalg.norm(WEIGHT) / np.linalg.norm(step)
            assert in_units_of_outputs(step @ INPUTS.T) <= budget * length


@pytest.mark.parametrize("tasks", [2, 5])
def test_an_interference_budget_holds_for_every_old_task_by_itself(tasks):
    """Even if one old task is alone in a direction and the update goes there: measured in outputs of a usual task."""
    budget = 0.2
    parts = np.split(rng.standard_normal((20 * tasks, 9)) * GAPS**0.5, tasks)
    parts[-1][:, :4] *= 0.01
    pooled = np.concatenate(parts)
    spectrum = spectrum_of(pooled)
    rank = InterferenceBudget(budget).null_rank(spectrum, Probe(torch.tensor(WEIGHT), tasks=tasks))
    assert 0 < rank < 9
    usual = np.sqrt(np.mean([np.linalg.norm(WEIGHT @ part.T) ** 2 for part in parts]))

    def worst(r):
        small = spectrum.null_basis(r).numpy()
        return max(np.linalg.norm(part @ small, 2) for part in parts) * np.linalg.norm(WEIGHT) / usual

    assert worst(rank) <= budget
    assert worst(9) > budget


def test_the_cut_of_an_interference_budget_falls_with_the_root_of_the_number_of_old_tasks():
    spectrum = spectrum_of(INPUTS)
    cuts = [InterferenceBudget(0.2).cut(spectrum, Probe(torch.tensor(WEIGHT), tasks=tasks)) for tasks in (1, 4, 9)]
    assert cuts == pytest.approx([cuts[0], cuts[0] / 2, cuts[0] / 3])


def test_the_cut_of_an_interference_budget_stays_where_tasks_are_alike():
    """t tasks with the same inputs: the size of one task's outputs, in which the budget is measured, stays."""
    for tasks in (2, 4):
        pooled = spectrum_of(np.concatenate([INPUTS] * tasks))
        cut = InterferenceBudget(0.2).cut(pooled, Probe(torch.tensor(WEIGHT), tasks=tasks))
        assert cut == pytest.approx(InterferenceBudget(0.2).cut(spectrum_of(INPUTS), PROBE))


def test_interference_budget_refuses_inputs_of_no_task():
    with pytest.raises(SpectrumError, match="at least 1 task, got 0"):
        InterferenceBudget(0.1).null_rank(HAND, Probe(torch.ones(2, 5), tasks=0))


@pytest.mark.parametrize("budget", [0.01, 0.2])
@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_interference_budget_does_not_depend_on_the_scale_of_inputs_weight_or_update(budget, factor):
    rule = InterferenceBudget(budget)
    expected = rule.null_rank(spectrum_of(INPUTS), PROBE)
    assert rule.null_rank(spectrum_of(factor * INPUTS), PROBE) == expected
    scaled = Probe(torch.tensor(factor * WEIGHT), torch.tensor(factor * UPDATE))
    assert rule.null_rank(spectrum_of(INPUTS), scaled) == expected


def test_interference_budget_measures_a_layer_by_its_own_outputs():
    """A weight that passes the strong inputs on hides more than one that passes on weak ones."""
    strong, weak = torch.eye(5)[:1], torch.eye(5)[2:3]
    update = torch.ones(1, 5)
    assert InterferenceBudget(0.5).null_rank(HAND, Probe(strong, update)) == 3  # cut 0.5 · 4
    assert InterferenceBudget(0.5).null_rank(HAND, Probe(weak, update)) == 2  # cut 0.5 · 2


def test_interference_budget_is_a_share_of_the_frobenius_norm_where_the_weight_treats_all_directions_alike():
    for budget in (0.1, 0.3, 0.6):
        rank = InterferenceBudget(budget).null_rank(HAND, Probe(torch.eye(5), torch.ones(5, 5)))
        assert rank == FrobeniusThreshold(budget / 5**0.5).null_rank(HAND)


def test_interference_budget_takes_probes_of_the_models_precision():
    probe = Probe(torch.tensor(WEIGHT).float().requires_grad_(), torch.tensor(UPDATE).float())
    assert InterferenceBudget(0.02).null_rank(spectrum_of(INPUTS), probe) == InterferenceBudget(0.02).null_rank(
        spectrum_of(INPUTS), PROBE
    )


@pytest.mark.parametrize("weight", [torch.zeros(2, 5), torch.eye(5)[4:]], ids=["zeros", "reads only what never came"])
def test_interference_budget_frees_the_exact_null_space_alone_where_there_are_no_outputs(weight):
    assert InterferenceBudget(10).null_rank(HAND, Probe(weight, weight)) == 1


def test_interference_budget_frees_everything_where_nothing_was_seen():
    assert InterferenceBudget(0.01).weights(NOTHING_SEEN, Probe(torch.ones(2, 5), torch.ones(2, 5))).tolist() == [1] * 5


def test_interference_budget_refuses_to_work_without_a_probe():
    with pytest.raises(SpectrumError, match="needs the layer's weight"):
        InterferenceBudget(0.1).weights(HAND)


@pytest.mark.parametrize("shape", [(2, 4), (5,)])
def test_interference_budget_refuses_a_weight_of_another_layer(shape):
    with pytest.raises(SpectrumError, match=r"must be \(d_out, 5\)"):
        InterferenceBudget(0.1).null_rank(HAND, Probe(torch.ones(shape), torch.ones(shape)))


def test_interference_budget_has_a_default():
    assert parse_filter("budget") == InterferenceBudget() == InterferenceBudget(0.283)
    assert str(parse_filter("budget")) == "budget:0.283"
    assert parse_filter("budget:0.2") == InterferenceBudget(0.2)


@pytest.mark.parametrize(
    "rule",
    [
        FrobeniusThreshold(0.03),
        NuclearThreshold(1e-5),
        RelativeThreshold(1 / 3),
        EnergyThreshold(0.97),
        EnergyThreshold(1),
        FixedRank(12),
        SoftFilter(0.01),
        SmallestMultiple(10),
        SoftFilter(1),
        SoftFilter(0.5, "frobenius"),
        InterferenceBudget(0.05),
    ],
    ids=str,
)
def test_a_filter_is_restored_from_its_text(rule):
    restored = parse_filter(str(rule))
    assert restored == rule
    assert str(restored) == str(rule)


def test_every_filter_can_be_named():
    assert set(FILTERS) == {"frobenius", "nuclear", "relative", "energy", "smallest", "rank", "soft", "budget"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("frobenius", "needs a value for eps, for example frobenius:0.01"),
        ("frobenius:", "'' is not a number"),
        ("frobenius:small", "'small' is not a number"),
        ("frobenius:0", "eps must be a finite number above 0, got 0.0"),
        ("rank:2.5", "'2.5' is not a number; write for example rank:10"),
        ("rank:-1", "rank must be a whole number of at least 0"),
        ("frobenius:0.1:0.2", "too many values"),
        ("soft:0.1:frobenius:2", "too many values"),
    ],
)
def test_a_text_that_is_no_filter_is_explained(text, message):
    with pytest.raises(SettingsError, match=message):
        parse_filter(text)


@pytest.mark.parametrize(
    ("text", "nearest"), [("frobenus:0.1", "frobenius"), ("nuklear:1", "nuclear"), ("soft:1:frob", "frobenius")]
)
def test_an_unknown_name_suggests_the_nearest(text, nearest):
    with pytest.raises(UnknownNameError, match=f"did you mean '{nearest}'"):
        parse_filter(text)


@pytest.mark.parametrize("value", [0, -0.1, float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("rule", "field"),
    [
        (FrobeniusThreshold, "eps"),
        (NuclearThreshold, "eps"),
        (RelativeThreshold, "eps"),
        (SoftFilter, "tau"),
        (InterferenceBudget, "budget"),
        (EnergyThreshold, "share"),
    ],
)
def test_numbers_out_of_range_are_refused(rule, field, value):
    with pytest.raises(SettingsError, match=f"^{field} must"):
        rule(value)


@pytest.mark.parametrize("value", [-1, 2.5, 2.0, float("nan"), float("inf")])
def test_a_rank_must_be_a_whole_number(value):
    with pytest.raises(NesskitError, match="rank must be a whole number"):
        FixedRank(value)


def test_a_share_above_one_is_refused():
    with pytest.raises(SettingsError, match=r"share must lie in \(0, 1\]"):
        EnergyThreshold(1.1)
