"""Temperatures, reliability, risk control, budgets: on made-up outcomes whose truth is known, and on shipped images."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from mdi_exit.calibration import temperature
from mdi_exit.calibration.budget import best_under_budget, cheapest_within_loss
from mdi_exit.calibration.curves import curve_of, equal_costs
from mdi_exit.calibration.reliability import reliability
from mdi_exit.calibration.risk import controlled, least_samples, losses, naively_passed, passed, steps, thresholds_on
from mdi_exit.calibration.temperature import fit_temperature, negative_log_likelihood
from mdi_exit.data import shipped
from mdi_exit.errors import UsageError
from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact
from mdi_exit.outcomes import Outcomes, outcomes
from mdi_exit.segments import ModelPlan
from mdi_exit.trace import Trace

pytest.importorskip("scipy", reason="needs the extra 'offline'")


@pytest.fixture(scope="module")
def made() -> Outcomes:
    return outcomes(Artifact.open(DEFAULT_MODEL), shipped())


@pytest.fixture(scope="module")
def trace(made: Outcomes) -> Trace:
    return made.trace("max-probability")


# --- temperature and reliability


@pytest.mark.parametrize("t", [0.4, 1.0, 3.0])
def test_the_temperature_by_which_logits_are_too_sure_is_found(t: float) -> None:
    rng = np.random.default_rng(1)
    honest_NK = rng.normal(0, 2, (20_000, 5))
    p_NK = np.exp(honest_NK) / np.exp(honest_NK).sum(axis=1, keepdims=True)
    truth_N = (p_NK.cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
    found = fit_temperature(honest_NK * t, truth_N)
    assert found == pytest.approx(t, rel=0.05)
    least = negative_log_likelihood(honest_NK * t, truth_N, found)
    assert least <= negative_log_likelihood(honest_NK * t, truth_N, found * 1.02)
    assert least <= negative_log_likelihood(honest_NK * t, truth_N, found / 1.02)


def test_the_likelihood_is_the_softmaxs_and_bears_large_logits() -> None:
    logits_NK = np.array([[1000.0, 0.0], [0.0, 0.0]])
    assert negative_log_likelihood(logits_NK, np.array([0, 1]), 1.0) == pytest.approx(np.log(2) / 2)


def test_without_scipy_there_is_one_plain_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(temperature, "import_module", none)
    with pytest.raises(UsageError, match=r"the extra 'offline' \(pip install"):
        fit_temperature(np.zeros((2, 2)), np.array([0, 1]))


def test_calibration_error_is_the_gap_between_confidence_and_right() -> None:
    confidence_N = np.repeat([0.2, 0.6, 1.0], 100)
    right_N = np.concatenate([np.arange(100) < share for share in (20, 50, 90)])
    found = reliability(confidence_N, right_N, bins=3)
    assert found.ece == pytest.approx((0.0 + 0.1 + 0.1) / 3)
    assert found.count_B.tolist() == [100] * 3
    assert reliability(np.array([0.5]), np.array([True])).count_B.tolist() == [1]


def test_temperatures_make_the_shipped_model_no_less_honest(made: Outcomes) -> None:
    half, rest = made.subset(np.arange(1000)), made.subset(np.arange(1000, 2000))
    fitted = [fit_temperature(logits_NK, half.truth_N) for logits_NK in half.logits_SNK]
    for number, t in enumerate(fitted):
        before, after = (negative_log_likelihood(rest.logits_SNK[number], rest.truth_N, one) for one in (1.0, t))
        assert after < before + 0.005


# --- risk control


def test_the_p_value_is_the_exact_binomial_tail() -> None:
    for n, epsilon, delta in ((300, 0.01, 0.05), (1000, 0.02, 0.1)):
        tail, most = 0.0, -1
        while (tail := tail + comb(n, most + 1) * epsilon ** (most + 1) * (1 - epsilon) ** (n - most - 1)) <= delta:
            most += 1
        counts = np.array([most, most + 1])
        assert passed(counts, n, epsilon, 1 - delta) == 1  # the first of the two, and no further


def test_the_test_stops_at_the_first_step_that_fails_though_later_ones_would_pass() -> None:
    counts = np.array([0, 1, 30, 0, 0])
    assert passed(counts, 1000, 0.01, 0.95) == 2
    assert naively_passed(counts, 1000, 0.01) == 2
    assert naively_passed(np.array([0, 10, 11]), 1000, 0.01) == 2
    assert passed(np.array([0, 10, 11]), 1000, 0.01, 0.95) == 1


def test_too_few_samples_are_no_evidence_even_without_a_loss() -> None:
    least = least_samples(0.01, 0.95)
    assert least == 299
    assert passed(np.array([0]), least, 0.01, 0.95) == 1
    assert passed(np.array([0]), least - 1, 0.01, 0.95) == 0


def test_the_thresholds_tested_are_those_that_the_one_knob_gives_above_the_calibrated_one(trace: Trace) -> None:
    chosen = controlled(trace, 0.01, 0.95, [0.3, 0.2, 0.9, 0.4])
    assert chosen is not None
    at = sum(chosen.thresholds) / 4
    plan = ModelPlan("ab", 9, (1, 3, 5, 6, 8), (4,) * 9, (*chosen.thresholds, None), at)
    for share in (0.0, 0.3, 0.9, 1.0):
        knob = at + share * (1 - at)
        moved = [plan.threshold_at(number, knob) for number in range(4)]
        u = (1.0 - moved[0]) / 0.3
        assert moved == pytest.approx(thresholds_on([0.3, 0.2, 0.9, 0.4], u), abs=1e-6)


def test_the_line_begins_without_early_exits_and_steps_are_close_together_there(trace: Trace) -> None:
    assert steps()[0] < 1e-5
    assert (np.diff(steps()) > 0).all()
    assert thresholds_on([1.0, 0.5], 0.2) == (0.8, 0.9)
    assert thresholds_on([1.0, 0.0], 1.0) == (0.0, 1.0)
    assert not losses(trace, (0.0,) * 4).any()


def test_nothing_is_chosen_when_even_the_strictest_step_fails() -> None:
    """An exit that is always wrong and always sure."""
    n, costs = 400, np.ones(2, np.int64)
    labels_NS = np.stack([np.ones(n), np.zeros(n)], axis=1).astype(np.int32)
    sure = Trace(
        measure="margin", scores_NS=np.ones((n, 2)), labels_NS=labels_NS, truth_N=np.zeros(n, np.int32), layer_macs_L=costs,
        layer_bytes_L=costs, head_macs_S=costs, exit_layers_S=np.arange(2), about={},
    )  # fmt: skip
    assert controlled(sure, 0.05, 0.95) is None


@pytest.mark.parametrize("max_loss", [0.01, 0.02])
def test_the_promise_holds_over_calibration_sets_drawn_from_a_pool(trace: Trace, max_loss: float) -> None:
    """200 sets of 500 of the shipped images, each scored on all of them: the binomial bound on 5 % of them is 18."""
    every_UN = losses(trace, (1.0,) * (trace.exits - 1))
    true_U = every_UN.mean(axis=1)
    rng = np.random.default_rng(0)
    kept = broken = 0
    for _ in range(200):
        count_U = every_UN[:, rng.integers(0, len(trace), 500)].sum(axis=1)
        done, naive = passed(count_U, 500, max_loss, 0.95), naively_passed(count_U, 500, max_loss)
        kept += done == 0 or true_U[done - 1] <= max_loss
        broken += naive > 0 and true_U[naive - 1] > max_loss
    assert 200 - kept <= 18
    assert broken > 18


# --- budgets


@pytest.mark.parametrize("share", [0.15, 0.25, 0.6, 2.0])
def test_a_budget_is_kept_and_no_single_threshold_does_better(trace: Trace, share: float) -> None:
    budget = share * trace.plain_macs
    found = trace.score(best_under_budget(trace, budget))
    assert found.mean_macs <= budget
    single = [trace.score(t) for t in np.linspace(0, 1, 41)]
    best = max(score.accuracy for score in single if score.mean_macs <= budget)
    assert found.accuracy >= best - 0.001


def test_a_budget_below_the_first_exit_is_refused(trace: Trace) -> None:
    with pytest.raises(UsageError, match="at least 1,264,128 MACs"):
        best_under_budget(trace, 1e6)
    assert best_under_budget(trace, float(trace.macs_S[0])) == pytest.approx((0.0,) * 4, abs=0.3)


def test_the_cheapest_thresholds_within_a_loss_keep_it_on_their_samples(trace: Trace) -> None:
    found = trace.score(cheapest_within_loss(trace, 0.005))
    assert found.loss <= 0.005
    assert found.mean_macs < trace.score(0.9).mean_macs


def test_curves_meet_the_ends_and_are_read_between_their_points(trace: Trace) -> None:
    curve = curve_of(trace)
    assert curve.macs_P[0] == pytest.approx(trace.macs_S[0], rel=0.01)
    assert curve.macs_P[-1] == trace.macs_S[-1]
    assert curve.accuracy_at(float(trace.macs_S[-1])) == pytest.approx(trace.score(1.0).accuracy)
    assert curve.accuracy_at(0.5 * trace.macs_S[0]) is None
    values = [curve.accuracy_at(macs) for macs in equal_costs(trace)]
    assert all(value is not None and 0.85 < value < 0.95 for value in values)
