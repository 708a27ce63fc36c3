"""Which samples an artifact may be calibrated on: neither those it was trained on nor those it is tested on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mdi_exit import values
from mdi_exit.config import REQUIRED, setting
from mdi_exit.data.sets import Dataset
from mdi_exit.data.splits import SPECS, Splits, splits
from mdi_exit.errors import UsageError
from mdi_exit.model.manifest import Manifest

__all__ = ["Samples", "SplitSettings", "samples_for", "split_as_recorded"]

_OF: Final = {"shipped": "fashion-mnist"}
_TEST: Final = "/test"


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitSettings:
    """Which samples, and how they are split; what is None is taken from the artifact's own record."""

    data: str = setting(REQUIRED, help=f"on what: {', '.join(SPECS)}", metavar="SPEC")
    data_dir: Path = setting(
        Path("data"), help="where data sets are looked for and stored", parse=values.path, metavar="DIR"
    )
    seed: int | None = setting(
        None, help="of the split; default: the artifact's, or 0", parse=values.integer(0), metavar="N"
    )
    calibration: int | None = setting(
        None, help="calibration samples; default: the artifact's, or a tenth of the training samples, at most 5,000",
        parse=values.positive_int, metavar="N",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Samples:
    """``note``: what the user should know of them."""

    parts: Splits
    note: str

    @property
    def calibration(self) -> Dataset:
        return self.parts.calibration

    @property
    def test(self) -> Dataset:
        return self.parts.test


def split_as_recorded(
    manifest: Manifest, spec: str, *, seed: int | None, data_dir: Path | None, count: int | None = None
) -> Splits:
    """The split of ``spec``: where nothing is given that of the artifact's training or calibration, so that what it has
    learned from is in no other part. Raises ``UsageError``.
    """
    for record in (manifest.data, manifest.calibration.data):
        if record is not None and record.spec == spec:
            seed = record.seed if seed is None else seed
            count = record.calibration if count is None else count
            break
    return splits(spec, seed=seed or 0, data_dir=data_dir, calibration=count, shape=manifest.input.shape)


def samples_for(
    manifest: Manifest,
    spec: str,
    *,
    seed: int | None,
    count: int | None,
    data_dir: Path | None,
    read: Callable[..., Splits] = splits,
) -> Samples:
    """The split of ``spec``. The artifact's own seed and count are taken where none are given.

    Raises ``UsageError`` for samples that the artifact has seen, or is tested on.
    """
    trained = manifest.data
    own = trained is not None and trained.spec == spec
    if trained is not None and own:
        seed = trained.seed if seed is None else seed
        count = trained.calibration if count is None else count
    elif trained is not None and _only_tests(spec, trained.spec):
        got = f"{spec}, which has the artifact's test data"
        raise UsageError("--data", f"{trained.spec}, whose calibration samples were kept for this", got)
    parts = read(spec, seed=seed or 0, data_dir=data_dir, calibration=count, shape=manifest.input.shape)
    if trained is not None and own:
        if parts.record != trained:
            expected = (
                f"the split that the artifact was trained on (seed {trained.seed}, {trained.calibration} samples)"
            )
            got = f"seed {parts.record.seed}, {parts.record.calibration} samples, or other data"
            raise UsageError("--data, --seed, --calibration", expected, got)
        return Samples(parts, "calibration samples were kept out of training by the artifact's own split")
    return Samples(parts, _strange(manifest, spec))


def _only_tests(spec: str, trained: str) -> bool:
    return spec == trained + _TEST or _OF.get(spec) == trained


def _strange(manifest: Manifest, spec: str) -> str:
    """What to say of data that the artifact's record does not name."""
    if manifest.data is not None:
        return f"the artifact was trained on {manifest.data.spec}: what is promised holds for {spec}"
    told: Any = manifest.training.get("dataset")
    if told == spec:
        got = f"{spec}, which the artifact was trained on without keeping any"
        raise UsageError("--data", f"samples new to the artifact, such as {spec}{_TEST}", got)
    if isinstance(told, str) and _only_tests(spec, told):
        return (
            f"the artifact was trained on all training images of {told}: a part of its test images calibrates, the rest "
            "is for scoring. The accuracies by exit in its manifest were measured on all of them"
        )
    return "the artifact does not say what it was trained on: that these samples are new to it is for you to know"
