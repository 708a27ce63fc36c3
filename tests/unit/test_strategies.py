"""What each strategy minimises, against numbers worked by hand, and what it leaves alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi_exit.errors import UsageError

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")

from torch import tensor  # noqa: E402 - only with torch

from mdi_exit.confidence import judge  # noqa: E402
from mdi_exit.data import shipped  # noqa: E402
from mdi_exit.model.gate import Gate, statistics  # noqa: E402
from mdi_exit.model.network import MobileNetV2Config, MultiExitNetwork, mobilenetv2  # noqa: E402
from mdi_exit.training.loop import FitSettings, fit  # noqa: E402
from mdi_exit.training.phases import Evaluation, Taps, Trainee  # noqa: E402
from mdi_exit.training.recipe import Recipe  # noqa: E402
from mdi_exit.training.samples import input_spec, samples_of  # noqa: E402
from mdi_exit.training.strategies.distill import DistillPhase, divergence  # noqa: E402
from mdi_exit.training.strategies.frozen import BackbonePhase, HeadsPhase  # noqa: E402
from mdi_exit.training.strategies.jei import (  # noqa: E402
    AlternatingPhase,
    WarmUpPhase,
    best_exits,
    classifier_loss,
    gate_targets,
    jei_recipe,
    positive_weights,
    shares,
    sureness,
)
from mdi_exit.training.strategies.joint import JointPhase, exit_weights, weighted  # noqa: E402

SETTINGS = FitSettings(threads=1, augmentation="none")
RECIPE = Recipe(epochs=1, batch_size=32, learning_rate=0.02)


def trainee(*, gated: bool = False) -> Trainee:
    torch.manual_seed(0)
    return Trainee(mobilenetv2(MobileNetV2Config(width=0.25, exits=(1, 3, 8))), gated=gated)


def samples(first: int = 0, count: int = 96) -> Any:
    part = shipped()
    return samples_of(part.subset(part.ids_N[first : first + count]), input_spec(part))


def state_of(*modules: Any) -> dict[str, Any]:
    return {
        f"{number}.{key}": value.clone()
        for number, module in enumerate(modules)
        for key, value in module.state_dict().items()
    }


# --- joint


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("half", (0.5, 0.5, 1.0)),
        ("uniform", (1.0, 1.0, 1.0)),
        ("linear", (1 / 3, 2 / 3, 1.0)),
        ("0.1,0,2", (0.1, 0.0, 2.0)),
    ],
)
def test_exit_weights(text: str, weights: tuple[float, ...]) -> None:
    assert exit_weights(text, 3) == pytest.approx(weights)


@pytest.mark.parametrize("text", ["", "quadratic", "1,2", "1,2,3,4", "1,-1,1", "1,nan,1", "1,inf,1", "0,0,0"])
def test_wrong_exit_weights_are_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="--exit-weights"):
        exit_weights(text, 3)


def test_the_joint_loss_is_the_weighted_sum() -> None:
    losses = weighted((0.5, 2.0), [tensor(3.0), tensor(1.0)])
    assert losses.total.item() == pytest.approx(3.5)
    assert losses.by_exit_L.tolist() == [3.0, 1.0]


# --- distill


def test_divergence_is_the_scaled_kl_of_softened_probabilities() -> None:
    """At T = 2 logits (2 ln 3, 0) are (3/4, 1/4) and (0, 0) are (1/2, 1/2)."""
    teacher, student = tensor([[2 * math.log(3), 0.0]]), tensor([[0.0, 0.0]])
    by_hand = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert divergence(student, teacher, 2.0).item() == pytest.approx(4 * by_hand, rel=1e-5)
    assert divergence(teacher, teacher, 2.0).item() == pytest.approx(0.0, abs=1e-6)


def test_the_teacher_is_not_taught() -> None:
    teacher, student = tensor([[1.0, 0.0]], requires_grad=True), tensor([[0.0, 0.0]], requires_grad=True)
    divergence(student, teacher, 3.0).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_distillation_brings_early_exits_nearer_to_the_last() -> None:
    """Heads alone are moved, by the teaching part alone, so that nothing else can be the reason."""
    made, data = trainee(), samples()
    fit(made, [BackbonePhase(made, Recipe(epochs=2, batch_size=32, learning_rate=0.05))], data, data, SETTINGS)
    made.eval().requires_grad_(True)
    batch = next(data.parts(torch.device("cpu"), 96))
    phase = DistillPhase(made, RECIPE, (1.0, 1.0, 0.0), share=1.0)
    optimiser = torch.optim.SGD([one for head in made.heads for one in head.parameters()], 0.05)
    apart = []
    for step in range(20):
        losses = phase.loss(step, *batch)
        apart.append(sum(losses.by_exit_L[:-1].tolist()))
        optimiser.zero_grad()
        losses.total.backward()
        optimiser.step()
    assert apart[-1] < 0.8 * apart[0]


def test_half_of_a_distilled_exits_loss_is_cross_entropy() -> None:
    made = trainee().eval()
    batch, labels_N = next(samples().parts(torch.device("cpu"), 32))
    with torch.no_grad():
        logits = made.network(batch)
        losses = DistillPhase(made, RECIPE, (1.0, 1.0, 1.0), temperature=2.0).loss(0, batch, labels_N).by_exit_L
    cross = [torch.nn.functional.cross_entropy(one, labels_N).item() for one in logits]
    taught = [divergence(one, logits[-1], 2.0).item() for one in logits[:-1]]
    expected = [*(0.5 * a + 0.5 * b for a, b in zip(cross, taught, strict=False)), cross[-1]]
    assert losses.tolist() == pytest.approx(expected, rel=1e-5)


# --- frozen


@pytest.mark.parametrize("strategy", ["heads", "warm-up", "alternating"])
@pytest.mark.parametrize("augmentation", ["none", "mirror-shift"])
def test_a_frozen_backbone_stays_bit_for_bit(strategy: str, augmentation: Any) -> None:
    made, data = trainee(gated=True), samples()
    phases = {
        "heads": HeadsPhase(made, RECIPE),
        "warm-up": WarmUpPhase(made, jei_recipe(1)),
        "alternating": AlternatingPhase(made, jei_recipe(1), (0.3, 0.6, 1.0)),
    }
    backbone, heads = state_of(*made.backbone), state_of(*made.heads)
    assert any("running_mean" in key for key in backbone)
    fit(made, [phases[strategy]], data, data, FitSettings(threads=1, head_augmentation=augmentation))
    after = state_of(*made.backbone)
    assert all(torch.equal(value, after[key]) for key, value in backbone.items())
    changed = state_of(*made.heads)
    assert any(not torch.equal(value, changed[key]) for key, value in heads.items())


def test_a_backbone_is_trained_without_its_heads() -> None:
    made, data = trainee(), samples()
    backbone, heads = state_of(*made.backbone), state_of(*made.heads)
    rows = fit(made, [BackbonePhase(made, RECIPE)], data, data, SETTINGS)
    after = state_of(*made.heads)
    assert all(torch.equal(value, after[key]) for key, value in heads.items())
    changed = state_of(*made.backbone)
    assert any(not torch.equal(value, changed[key]) for key, value in backbone.items() if "running_mean" in key)
    assert [math.isnan(loss) for loss in rows[0].losses] == [True, True, False]


# --- JEI-DNN


def test_statistics_of_a_gate_by_hand() -> None:
    """p = (1/2, 1/4, 1/4): entropy 1.5 ln 2; p² normalised is (2/3, 1/6, 1/6)."""
    p = tensor([[0.5, 0.25, 0.25]])
    squared = [2 / 3, 1 / 6, 1 / 6]
    expected = [0.5, 1.5 * math.log(2), 0.25, -sum(q * math.log(q) for q in squared)]
    assert statistics(p.log())[0].tolist() == pytest.approx(expected, rel=1e-5)
    assert statistics(p.log() + 7)[0].tolist() == pytest.approx(expected, rel=1e-5)  # logits are free by a constant


def test_no_gradient_of_a_gate_reaches_the_logits() -> None:
    logits, gate = tensor([[1.0, 0.0]], requires_grad=True), Gate()
    gate(logits).sum().backward()
    assert logits.grad is None
    assert gate.linear.weight.grad is not None


def test_shares_and_sureness_by_hand() -> None:
    """g = 0.2, 0.5, 0.9: P = 0.2, 0.5, 0.3; h = 0.2, 0.5/0.8, 0.3/(0.8·0.375) = 1."""
    g = tensor([[0.2, 0.5, 0.9], [1.0, 0.5, 0.5]])
    torch.testing.assert_close(shares(g), tensor([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]]))
    torch.testing.assert_close(sureness(g), tensor([[0.2, 0.625, 1.0], [1.0, 1.0, 1.0]]))


@given(st.lists(st.lists(st.floats(0.001, 0.999), min_size=3, max_size=3), min_size=1, max_size=8))
def test_sureness_is_what_agents_judge(rows: list[list[float]]) -> None:
    """As long as a sample is there: once an h is 1 but for rounding, nothing is left, and what follows is rounding too."""
    g_NG = torch.tensor(rows)
    here = torch.ones(len(rows), dtype=torch.bool)
    states: list[Any] = [()] * len(rows)
    for number in range(3):
        logits = torch.zeros(len(rows), 2).numpy()
        judged = judge("gate", logits, states=states, exits=4, gate_N1=g_NG[:, number : number + 1].numpy())
        states = judged.states
        expected = sureness(g_NG)[:, number]
        torch.testing.assert_close(torch.tensor(judged.scores)[here], expected[here], atol=1e-4, rtol=0)
        here &= expected < 0.99


def test_the_classifier_loss_keeps_each_samples_size_and_shifts_its_weight() -> None:
    """Σ P·CE = 0.2·3 + 0.5·1 = 1.1 is made 4 = 3 + 1; the gradient is that of P·CE, times 4/1.1."""
    losses = tensor([[3.0, 1.0]], requires_grad=True)
    loss = classifier_loss(tensor([[0.2, 0.5]]), losses)
    assert loss.item() == pytest.approx(4.0)
    loss.backward()
    assert losses.grad is not None
    assert losses.grad[0].tolist() == pytest.approx([0.2 * 4 / 1.1, 0.5 * 4 / 1.1])


def test_best_exits_and_targets_by_hand() -> None:
    losses = tensor([[1.0, 0.4, 0.1], [0.2, 0.2, 0.2], [2.0, 2.0, 0.1]])
    cost = tensor([0.25, 0.5, 1.0])
    best = best_exits(losses, cost, 1.0)  # 1.25 0.9 1.1 | 0.45 0.7 1.2 | 2.25 2.5 1.1
    assert best.tolist() == [1, 0, 2]
    assert gate_targets(best, 2).tolist() == [[0, 1], [1, 1], [0, 0]]
    assert best_exits(losses, cost, 0.0).tolist() == [2, 0, 2]


def test_targets_that_are_1_once_by_hand() -> None:
    best = tensor([1, 0, 2])
    assert gate_targets(best, 2, "once").tolist() == [[0, 1], [1, 0], [0, 0]]


class _Given(torch.nn.Module):
    """A head whose features are its logits."""

    def forward(self, logits_NK: Any) -> Any:
        return logits_NK


def doubtful() -> tuple[Trainee, Taps, Any]:
    """Three exits that all sound alike; the first is right for a quarter, the second for another, the last for the rest."""
    layers = [torch.nn.Identity() for _ in range(3)]
    made = Trainee(MultiExitNetwork(layers, {number: _Given() for number in range(3)}), gated=True)
    right_SN = torch.arange(3)[:, None] == tensor([0, 1, 2, 2])[None, :]
    logits_SNK = 2.0 * torch.stack((right_SN.float(), 1 - right_SN.float()), 2)
    return made, Taps((logits_SNK[0], logits_SNK[1]), logits_SNK[2]), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(("targets", "right"), [("onward", 0.25), ("once", 0.5)])
def test_only_targets_that_are_1_once_add_up_where_exits_are_in_doubt(targets: Any, right: float) -> None:
    """Gates that learn to the end: once 1/4 and 1/4, so that half of each sample is left for the last exit and h stays
    below 1/2; onward 1/4 and 1/2, with positive weights 3 and 1 even 1/2 and 1/2, so that all leave early."""
    torch.manual_seed(0)
    made, batch, labels_N = doubtful()
    phase = AlternatingPhase(made, jei_recipe(1), (0.1, 0.2, 0.3), 0.1, targets)
    logits_SNK = torch.stack((*batch.features, batch.last_BK))
    phase.begin(lambda: Evaluation(logits_SNK, labels_N))
    optimiser = torch.optim.LBFGS(made.gates.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Any:
        optimiser.zero_grad()
        loss = phase.loss(200, batch, labels_N).total
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        g_NG = torch.cat([gate(one) for gate, one in zip(made.gates, batch.features, strict=True)], 1)
    sum_by_hand = 0.5 if targets == "once" else 1.0
    assert g_NG.sum(1).tolist() == pytest.approx([sum_by_hand] * 4, abs=0.01)
    sure_NS = torch.cat((sureness(g_NG) >= 0.5 - 1e-3, torch.ones(4, 1, dtype=torch.bool)), 1)
    exit_N = sure_NS.float().argmax(1)
    labels_SN = logits_SNK.argmax(2)
    assert (labels_SN[exit_N, torch.arange(4)] == labels_N).double().mean().item() == right


def test_positive_weights_are_negatives_over_positives_at_most_5() -> None:
    targets = tensor([[1.0, 1.0, 0.0, 0.0]] * 2 + [[0.0, 1.0, 0.0, 1.0]] + [[0.0] * 4] * 9)
    assert positive_weights(targets).tolist() == pytest.approx([5.0, 3.0, 5.0, 5.0])
    assert positive_weights(torch.ones(4, 1)).tolist() == [0.0]


def taps(made: Trainee, count: int = 8) -> tuple[Taps, Any]:
    x_NCHW, labels_N = next(samples(count=count).parts(torch.device("cpu"), count))
    return made.taps(x_NCHW), labels_N


def test_the_warm_up_loss_weighs_early_heads_most() -> None:
    made = trainee(gated=True)
    phase = WarmUpPhase(made, jei_recipe(1))
    losses = phase.loss(0, *taps(made))
    first, second, last = losses.by_exit_L.tolist()
    assert losses.total.item() == pytest.approx(2 * first + second + last, rel=1e-5)


def evaluation(*wrong: float) -> Evaluation:
    """Two samples of class 0; each exit's logit of class 1 is as given."""
    logits = torch.tensor([[[0.0, value]] * 2 for value in wrong])
    return Evaluation(logits, torch.zeros(2, dtype=torch.int64))


def test_a_head_stops_when_validation_says_so_and_keeps_its_best() -> None:
    made = trainee(gated=True)
    phase = WarmUpPhase(made, jei_recipe(9))
    first = made.heads[0]
    best = state_of(first)
    assert not phase.epoch_done(evaluation(0.0, 0.0, 0.0))
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1.0)
    assert not phase.epoch_done(evaluation(1.0, -1.0, 0.0))
    assert not phase.epoch_done(evaluation(1.0, -2.0, 0.0))  # the first has stopped, the second still improves
    phase.set_modes()
    assert not any(parameter.requires_grad for parameter in first.parameters())
    assert all(parameter.requires_grad for parameter in made.heads[1].parameters())
    stopped = phase.loss(0, *taps(made))
    assert stopped.total.item() == pytest.approx(sum(stopped.by_exit_L[1:].tolist()), rel=1e-5)
    assert not phase.epoch_done(evaluation(-9.0, -2.0, 0.0))
    assert phase.epoch_done(evaluation(-9.0, -2.0, 0.0))
    phase.end()
    assert all(torch.equal(value, state_of(first)[key]) for key, value in best.items())


def test_turns_of_200_batches_train_heads_then_gates() -> None:
    made = trainee(gated=True)
    phase = AlternatingPhase(made, jei_recipe(1), (0.3, 0.6, 1.0))
    phase.set_modes()
    batch = taps(made)
    for step, heads_learn in ((0, True), (199, True), (200, False), (399, False), (400, True)):
        made.zero_grad(set_to_none=True)
        phase.loss(step, *batch).total.backward()
        assert all((one.grad is not None) == heads_learn for head in made.heads for one in head.parameters()), step
        assert all((one.grad is None) == heads_learn for gate in made.gates for one in gate.parameters()), step


@pytest.mark.parametrize(("batches", "gates"), [(0, 0), (200, 0), (201, 1), (400, 200), (599, 200), (1000, 400)])
def test_gates_have_every_second_turn(batches: int, gates: int) -> None:
    phase = AlternatingPhase(trainee(gated=True), jei_recipe(1), (0.3, 0.6, 1.0))
    assert phase.gate_batches(batches) == gates


def test_the_gate_loss_by_hand() -> None:
    """Gates at logit 0: BCE is ln 2 each, positives weighted by validation."""
    made = trainee(gated=True)
    with torch.no_grad():
        for gate in made.gates:
            gate.linear.weight.zero_()
            gate.linear.bias.zero_()
    phase = AlternatingPhase(made, jei_recipe(1), (0.3, 0.6, 1.0), cost_weight=1000.0)  # the first exit is always best
    phase.begin(lambda: evaluation(0.0, 0.0, 0.0))
    assert phase.loss(200, *taps(made)).total.item() == pytest.approx(0.0, abs=1e-6)  # no negatives: weight 0
    phase.restore({"positive_weights": torch.tensor([2.0, 4.0])})
    assert phase.loss(200, *taps(made)).total.item() == pytest.approx(3 * math.log(2), rel=1e-5)


def test_a_joint_phase_trains_everything() -> None:
    made, data = trainee(), samples()
    before = state_of(made)
    fit(made, [JointPhase(made, RECIPE, (0.5, 0.5, 1.0))], data, data, SETTINGS)
    after = state_of(made)
    assert all(not torch.equal(value, after[key]) for key, value in before.items() if key.endswith("running_mean"))
