"""Tasks with a deadline at a node: what cannot be had in time is answered with the best exit so far (``policy.deadline``)."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from mdi_exit.events import Task
from mdi_exit.outgoing import Outgoing
from mdi_exit.policy.deadline import answer_by, is_hopeless
from mdi_exit.queues import Held
from mdi_exit.wire import ResultRow

__all__ = ["Hurrying"]

_RESULT_BYTES = 100


class Hurrying(Outgoing):
    """Keeps tasks in the queues and sees to it that none with an exit behind it waits beyond its deadline."""

    def _keep(self, held: Held, *, output: bool = False) -> None:
        """Put a task into I_n or O_n, to be answered in time."""
        self.store.add(held, output=output)
        task = held.task
        if task.deadline_at is not None and task.best is not None:
            heapq.heappush(self._hurried, (self._answer_by(task), task.item, task.attempt))

    def _answer_late(self, now: float) -> None:
        """Answer what has waited as long as it can."""
        while self._hurried and self._hurried[0][0] <= now:
            _, item, attempt = heapq.heappop(self._hurried)
            held = self.store.withdraw(item, attempt)
            if held is None:
                continue
            self._released(held, now)
            if not self._answer_best(held.task):  # the same attempt came again, and has no exit yet
                self.totals.dropped += 1

    def _in_time(self, now: float, helds: Iterable[Held], seconds: float) -> list[Held]:
        """Those for whom a run of so many seconds is of use; the others are answered at once."""
        return [
            held for held in helds if not (self._is_hopeless(now, held.task, seconds) and self._answer_best(held.task))
        ]

    def _is_hopeless(self, now: float, task: Task, next_answer_s: float) -> bool:
        """Whether a task that has an answer cannot have another in time."""
        if task.deadline_at is None or task.best is None:
            return False
        return is_hopeless(now, self._answer_by(task), next_answer_s)

    def _answer_by(self, task: Task) -> float:
        source = self.members.get(self.control.source) if self.control else None
        delay_s = source.out.delay.delay_s(_RESULT_BYTES) if source is not None else 0.0
        return answer_by(task.deadline_at or 0.0, delay_s)

    def _answer_best(self, task: Task) -> bool:
        """The item leaves with the best exit that it has reached; False if it has reached none."""
        best = task.best
        if best is None:
            return False
        self.totals.exited += 1
        self.totals.exits[best.exit] += 1
        self.totals.hurried += 1
        times = (task.compute_s, task.wait_s)
        self._row(ResultRow(task.item, task.attempt, task.path, best.exit, best.label, best.score, times=times))
        return True
