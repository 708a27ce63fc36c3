"""What the cloud knows of its edges: their last word, whether they are there, and the parts that they have handed over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mdi_exit.errors import WireError
from mdi_exit.hierarchical.parts import State, mean_of, most_bytes, state_bytes, state_like
from mdi_exit.hierarchical.post import Pieces
from mdi_exit.wire import EdgeReport, Weights

__all__ = ["Member", "Members"]


@dataclass(slots=True)
class Member:
    """One edge. ``heard_at``: seconds on the cloud's clock; ``state``: its part after ``round``, None: none came yet."""

    report: EdgeReport
    heard_at: float
    pieces: Pieces | None = None
    round: int = 0
    samples: int = 1
    state: State | None = None

    @property
    def has_finished(self) -> bool:
        return self.report.state == "finished"

    @property
    def hands_over(self) -> bool:
        """Its part is the last one, which is numbered beyond all epochs."""
        return self.round > self.report.steps


class Members:
    """The edges of one run by name, at most ``most``; silence of ``dead_after_s`` is a lost link or a lost edge.

    ``form``: what an edge's part has to look like, once the cut is known. ``mean``: the last round of which one was made.
    """

    def __init__(self, most: int, dead_after_s: float) -> None:
        self.by_name: dict[str, Member] = {}
        self.form: State | None = None
        self.mean = 0
        self.mean_bytes = b""
        self._most, self._dead_after_s = most, dead_after_s

    @property
    def missing(self) -> int:
        return self._most - len(self.by_name)

    def lives(self, name: str, now: float) -> bool:
        return now - self.by_name[name].heard_at <= self._dead_after_s

    def have_finished(self, now: float) -> bool:
        """All of them. One that has handed over its last part and is silent has finished: its last word was lost."""
        return all(
            member.has_finished or (member.hands_over and not self.lives(name, now))
            for name, member in self.by_name.items()
        )

    def heard(self, name: str, incarnation: int, now: float) -> bool:
        """Something came of that start of an edge; False: we know no such edge, or another start of it."""
        member = self.by_name.get(name)
        if member is None or member.report.incarnation != incarnation:
            return False
        member.heard_at = now
        return True

    def reported(self, name: str, report: EdgeReport, now: float) -> bool:
        """False: of an earlier start, or of a second edge of a name of which one is there: that one stays.

        Raises ``WireError`` for one edge too many.
        """
        member = self.by_name.get(name)
        if member is None:
            if not self.missing:
                raise WireError("edge", f"expected {self._most} edge(s), got one more: {name}")
            self.by_name[name] = Member(report, now)
            return True
        known = member.report.incarnation
        if report.incarnation < known:
            return False
        if report.incarnation > known and not member.has_finished and self.lives(name, now):
            return False
        member.report, member.heard_at = report, now
        return True

    def took(self, name: str, message: Weights, payload: memoryview) -> bool:
        """A piece of an edge's part; True: with it the part is whole. Raises ``WireError`` for what is no such part."""
        member = self.by_name[name]
        if self.form is None:
            return False
        if member.pieces is None:
            member.pieces = Pieces(most_bytes(self.form))
        whole = member.pieces.added(message, payload)
        if whole is None:
            return False
        member.state = state_like(whole, self.form)
        member.round, member.samples = message.round, max(message.samples, 1)
        return True

    def to_average(self, now: float) -> list[str]:
        """The edges whose parts are to be averaged now: all that are there and at it, if all have come to a new round."""
        there = {
            name: member
            for name, member in self.by_name.items()
            if not member.has_finished and not member.hands_over and self.lives(name, now)
        }
        rounds = [member.round for member in there.values()]
        return sorted(there) if rounds and min(rounds) > self.mean else []

    def average(self, names: list[str]) -> list[str]:
        """Their mean becomes ``mean_bytes``; returns those that wait for it."""
        members = [self.by_name[name] for name in names]
        parts = [(member.state, member.samples) for member in members if member.state is not None]
        self.mean = min(member.round for member in members)
        self.mean_bytes = state_bytes(mean_of(parts))
        return [name for name in names if self.by_name[name].round == self.mean]

    def waits_for_mean(self, name: str) -> bool:
        """Its part is of a round of which there is a mean already: that was lost, or made without it."""
        return 0 < self.by_name[name].round <= self.mean

    def last_parts(self) -> list[tuple[State, int]]:
        """Those of the edges that have come furthest: handed over, or else of the newest round."""
        members = self.by_name.values()
        newest = max((one.round for one in members), default=0)
        last = [one for one in members if one.hands_over] or [one for one in members if one.round == newest]
        return [(one.state, one.samples) for one in last if one.state is not None]

    # --- what a cloud that is started again has to know: nobody will tell it

    def kept(self) -> dict[str, Any]:
        """The edges that have nothing more to give, plainly, for a checkpoint."""
        return {
            name: {
                "incarnation": member.report.incarnation, "steps": member.report.steps, "images": member.report.samples,
                "round": member.round, "samples": member.samples, "state": member.state,
            }
            for name, member in self.by_name.items()
            if (member.has_finished or member.hands_over) and member.state is not None
        }  # fmt: skip

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Those of ``kept``: they count as finished until they are heard of again."""
        for name, one in kept.items():
            steps = int(one["steps"])
            report = EdgeReport(int(one["incarnation"]), 0, "finished", int(one["images"]), steps, steps)
            self.by_name[name] = Member(
                report, float("-inf"), None, int(one["round"]), int(one["samples"]), one["state"]
            )
