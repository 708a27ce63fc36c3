"""Outcomes and traces: the same as node by node, through codecs, kept in files that hold nothing but arrays."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mdi_exit.benchmark.synthetic import write_identity_artifact
from mdi_exit.data import Dataset, shipped
from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact, rewritten
from mdi_exit.outcomes import Outcomes, measures_of, outcomes
from mdi_exit.policy.exiting import should_exit
from mdi_exit.trace import Trace


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    return Artifact.open(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def images() -> Dataset:
    return shipped().subset(np.arange(300))


@pytest.fixture(scope="module")
def made(artifact: Artifact, images: Dataset) -> Outcomes:
    return outcomes(artifact, images, batch=128)


def test_accuracies_are_those_that_the_artifact_was_measured_with(artifact: Artifact, made: Outcomes) -> None:
    accuracy_S = made.trace("max-probability").right_NS.mean(axis=0)
    told = [spec.accuracy for spec in artifact.manifest.exits]
    np.testing.assert_allclose(accuracy_S, told, atol=0.05)


def test_the_size_of_a_batch_changes_no_label(artifact: Artifact, images: Dataset, made: Outcomes) -> None:
    few = outcomes(artifact, images.subset(np.arange(7)), batch=1)
    np.testing.assert_allclose(few.logits_SNK, made.logits_SNK[:, :7], atol=1e-4)
    assert np.array_equal(few.truth_N, made.truth_N[:7])


def test_costs_are_of_layers_and_of_the_heads_on_the_way(artifact: Artifact, made: Outcomes) -> None:
    trace = made.trace("max-probability")
    layers = [layer.macs for layer in artifact.manifest.layers]
    heads = [spec.macs for spec in artifact.manifest.exits]
    assert trace.macs_S[1] == sum(layers[:4]) + heads[0] + heads[1]
    assert trace.macs_S[-1] == sum(layers) + sum(heads)
    assert trace.plain_macs == sum(layers) + heads[-1]


def test_features_pass_the_codecs_of_the_cuts(
    artifact: Artifact, images: Dataset, made: Outcomes, tmp_path: Path
) -> None:
    some = images.subset(np.arange(50))
    by_option = outcomes(artifact, some, codec="int8")
    layers = list(artifact.manifest.layers)
    layers[3] = msgspec.structs.replace(layers[3], codec="int8")
    own = rewritten(artifact, msgspec.structs.replace(artifact.manifest, layers=tuple(layers)), tmp_path)
    by_cut = outcomes(own, some)
    plain = made.logits_SNK[:, :50]
    assert np.array_equal(by_cut.logits_SNK[0], plain[0])  # the first exit comes before that cut
    for lossy in (by_option.logits_SNK[1:], by_cut.logits_SNK[1:]):
        assert 1e-4 < np.abs(lossy - plain[1:]).max() < 3
    assert by_option.about["codec"] == "int8"


def test_a_measure_that_needs_gates_is_refused_without(made: Outcomes) -> None:
    assert "gate" not in measures_of(made)
    with pytest.raises(UsageError, match="measure gate"):
        made.trace("gate")


def test_classes_that_the_model_does_not_know_are_one_line(artifact: Artifact, images: Dataset) -> None:
    strange = Dataset("mine", images.images_NHWC, images.labels_N, ("cat", *images.classes[1:]), images.ids_N)
    with pytest.raises(UsageError, match="data mine: expected classes that the model knows by name, got cat"):
        outcomes(artifact, strange)
    with pytest.raises(UsageError, match="at least one sample"):
        outcomes(artifact, images.subset(np.arange(0)))


def test_one_exit_is_an_artifact_too(tmp_path: Path) -> None:
    one = write_identity_artifact(tmp_path, (1, 4, 4), 3)
    data = Dataset("two", np.zeros((5, 4, 4, 1), np.uint8), np.array([0, 1, 0, 1, 0]), ("no", "yes"), np.arange(5))
    trace = outcomes(one, data).trace("max-probability")
    assert trace.exits_at(0.5).tolist() == [0] * 5
    assert trace.score(0.5).accuracy == 0.6


def test_progress_is_told(artifact: Artifact, images: Dataset) -> None:
    told: list[int] = []
    outcomes(artifact, images.subset(np.arange(10)), batch=4, progress=told.append)
    assert told == [4, 8, 10]


# --- the rule


SCORES = arrays.arrays(np.float64, (12, 4), elements=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))


@given(SCORES, st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]), min_size=3, max_size=3), st.booleans())
def test_a_trace_leaves_by_the_rule_of_the_nodes(scores_NS: np.ndarray, thresholds: list[float], gates: bool) -> None:
    costs = np.arange(1, 5, dtype=np.int64)
    labels_NS = np.arange(48, dtype=np.int32).reshape(12, 4) % 3
    truth_N = np.arange(12, dtype=np.int32) % 3
    measure = "gate" if gates else "margin"
    trace = Trace(
        measure=measure, scores_NS=scores_NS, labels_NS=labels_NS, truth_N=truth_N, layer_macs_L=costs, layer_bytes_L=costs,
        head_macs_S=costs, exit_layers_S=costs - 1, about={},
    )  # fmt: skip
    wanted = [
        next(e for e in range(4) if should_exit(row[e], [*thresholds, 0.0][e], last=e == 3, inclusive=gates))
        for row in scores_NS.tolist()
    ]
    assert trace.exits_at(thresholds).tolist() == wanted
    score = trace.score(thresholds)
    right = [labels_NS[n, e] == truth_N[n] for n, e in enumerate(wanted)]
    final = labels_NS[:, 3] == truth_N
    assert score.accuracy == pytest.approx(np.mean(right))
    assert score.loss == pytest.approx(np.mean([f and not r for f, r in zip(final, right, strict=True)]))
    assert score.mean_macs == pytest.approx(np.mean([2 * sum(range(1, e + 2)) for e in wanted]))
    assert sum(score.exits) == 12


# --- files


def test_files_give_back_what_was_written(made: Outcomes, tmp_path: Path) -> None:
    made.save(tmp_path / "o.npz")
    again = Outcomes.load(tmp_path / "o.npz")
    assert again.about == made.about
    trace = again.trace("entropy")
    assert trace.score(0.8) == made.trace("entropy").score(0.8)
    trace.save(tmp_path / "t.npz")
    loaded = Trace.load(tmp_path / "t.npz")
    assert (loaded.measure, loaded.about, loaded.score(0.8)) == ("entropy", trace.about, trace.score(0.8))
    assert len(loaded) == 300


def test_a_subset_has_the_samples_that_were_asked_for(made: Outcomes) -> None:
    few = made.subset(np.array([7, 7, 0]))
    assert (len(few), few.logits_SNK.shape) == (3, (made.exits, 3, made.logits_SNK.shape[2]))
    assert few.truth_N.tolist() == made.truth_N[[7, 7, 0]].tolist()
    whole, part = made.trace("margin"), few.trace("margin")
    assert part.labels_NS.tolist() == whole.labels_NS[[7, 7, 0]].tolist()
    assert part.scores_NS == pytest.approx(whole.subset(np.array([7, 7, 0])).scores_NS)
    assert part.plain_macs == whole.plain_macs


@pytest.mark.parametrize("kind", [Outcomes, Trace])
def test_files_that_are_something_else_are_one_line(
    kind: type[Outcomes] | type[Trace], made: Outcomes, tmp_path: Path
) -> None:
    path = tmp_path / "a.npz"
    trace = made.trace("margin")

    def refusal() -> str:
        with pytest.raises(UsageError) as caught:
            kind.load(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "readable" in refusal()
    path.write_bytes(b"no archive")
    assert "readable" in refusal()
    np.savez(path, about=np.array("{}"))
    assert "another file" in refusal()
    np.savez(path, x=np.zeros(3))
    assert "another file" in refusal()
    (made if kind is Trace else trace).save(path)
    assert "mdi-exit" in refusal()
    good = made if kind is Outcomes else trace
    good.save(path)
    with np.load(path) as file:
        content = {name: file[name] for name in file.files}
    np.savez(path, **{**content, "truth_N": content["truth_N"][:-1]})
    assert "truth_N: expected shape (300,), got (299,)" in refusal()
    np.savez(path, **{name: array for name, array in content.items() if name != "head_macs_S"})
    assert "head_macs_S" in refusal()


def test_a_trace_whose_scores_or_exits_cannot_be_is_one_line(made: Outcomes, tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    made.trace("margin").save(path)
    with np.load(path) as file:
        content = {name: file[name] for name in file.files}
    for name, spoilt in (("scores_NS", content["scores_NS"] + 1), ("exit_layers_S", content["exit_layers_S"][::-1])):
        np.savez(path, **{**content, name: spoilt})
        with pytest.raises(UsageError, match=r"0 to 1|rising exits"):
            Trace.load(path)


def test_a_file_that_cannot_be_written_is_one_line(made: Outcomes, tmp_path: Path) -> None:
    with pytest.raises(MdiExitError, match="could not write"):
        made.save(tmp_path / "nowhere" / "o.npz")
