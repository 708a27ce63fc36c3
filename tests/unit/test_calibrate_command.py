"""``mdi-exit calibrate`` and ``profile``: what they write, what they refuse."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from mdi_exit.benchmark.synthetic import write_identity_artifact
from mdi_exit.calibration import temperature
from mdi_exit.data import Splits, splits
from mdi_exit.errors import MdiExitError, UsageError
from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact, rewritten
from mdi_exit.model.manifest import DataRecord, Manifest
from mdi_exit.outcomes import outcomes
from mdi_exit.trace import Trace
from mdi_exit.workbench.calibrate import main as calibrate
from mdi_exit.workbench.profile import main as profile
from mdi_exit.workbench.samples import samples_for

pytest.importorskip("scipy", reason="needs the extra 'offline'")

ON_SHIPPED = ("--data", "shipped", "--calibration", "1400")


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def promised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("promised")
    assert calibrate([DEFAULT_MODEL, *ON_SHIPPED, "--out", str(folder), "--max-accuracy-loss", "0.02"]) == 0
    return folder


def test_a_promise_goes_into_the_manifest_and_nothing_else_is_touched(promised: Path) -> None:
    before, after = Artifact.open(DEFAULT_MODEL), Artifact.open(promised)
    calibration = after.manifest.calibration
    promise = calibration.promise
    assert promise is not None
    assert (promise.max_accuracy_loss, promise.confidence, promise.samples) == (0.02, 0.95, 1050)
    assert promise.observed_loss < 0.02
    assert calibration.data == splits("shipped", calibration=1400).record
    assert calibration.threshold is not None
    assert all(spec.threshold is not None and spec.temperature != 1.0 for spec in after.manifest.exits[:-1])
    assert after.manifest.digest != before.manifest.digest
    assert [file.sha256 for file in after.files()] == [file.sha256 for file in before.files()]
    assert "calibration.png" in files_of(promised)


def test_thresholds_in_force_at_the_knob_keep_the_loss_on_the_samples(promised: Path) -> None:
    manifest = Artifact.open(promised).manifest
    at = manifest.calibration.threshold
    assert at is not None
    thresholds = [manifest.plan.threshold_at(number, at) for number in range(4)]
    assert thresholds == [spec.threshold for spec in manifest.exits[:-1]]
    made = outcomes(Artifact.open(promised), splits("shipped", calibration=1400).calibration)
    score = made.trace("max-probability").score(thresholds)
    assert score.loss <= 0.02
    assert manifest.calibration.mean_macs == pytest.approx(score.mean_macs, rel=0.01)


def test_a_default_that_was_asked_for_by_name_is_as_good_as_the_default(promised: Path, tmp_path: Path) -> None:
    asked = ["--measure", "".join(("max-", "probability")), "--codec", "".join(("float", "32"))]
    flags = [*ON_SHIPPED, "--max-accuracy-loss", "0.02", *asked]
    assert calibrate([DEFAULT_MODEL, *flags, "--out", str(tmp_path / "asked")]) == 0
    assert Artifact.open(tmp_path / "asked").manifest.calibration == Artifact.open(promised).manifest.calibration


def test_profile_takes_the_split_that_the_artifact_was_calibrated_on(promised: Path, tmp_path: Path) -> None:
    for part, count in (("calibration", 1400), ("test", 400)):
        out = tmp_path / f"{part}.npz"
        assert profile([str(promised), "--data", "shipped", "--part", part, "--out", str(out)]) == 0
        assert len(Trace.load(out)) == count
        assert Trace.load(out).about["record"]["sha256"] == splits("shipped", calibration=1400).record.sha256


def test_the_same_command_gives_the_same_artifact_and_in_place_too(promised: Path, tmp_path: Path) -> None:
    shipped = Artifact.open(DEFAULT_MODEL)
    rewritten(shipped, shipped.manifest, tmp_path / "own")
    flags = [*ON_SHIPPED, "--max-accuracy-loss", "0.02", "--in-place"]
    assert calibrate([str(tmp_path / "own"), *flags]) == 0
    assert files_of(tmp_path / "own")["model.json"] == files_of(promised)["model.json"]


def test_a_target_cost_is_kept_and_nothing_is_promised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*ON_SHIPPED, "--target-cost", "20%", "--measure", "entropy"]
    assert calibrate([DEFAULT_MODEL, *flags, "--out", str(tmp_path)]) == 0
    calibration = Artifact.open(tmp_path).manifest.calibration
    assert calibration.promise is None
    assert calibration.measure == "entropy"
    assert calibration.mean_macs is not None
    assert calibration.target_macs is not None
    assert calibration.mean_macs <= calibration.target_macs
    assert "nothing is promised" in capsys.readouterr().out


def test_without_out_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert calibrate([DEFAULT_MODEL, *ON_SHIPPED, "--max-accuracy-loss", "0.02"]) == 0
    assert not list(tmp_path.iterdir())


def test_what_is_printed_says_what_is_promised_and_on_what(capsys: pytest.CaptureFixture[str]) -> None:
    calibrate([DEFAULT_MODEL, *ON_SHIPPED, "--max-accuracy-loss", "0.02"])
    said = " ".join(capsys.readouterr().out.split())
    assert "promised: at most 2 % of items wrong by leaving early, with confidence 95 % (1,050 samples" in said
    assert "trained on all training images of fashion-mnist" in said
    for measure in ("max-probability *", "margin", "entropy", "patience"):
        assert measure in said


def refusal(*argv: str) -> str:
    with pytest.raises(MdiExitError) as caught:
        calibrate(argv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    assert "one ARTIFACT" in refusal("--data", "shipped")
    assert "--data: expected a value" in refusal(DEFAULT_MODEL)
    assert "--out DIR for a model that came with the package" in refusal(DEFAULT_MODEL, *ON_SHIPPED, "--in-place")
    assert "at least one early exit" in refusal(
        str(write_identity_artifact(tmp_path / "one", (1, 4, 4), 2).folder), *ON_SHIPPED
    )
    assert "at least 398" in refusal(DEFAULT_MODEL, "--data", "shipped", "--calibration", "397")
    assert "one of them" in refusal(DEFAULT_MODEL, *ON_SHIPPED, "--target-cost", "1e6", "--max-accuracy-loss", "0.1")
    assert "ends excluded" in refusal(DEFAULT_MODEL, *ON_SHIPPED, "--max-accuracy-loss", "0")
    assert "ends excluded" in refusal(DEFAULT_MODEL, *ON_SHIPPED, "--confidence", "1")
    assert "target cost: expected at least" in refusal(DEFAULT_MODEL, *ON_SHIPPED, "--target-cost", "1%")
    assert "--measure gate: expected a gate at each early exit" in refusal(
        DEFAULT_MODEL, *ON_SHIPPED, "--measure", "gate"
    )
    assert "--picture: expected a file that ends in .png or .svg" in refusal(
        DEFAULT_MODEL, *ON_SHIPPED, "--picture", "a.jpg"
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert "an empty folder or an artifact" in refusal(
        DEFAULT_MODEL, *ON_SHIPPED, "--max-accuracy-loss", "0.02", "--out", str(tmp_path / "full")
    )


def test_without_scipy_it_says_so_before_the_model_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(temperature, "import_module", none)
    assert "the extra 'offline'" in refusal(DEFAULT_MODEL, *ON_SHIPPED)


# --- samples that the artifact must not be calibrated on


def manifest(record: DataRecord | None = None, **training: object) -> Manifest:
    shipped = Artifact.open(DEFAULT_MODEL).manifest
    return msgspec.structs.replace(shipped, data=record, training=training or {"dataset": "fashion-mnist"})


def test_training_samples_are_refused() -> None:
    with pytest.raises(UsageError, match="samples new to the artifact, such as fashion-mnist/test"):
        taken(manifest(), "fashion-mnist")


def taken(manifest: Manifest, spec: str, seed: int | None = None, count: int | None = None) -> str:
    """The note; any set is the shipped images, since the rule is about names and records."""

    def read(spec: str, **options: object) -> Splits:
        made = splits("shipped", seed=options["seed"], calibration=options["calibration"])  # type: ignore[arg-type]
        return Splits(made.train, made.calibration, made.test, msgspec.structs.replace(made.record, spec=spec))

    return samples_for(manifest, spec, seed=seed, count=count, data_dir=None, read=read).note


def test_test_samples_are_refused() -> None:
    record = msgspec.structs.replace(splits("shipped").record, spec="fashion-mnist")
    for spec in ("fashion-mnist/test", "shipped"):
        with pytest.raises(UsageError, match="calibration samples were kept for this"):
            taken(manifest(record), spec)


def test_the_artifacts_own_split_is_taken_unasked_and_another_refused() -> None:
    record = msgspec.structs.replace(splits("shipped", seed=7, calibration=333).record, spec="fashion-mnist")
    assert "kept out of training" in taken(manifest(record), "fashion-mnist")
    for seed, count in ((8, None), (None, 334)):
        with pytest.raises(UsageError, match="seed 7, 333 samples"):
            taken(manifest(record), "fashion-mnist", seed, count)
    changed = msgspec.structs.replace(record, sha256="0" * 64)
    with pytest.raises(UsageError, match="or other data"):
        taken(manifest(changed), "fashion-mnist")


def test_what_is_not_known_of_the_samples_is_said() -> None:
    record = msgspec.structs.replace(splits("shipped").record, spec="cifar10")
    assert "trained on cifar10: what is promised holds for svhn" in taken(manifest(record), "svhn")
    assert "does not say" in taken(manifest(None, epochs=3), "svhn")
    assert "a part of its test images" in taken(manifest(), "fashion-mnist/test")


# --- profile


def test_a_profile_is_a_trace_of_the_part_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "trace.npz"
    flags = ["--data", "shipped", "--calibration", "100", "--part", "calibration", "--out", str(out)]
    assert profile([DEFAULT_MODEL, *flags, "--measure", "margin"]) == 0
    trace = Trace.load(out)
    made = splits("shipped", calibration=100)
    assert (len(trace), trace.measure, trace.about["part"]) == (100, "margin", "calibration")
    assert msgspec.convert(trace.about["record"], DataRecord) == made.record
    assert np.array_equal(trace.truth_N, made.calibration.labels_N)
    assert "100 calibration samples of shipped" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UsageError, match="a file that ends in"):
        profile([DEFAULT_MODEL, "--data", "shipped", "--out", str(tmp_path / "trace.csv")])
