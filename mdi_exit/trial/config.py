"""The settings of ``mdi-exit simulate`` and ``mdi-exit testbed``: what outranks the scenario, and where results go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mdi_exit import values
from mdi_exit.config import setting
from mdi_exit.orders import ADAPTATIONS
from mdi_exit.policy.offloading import OFFLOADING
from mdi_exit.simulation.scenario import Scenario, read_scenario

__all__ = ["TrialSettings"]


def _inherited(value: object) -> str:
    return "as the scenario says" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSettings:
    """One run of a scenario; what is None stands as the scenario says, or is not written."""

    seed: int | None = setting(
        None, help="of all random choices; default: the scenario's", parse=values.integer(0), metavar="N",
        show=_inherited,
    )  # fmt: skip
    duration: float | None = setting(
        None, help="how long items are offered; default: the scenario's", parse=values.duration, metavar="TIME",
        show=_inherited,
    )  # fmt: skip
    policy: str | None = setting(
        None, help="offloading policy; default: the scenario's", choices=tuple(OFFLOADING), show=_inherited
    )
    adapt: str | None = setting(
        None, help="what follows the load; default: the scenario's", choices=ADAPTATIONS, show=_inherited
    )
    threshold: float | None = setting(
        None, help="exit threshold at the start; default: the scenario's", parse=values.fraction, metavar="T",
        show=_inherited,
    )  # fmt: skip
    summary: Path | None = setting(None, help="write the run's totals", parse=values.path, metavar="FILE.json")
    timeline: Path | None = setting(
        None, help="the run over time, one JSON line each half second", parse=values.path, metavar="FILE.jsonl"
    )
    results: Path | None = setting(
        None, help="one JSON line per admitted item; - is stdout", parse=values.path, metavar="FILE.jsonl"
    )
    picture: Path | None = setting(
        None, help="draw the run (needs the extra plot)", parse=values.picture, metavar="FILE.png|.svg"
    )
    overwrite: bool = setting(False, help="replace existing files of results", parse=values.switch)

    def scenario(self, file: str) -> Scenario:
        """The scenario in ``file`` with what is set here. Raises ``UsageError``."""
        return read_scenario(Path(file).expanduser()).outranked(
            seed=self.seed,
            duration_s=self.duration,
            threshold=self.threshold,
            offloading=self.policy,
            adapt=self.adapt,
        )
