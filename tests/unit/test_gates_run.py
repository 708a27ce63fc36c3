"""JEI-DNN's gates as agents run them: composed ONNX segments and the running judge give what training reckons with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mdi_exit.data import shipped
from mdi_exit.data.pixels import inputs_of
from mdi_exit.model.artifact import Artifact
from mdi_exit.model.compose import Composer
from mdi_exit.model.export import export_artifact
from mdi_exit.model.manifest import Calibration, InputSpec
from mdi_exit.outcomes import outcomes
from mdi_exit.policy.exiting import should_exit

torch = pytest.importorskip("torch", reason="needs the extra 'torch'")

from mdi_exit.model.network import MobileNetV2Config, mobilenetv2  # noqa: E402 - only with torch
from mdi_exit.training.phases import Trainee  # noqa: E402
from mdi_exit.training.strategies.jei import sureness  # noqa: E402

SPEC = InputSpec(kind="image", shape=(1, 28, 28), mean=(0.286,), std=(0.353,))
FIELDS = {
    "kind": "mobilenetv2",
    "classes": 10,
    "channels_in": 1,
    "width": 0.25,
    "exits": [1, 3, 5, 8],
    "stem_stride": 2,
}
IMAGES = 256


@pytest.fixture(scope="module")
def made() -> Trainee:
    """Untrained, with statistics of real images, heads that differ from sample to sample, and gates that let some out."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = Trainee(mobilenetv2(MobileNetV2Config(width=0.25, exits=(1, 3, 5, 8))), gated=True)
    made.train()
    with torch.no_grad():
        for _ in range(4):
            made.network(x_NCHW())
        made.eval()
        for head in made.heads:
            head[-1].weight.mul_(20)
        for gate, logits_NK, share in zip(made.gates, made.network(x_NCHW()), (0.7, 0.6, 0.5), strict=False):
            gate.linear.weight.copy_(torch.tensor([[30.0, -0.2, 5.0, -0.1]]))
            gate.linear.bias.zero_()
            gate.linear.bias.sub_(gate.logit(logits_NK).quantile(share))  # so that each lets some of them out
    return made


@pytest.fixture(scope="module")
def artifact(made: Trainee, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return export_artifact(
        made.network, tmp_path_factory.mktemp("gated"), name="gated", input_spec=SPEC, labels=shipped().classes,
        rebuild=FIELDS, training={}, gates=list(made.gates), calibration=Calibration(measure="gate", threshold=0.5),
    )  # fmt: skip


def x_NCHW() -> Any:
    return torch.from_numpy(inputs_of(shipped().images_NHWC[:IMAGES], SPEC))


def reckoned(made: Trainee) -> tuple[Any, Any]:
    """h of each early exit, N×3, and the exit of each sample by h ≥ 0.5."""
    with torch.inference_mode():
        logits = made.network(x_NCHW())
        g_NG = torch.cat([gate(one) for gate, one in zip(made.gates, logits, strict=False)], 1)
    h_NG = sureness(g_NG).numpy()
    leaves_NL = np.concatenate((h_NG >= 0.5, np.ones((IMAGES, 1), bool)), 1)
    return h_NG, leaves_NL.argmax(1)


def test_scores_and_exits_of_the_artifact_are_those_of_training(made: Trainee, artifact: Artifact) -> None:
    h_NG, exits_N = reckoned(made)
    assert len(set(exits_N.tolist())) >= 3  # the test would show nothing if all samples left at one exit
    trace = outcomes(artifact, shipped().subset(np.arange(IMAGES))).trace("gate")
    scores_NG = trace.scores_NS[:, :-1]
    still_here_NG = np.cumsum(h_NG >= 0.99, axis=1) - (h_NG >= 0.99) == 0
    np.testing.assert_allclose(scores_NG[still_here_NG], h_NG[still_here_NG], atol=1e-4)
    assert trace.exits_at(0.5).tolist() == exits_N.tolist()
    assert np.abs(h_NG - 0.5).min() > 1e-6


def test_a_node_gives_every_exit_its_gates_value(made: Trainee, artifact: Artifact) -> None:
    """One image at a time, as the executor runs it, with the state that travels from exit to exit."""
    from mdi_exit.confidence import judge
    from mdi_exit.engine.onnx import OnnxEngine
    from mdi_exit.span import LayerSpan

    h_NG, exits_N = reckoned(made)
    plan, engine, composer = artifact.manifest.plan, OnnxEngine(1), Composer(artifact)
    for row in range(40):
        x, entry, state, number = x_NCHW()[row : row + 1].numpy(), 0, (), 0
        while True:
            key = plan.segment(entry, LayerSpan(0, 9), early_exits=True)
            engine.load(key, composer.segment(key))
            output = engine.run(key, x)
            if key.stop == 9:
                break
            judged = judge("gate", output.logits_NK, states=[state], exits=4, gate_N1=output.gate_N1)
            (score,), (state,) = judged.scores, judged.states
            assert score == pytest.approx(h_NG[row, number], abs=1e-4)
            if should_exit(score, plan.threshold_at(number, 0.5), last=False, inclusive=plan.inclusive):
                break
            x, entry, number = output.features, key.stop, number + 1
        assert number == exits_N[row]


def test_a_segment_without_its_head_has_no_gate(artifact: Artifact) -> None:
    import onnx

    from mdi_exit.segments import SegmentKey

    composer = Composer(artifact)
    with_head = onnx.load_from_string(composer.segment(SegmentKey(0, 2, True)))
    assert {output.name for output in with_head.graph.output} == {"features", "logits", "gate"}
    without = onnx.load_from_string(composer.segment(SegmentKey(0, 2, False)))
    assert {output.name for output in without.graph.output} == {"features"}
    assert not any(node.name.startswith("gate_") for node in without.graph.node)
