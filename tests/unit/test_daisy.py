"""A speech encoder with DAISY's branches: what it learns from, how sure it is, and that all ways to run it agree."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'torch'")
pytest.importorskip("scipy", reason="needs the extra 'offline'")

import torch
from tones import SPEAKERS, WORDS, speech_artifacts, tones

from mdi_exit.benchmark.command import main as benchmark
from mdi_exit.benchmark.daisy_page import sheets_of
from mdi_exit.benchmark.daisy_rows import depth_within, first_at, ranked, told_apart
from mdi_exit.confidence import judge
from mdi_exit.data import Dataset, splits
from mdi_exit.engine import make_engine
from mdi_exit.errors import ArtifactError, UsageError
from mdi_exit.modality import modality_of
from mdi_exit.model.artifact import Artifact
from mdi_exit.model.compose import Composer
from mdi_exit.model.manifest import Calibration
from mdi_exit.model.speech import SpeechSizes, UnitBranch, present
from mdi_exit.outcomes import Outcomes, measures_of, outcomes
from mdi_exit.padding import stacked
from mdi_exit.segments import SegmentKey
from mdi_exit.trace import Trace
from mdi_exit.training.daisy.encoder import Learner, Stage, features_after, learn, masked
from mdi_exit.training.daisy.heads import threshold_within
from mdi_exit.training.daisy.hearing import Hearing, calibration_clips, clips_at
from mdi_exit.training.daisy.units import ABSENT, units_of, with_slope

SIZES = SpeechSizes(layers=3, width=16, heads=4, inner=32, bands=12, frames=16, units=6, near=5)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """What is this small is slower on several, and very slow on several that have to wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With ``made/keyword``, ``made/voice`` and the ``tones`` that they were trained on."""
    root = tmp_path_factory.mktemp("speech")
    speech_artifacts(root)
    return root


def sounds(count: int, seed: int = 0) -> torch.Tensor:
    """N×16×12, some shorter than others."""
    x_NTM = torch.randn(count, 16, 12, generator=torch.Generator().manual_seed(seed))
    for row, length in enumerate(range(count)):
        x_NTM[row, 16 - length % 8 :] = 0
    return x_NTM


# --- how sure


def test_a_branch_gives_one_less_the_mean_entropy_of_the_frames_that_are_there() -> None:
    branch, hidden_NTD = UnitBranch(16, 6).eval(), torch.randn(2, 9, 16)
    hidden_NTD[1, 4:] = 0
    with torch.no_grad():
        p_NTU = branch.logits(hidden_NTD).softmax(-1).numpy()
        sure_N = branch(hidden_NTD)[:, 0].numpy()
    entropy_NT = -(p_NTU * np.log(p_NTU)).sum(-1)
    expected = [1 - entropy_NT[0].mean() / np.log(6), 1 - entropy_NT[1, :4].mean() / np.log(6)]
    np.testing.assert_allclose(sure_N, expected, atol=1e-6)


def test_padding_has_no_say_in_features_nor_in_sureness() -> None:
    torch.manual_seed(0)
    learner = Learner(SIZES).eval()
    one, other = torch.randn(1, 5, 12), torch.randn(1, 16, 12)
    both = torch.from_numpy(stacked([one[0].numpy(), other[0].numpy()]))
    with torch.no_grad():
        for layer, (alone, batched) in enumerate(zip(learner.hidden(one), learner.hidden(both), strict=True)):
            np.testing.assert_allclose(batched[0, :5].numpy(), alone[0].numpy(), atol=1e-5)
            assert not batched[0, 5:].any()
            np.testing.assert_allclose(
                learner.branches[layer](batched)[0].numpy(), learner.branches[layer](alone)[0].numpy(), atol=1e-5
            )


def test_the_measure_takes_the_branch_and_nothing_of_the_classes() -> None:
    logits_NK = np.array([[9.0, 0.0], [0.0, 0.1]], np.float32)
    sure_N1 = np.array([[0.25], [np.nan]], np.float32)
    judged = judge("frame-entropy", logits_NK, states=[(), ()], exits=3, gate_N1=sure_N1)
    assert judged.labels == [0, 1]
    assert judged.scores == [0.25, 0.0]
    with pytest.raises(ValueError, match="branch"):
        judge("frame-entropy", logits_NK, states=[(), ()], exits=3)


# --- learning


def test_masks_are_spans_of_frames_that_are_there() -> None:
    there_NT = torch.ones(40, 30)
    there_NT[:20, 12:] = 0
    hidden_NT = masked(there_NT, torch.Generator().manual_seed(0))
    assert hidden_NT.any(1).all()
    assert not hidden_NT[there_NT == 0].any()
    assert 0.25 < float(hidden_NT[20:].float().mean()) < 0.65


def units(x_NTM: torch.Tensor, count: int = 6, seed: int = 0) -> torch.Tensor:
    return units_of(with_slope(x_NTM), x_NTM.any(-1), count, seed)


def test_units_are_given_to_frames_that_are_there_the_same_by_the_same_seed() -> None:
    x_NTM = sounds(12)
    units_NT = units(x_NTM, seed=1)
    assert (units_NT == units(x_NTM, seed=1)).all()
    assert ((units_NT == ABSENT) == ~x_NTM.any(-1)).all()
    assert set(units_NT[units_NT != ABSENT].tolist()) <= set(range(6))
    with pytest.raises(UsageError, match="--units"):
        units(sounds(1), 12)


def test_units_of_the_second_round_are_of_what_a_layer_makes_of_frames() -> None:
    torch.manual_seed(0)
    learner, x_NTM = Learner(SIZES).eval(), sounds(12)
    middle_NTD = features_after(learner, x_NTM, 1)
    torch.testing.assert_close(middle_NTD, list(learner.hidden(x_NTM))[1])
    found_NT = units_of(middle_NTD, x_NTM.any(-1), 6, 0)
    assert ((found_NT == ABSENT) == ~x_NTM.any(-1)).all()
    assert (found_NT != units(x_NTM)).any()


def test_frames_that_are_absent_have_no_say_in_what_branches_learn() -> None:
    torch.manual_seed(0)
    learner, x_NTM = Learner(SIZES).eval(), sounds(6)
    units_NT = units(x_NTM)
    longer = torch.nn.functional.pad(x_NTM, (0, 0, 0, 4)), torch.nn.functional.pad(units_NT, (0, 4), value=ABSENT)
    losses = [learner.loss("branches", x, u, torch.Generator()) for x, u in ((x_NTM, units_NT), longer)]
    torch.testing.assert_close(*losses)


def test_an_encoder_learns_of_masked_frames_most_and_of_all_others_half_as_much() -> None:
    torch.manual_seed(0)
    learner, x_NTM = Learner(SIZES).eval(), sounds(6)
    units_NT = units(x_NTM)
    hidden_NT = masked(present(x_NTM), torch.Generator().manual_seed(0))
    last_NTD = list(learner.hidden(torch.where(hidden_NT.unsqueeze(-1), learner.mask_M, x_NTM)))[-1]
    logits_NUT = learner.branches[-1].logits(last_NTD).transpose(1, 2)
    each_NT = torch.nn.functional.cross_entropy(logits_NUT, units_NT, ignore_index=ABSENT, reduction="none")
    weight_NT = torch.where(hidden_NT, 1.0, 0.5) * (units_NT != ABSENT)
    made = learner.loss("encoder", x_NTM, units_NT, torch.Generator().manual_seed(0))
    torch.testing.assert_close(made, (each_NT * weight_NT).sum() / weight_NT.sum())


def test_a_run_cut_short_goes_on_to_the_same_end_and_branches_leave_the_encoder_alone(tmp_path: Path) -> None:
    x_NTM = sounds(24)
    units_NT = units(x_NTM)
    stages = [Stage("encoder", 2, 1e-3, 8), Stage("branches", 2, 1e-2, 8)]

    def heard(stage: int, epoch: int) -> torch.Tensor:
        return x_NTM + (stage + 0.1 * epoch) * (x_NTM != 0)

    def run(checkpoint: Path | None, stop_after: int | None) -> Learner:
        torch.manual_seed(0)
        learner, said = Learner(SIZES), 0

        def say(_: str) -> None:
            nonlocal said
            said += 1
            if said == stop_after:
                raise KeyboardInterrupt

        learn(learner, stages, heard, units_NT, seed=0, purpose={"for": "this"}, checkpoint=checkpoint, say=say)
        return learner

    whole = run(None, None).state_dict()
    for stop_after in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "state.pt", stop_after)
    resumed = run(tmp_path / "state.pt", None).state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    torch.manual_seed(0)
    first_stage = Learner(SIZES)
    learn(first_stage, stages[:1], heard, units_NT, seed=0, purpose={}, checkpoint=None, say=lambda _: None)
    changed = {
        name.split(".")[0] for name, value in first_stage.state_dict().items() if not torch.equal(value, whole[name])
    }
    assert changed == {"branches"}
    assert torch.equal(first_stage.state_dict()["branches.2.linear.weight"], whole["branches.2.linear.weight"])


def test_fewer_clips_than_a_batch_are_a_batch() -> None:
    x_NTM, said = sounds(10), []
    learn(
        Learner(SIZES), [Stage("encoder", 3, 1e-3), Stage("branches", 3, 1e-3)], lambda *_: x_NTM, units(x_NTM), seed=0,
        purpose={}, checkpoint=None, say=said.append,
    )  # fmt: skip
    assert len(said) == 6


def test_the_threshold_is_the_cheapest_that_gives_up_no_more_than_allowed() -> None:
    scores_NS = np.array([[0.9, 0], [0.8, 0], [0.5, 0], [0.4, 0]], np.float64)
    labels_NS = np.array([[1, 1], [1, 1], [0, 1], [1, 1]], np.int32)
    trace = Trace(
        measure="frame-entropy", scores_NS=scores_NS, labels_NS=labels_NS, truth_N=np.ones(4, np.int32),
        layer_macs_L=np.array([10, 10]), layer_bytes_L=np.array([4, 4]), head_macs_S=np.array([1, 1]),
        exit_layers_S=np.array([0, 1]), about={},
    )  # fmt: skip
    assert trace.score(threshold_within(trace, 0.0)).exits == (2, 2)
    assert trace.score(threshold_within(trace, 0.25)).exits == (4, 0)
    assert [depth_within(trace, loss) for loss in (0.0, 0.24, 0.25)] == [1, 1, 0]


# --- artifacts


def test_both_tasks_share_every_layer_and_branch_byte_for_byte(folder: Path) -> None:
    keyword, voice = (Artifact.open(folder / "made" / task).manifest for task in ("keyword", "voice"))
    assert keyword.labels == tuple(sorted(WORDS))
    assert voice.labels == tuple(sorted(SPEAKERS))
    assert [layer.graph.sha256 for layer in keyword.layers] == [layer.graph.sha256 for layer in voice.layers]
    branches = [[spec.branch.sha256 for spec in one.exits if spec.branch] for one in (keyword, voice)]
    assert branches[0] == branches[1]
    assert len(branches[0]) == 2
    assert all(spec.graph.sha256 != other.graph.sha256 for spec, other in zip(keyword.exits, voice.exits, strict=True))
    assert keyword.calibration.measure == voice.calibration.measure == "frame-entropy"


def test_every_engine_and_every_cut_gives_the_same_features_logits_and_sureness(folder: Path) -> None:
    artifact = Artifact.open(folder / "made" / "keyword")
    x_NTM = modality_of(artifact).batch(splits(f"wav:{folder / 'tones'}").test.items)
    engines = [make_engine("torch", model=str(artifact.folder)), make_engine("onnxruntime")]
    composer, keys = (
        Composer(artifact),
        [SegmentKey(0, 2, head=True), SegmentKey(0, 1, head=True), SegmentKey(1, 2, head=True)],
    )
    found = []
    for engine in engines:
        for key in keys:
            engine.load(key, composer.segment(key))
        whole, first = engine.run(keys[0], x_NTM), engine.run(keys[1], x_NTM)
        found += [whole, engine.run(keys[2], first.features)]
    for other in found[1:]:
        for name in ("features", "logits_NK", "gate_N1"):
            np.testing.assert_allclose(getattr(other, name), getattr(found[0], name), atol=1e-4)
    assert found[0].gate_N1.shape == (len(x_NTM), 1)


def test_offline_the_measure_is_there_and_jei_gates_are_not(folder: Path) -> None:
    artifact = Artifact.open(folder / "made" / "keyword")
    made = outcomes(artifact, splits(f"wav:{folder / 'tones'}").test, batch=4)
    assert "frame-entropy" in measures_of(made)
    assert "gate" not in measures_of(made)
    trace = made.trace("frame-entropy")
    np.testing.assert_array_equal(trace.scores_NS[:, 0], made.gates_SN[0].astype(np.float64).clip(0, 1))


def test_a_measure_without_branches_is_refused(folder: Path) -> None:
    from msgspec.structs import replace

    from mdi_exit.model.artifact import sealed
    from mdi_exit.model.manifest import parse_manifest

    manifest = Artifact.open(folder / "made" / "keyword").manifest
    bare = replace(manifest, exits=tuple(replace(spec, branch=None) for spec in manifest.exits))
    with pytest.raises(ArtifactError, match="branches"):
        parse_manifest(sealed(bare), "model")
    parse_manifest(
        sealed(replace(bare, calibration=Calibration(), exits=tuple(replace(s, threshold=None) for s in bare.exits))),
        "m",
    )
    for change in ({"audio": None}, {"shape": (3,)}, {"mean": (0.0,)}):
        with pytest.raises(ArtifactError, match="input"):
            parse_manifest(sealed(replace(manifest, input=replace(manifest.input, **change))), "model")


@pytest.fixture(scope="module")
def second(folder: Path) -> Path:
    """As ``made`` in ``folder``, of seed 1."""
    speech_artifacts(folder, seed=1)
    return folder / "made-1"


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same words by others."""
    heard = tones(tmp_path_factory.mktemp("words") / "strangers", 2)
    for path in sorted(heard.rglob("*.wav")):
        path.rename(path.with_name(f"d{path.name}"))
    return heard


def test_the_table_has_every_seed_ratio_rule_and_depth_for_each_task(
    folder: Path, second: Path, strangers: Path, tmp_path: Path
) -> None:
    models = f"{folder / 'made'},{second}"
    flags = ["daisy", "--model", models, "--unheard", str(strangers), "--snrs", "10,0", "--out", str(tmp_path)]
    assert benchmark(flags, {}) == 0
    rows = json.loads(next(tmp_path.glob("daisy-*.json")).read_text())["rows"]
    assert [row["files shared"] for row in rows if row["name"] == "branches"] == [5, 5]
    tasks, ratios, grid = ("keyword", "keyword by strangers", "voice"), ("clean", 10.0, 0.0, "mean"), rows[0]["read at"]
    assert grid == [1, 1.25, 1.5, 1.75, 2, 2.25, 2.5, 2.75, 3]
    for seed, task in itertools.product((0, 1), tasks):
        of = [row for row in rows if row.get("task") == task and row["seed"] == seed]
        points = [row for row in of if row["name"] == "point"]
        assert [(row["snr_db"], row["rule"]) for row in points] == [
            (snr, rule) for snr in ratios for rule in ("daisy", "confidence")
        ]
        assert all(1 <= row["layers"] <= 3 and 0 <= row["accuracy"] <= 1 for row in points)
        depths = {row["snr_db"]: row["accuracy"] for row in of if row["name"] == "fixed"}
        for curve in (row for row in of if row["name"] == "curve"):
            assert len(curve["accuracy"]) == len(grid)
            assert [curve["accuracy"][0], curve["accuracy"][-1]] == [depths[curve["snr_db"]][at] for at in (0, -1)]
            assert 1 <= curve["layers to equal"] <= 3
        of_daisy = [row["layers"] for row in points if row["rule"] == "daisy"]
        assert of_daisy[-1] == pytest.approx(sum(of_daisy[:-1]) / 3, abs=1e-4)
        assert {row["clips"] for row in of} == ({18, 54} if "strangers" in task else {14, 42})
    assert not list(tmp_path.glob("*.unfinished"))
    page = next(tmp_path.glob("daisy-*.md")).read_text()
    assert all(f"\n{sheet.title}:\n" in page for sheet in sheets_of(rows))


def test_a_run_that_was_cut_short_hears_no_clip_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []

    def until(most: int) -> Callable[..., Outcomes]:
        def listened(artifact: Artifact, dataset: Dataset, batch: int) -> Outcomes:
            if len(heard) == most:
                raise KeyboardInterrupt
            heard.append(len(dataset))
            return outcomes(artifact, dataset, batch=batch)

        return listened

    flags = ["daisy", "--model", str(folder / "made"), "--snrs", "0", "--out", str(tmp_path)]
    monkeypatch.setattr("mdi_exit.benchmark.daisy.outcomes", until(4))
    with pytest.raises(KeyboardInterrupt):
        benchmark(flags, {})
    monkeypatch.setattr("mdi_exit.benchmark.daisy.outcomes", until(6))
    assert benchmark(flags, {}) == 0
    assert heard == 2 * [4 * 5, 14, 14]


def test_what_cannot_be_compared_is_refused(folder: Path, second: Path) -> None:
    made, heard = str(folder / "made"), str(folder / "tones")
    with pytest.raises(UsageError, match="no keyword in"):
        benchmark(["daisy", "--model", f"{second},{folder / 'made' / 'keyword'}"], {})
    with pytest.raises(UsageError, match="seed 0 twice"):
        benchmark(["daisy", "--model", f"{made},{made}"], {})
    with pytest.raises(UsageError, match=r"not heard.*ann, bob, cy"):
        benchmark(["daisy", "--model", made, "--unheard", heard], {})
    with pytest.raises(SystemExit):
        benchmark(["daisy", "--model", f"{made},"], {})


def test_spreads_reach_from_the_least_to_the_most_of_the_seeds() -> None:
    rows: list[dict[str, object]] = [{"name": "depths", "layers": 2, "read at": [1.0, 1.5, 2.0]}]
    scores = ((1.2, 0.5), (1.6, 0.6), (1.7, 0.4))
    for (seed, (layers, accuracy)), snr in itertools.product(enumerate(scores), ("clean", "mean")):
        at = {"seed": seed, "task": "keyword", "snr_db": snr, "clips": 10}
        rows += [{"name": "fixed", **at, "accuracy": [0.3, 0.5 + 0.1 * seed], "chosen": 2}]
        rows += [{"name": "sureness", **at, "by layer": [0.9]}]
        for rule in ("daisy", "confidence"):
            scored = {"layers": layers, "accuracy": accuracy, "macs": 0.5, "exits": [4, 6]}
            rows += [{"name": "point", **at, "rule": rule, **scored}]
            rows += [{"name": "telling", **at, "rule": rule, "right": [0.7], "spared": [None]}]
        for number, rule in enumerate(("daisy", "daisy, ranked", "confidence", "fixed")):
            curve = [0.3, 0.4 + 0.1 * seed * (number > 0), 0.5]
            rows += [{"name": "curve", **at, "rule": rule, "accuracy": curve, "layers to equal": 1.5 + 0.1 * number}]
    by_title = {sheet.title.partition(",")[0] + str(len(sheet.columns)): sheet for sheet in sheets_of(rows)}
    assert by_title["keyword7"].lines[0][1:3] == ("1.50 (1.20 to 1.70)", "50.0 (40.0 to 60.0)")
    assert by_title["keyword7"].lines[0][-1] == "60.0 (50.0 to 70.0)"
    equal = {line[0]: line[1:] for line in by_title["keyword3"].lines}
    assert equal["DAISY less supervised confidence"] == ("-10.0 (-20.0 to +0.0)", "-0.20 (-0.20 to -0.20)")


def test_the_fewest_layers_are_where_the_curve_first_reaches_what_is_wanted() -> None:
    layers, accuracies = np.array([1.0, 2.0, 4.0, 6.0]), np.array([0.5, 0.6, 0.8, 0.8])
    assert [first_at(layers, accuracies, wanted) for wanted in (0.4, 0.55, 0.7, 0.8)] == pytest.approx([1, 1.5, 3, 4])


def test_scores_tell_apart_as_often_as_pairs_are_in_order() -> None:
    rng = np.random.default_rng(0)
    scores_N, yes_N = rng.integers(0, 9, 60) / 9, rng.random(60) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores_N[yes_N] for b in scores_N[~yes_N]]
    assert told_apart(scores_N, yes_N) == pytest.approx(np.mean(pairs))
    assert told_apart(scores_N, np.ones(60, bool)) is None


def test_ranks_put_the_scores_of_all_exits_on_one_scale() -> None:
    known = Trace(
        measure="frame-entropy", scores_NS=np.array([[0.1, 0.5, 0.9], [0.2, 0.6, 0.9], [0.3, 0.7, 0.9], [0.4, 0.8, 0.9]]),
        labels_NS=np.ones((4, 3), np.int32), truth_N=np.ones(4, np.int32), layer_macs_L=np.array([1, 1, 1]),
        layer_bytes_L=np.array([4, 4, 4]), head_macs_S=np.array([1, 1, 1]), exit_layers_S=np.array([0, 1, 2]), about={},
    )  # fmt: skip
    made = ranked(replace(known, scores_NS=np.array([[0.05, 0.65, 0.5]] * 4)), known)
    np.testing.assert_allclose(made.scores_NS[0], [0.0, 0.5, 0.5])
    np.testing.assert_allclose(ranked(known, known).scores_NS[:, 0], ranked(known, known).scores_NS[:, 1])


def test_learning_calibration_and_test_hear_other_noise_each_time_the_same(folder: Path) -> None:
    parts = splits(f"wav:{folder / 'tones'}")
    hearing = Hearing.of(parts.train, 0.3, 1)
    assert torch.equal(hearing.again(0, 1), hearing.again(0, 1))
    assert not torch.equal(hearing.again(0, 1), hearing.again(0, 2))
    changed_N = (hearing.again(0, 1) != hearing.clean()).flatten(1).any(1)
    assert 0.5 < changed_N.float().mean() < 1
    heard = calibration_clips(parts.calibration, 1)
    assert len(heard) == 4 * len(parts.calibration)
    assert (heard.labels_N == np.tile(parts.calibration.labels_N, 4)).all()
    once, again, other = (clips_at(parts.test, 0.0, seed) for seed in (1, 1, 2))
    assert clips_at(parts.test, None, 1) is parts.test
    for a, b, c in zip(once.items, again.items, other.items, strict=True):
        assert (a.samples_T == b.samples_T).all()  # type: ignore[union-attr]
        assert (a.samples_T != c.samples_T).any()  # type: ignore[union-attr]
