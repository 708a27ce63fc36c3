"""What the source decides for all: threshold and rate, orders, the desired state, what nobody holds (Alg. 3 and 4)."""

from __future__ import annotations

from mdi_exit.errors import IllegalEventError, UsageError
from mdi_exit.events import ControlReceived, Notice, OrderReceived, SendControl, SetAdmission
from mdi_exit.guidance import GUIDED, Guidance
from mdi_exit.items import named_layers
from mdi_exit.orders import (
    ORDERS,
    Action,
    PauseAdmission,
    SetAdapt,
    SetLevel,
    SetOffloading,
    SetRate,
    SetThreshold,
    done,
    refused,
)
from mdi_exit.placement import Decision, Device
from mdi_exit.policy.steps import next_interval_s, next_threshold, smoothed
from mdi_exit.segments import ModelPlan, segment_stop
from mdi_exit.source_config import floor_reached
from mdi_exit.span import missing_layers
from mdi_exit.standing import heard
from mdi_exit.wire import Control, Order

__all__ = ["Steering"]


class Steering(Guidance):
    """Decisions of the source beyond the single item."""

    def _look_around(self, now: float) -> None:
        plan = self.plan
        if plan is None:
            return
        missing = self._missing_layers(plan)
        if not missing:  # what nobody else can run either is left to those who hold it, if they come back
            self._retry_from_dead(now)
        self._plan_ahead(now, plan)
        if missing != self.missing:
            self.missing, self._missing_since = missing, now
        self._tell_gap(now, missing)
        if not missing and not self._started:
            self._started = True
            self._arrival_at = now

    def _missing_layers(self, plan: ModelPlan) -> tuple[int, ...]:
        """Layers that no node takes now; looked at again only when something has changed, since it is asked often."""
        worker = self.worker
        seen = (worker.members.changes, worker.entries, plan.digest)
        if seen != self._looked_at:
            self._looked_at = seen
            spans = worker.members.spans()
            if worker.config.span is not None and worker.entries:
                spans.append(worker.config.span)
            self._held_by_none = tuple(missing_layers(plan.layer_count, spans))
            self._dead = frozenset(worker.members.dead)
            self._astray |= bool(self._dead) or worker.members.restarts != self._restarts
            self._restarts = worker.members.restarts
        return self._held_by_none

    # --- placement

    def _plan_ahead(self, now: float, plan: ModelPlan) -> None:
        """Ask the planner where there is reason to."""
        worker = self.worker
        if not self.planning.due(now, worker.members):
            return
        own = Device(worker.name, self._own_layer_s(plan), 0, span=worker.config.span, fixed=True)
        ask = self.planning.look(now, worker.members, own, plan, self.exits)
        if ask is not None:
            self._out.append(ask)

    def _own_layer_s(self, plan: ModelPlan) -> tuple[float, ...]:
        """Seconds that this node takes in each layer of its span, a segment's in proportion to the work of its layers."""
        work = plan.layer_macs or (1,) * plan.layer_count
        seconds = [self.worker.config.unmeasured_s] * plan.layer_count
        span = self.worker.config.span
        entry = span.first if span is not None and span.stop <= plan.layer_count else plan.layer_count
        while span is not None and entry in span and entry < plan.layer_count:
            stop = segment_stop(entry, span, plan.exit_layers)
            total = max(sum(work[entry:stop]), 1)
            for layer in range(entry, stop):
                seconds[layer] = self.worker.seconds(entry) * work[layer] / total
            entry = stop
        return tuple(seconds)

    def _planned(self, now: float, decision: Decision) -> None:
        epoch = self.planning.epoch
        self._out += self.planning.made(now, decision, self.worker.members)
        if self.planning.epoch != epoch:
            self._command(now)

    # --- threshold and rate

    def _tell_gap(self, now: float, missing: tuple[int, ...]) -> None:
        """Say once which layers nobody holds, when that is no matter of an instant, and once that it is over."""
        if missing == self._told_missing:
            return
        if not missing:
            self._out.append(Notice("covered", "all layers are held"))
        elif now - self._missing_since >= self.config.period_s:
            self._out.append(Notice("gap", f"no node holds {named_layers(missing)}; {len(self.pending)} items wait"))
        else:
            return
        self._told_missing = missing

    def _adapt(self, now: float) -> None:
        """Alg. 3 or 4, once per period, on the smoothed queue."""
        if now < self._period_at:
            return
        self._period_at = now + self.config.period_s
        config = self.config
        waiting = 0 if self.adapt in ("none", "rate") else self.desk.waiting
        self._queue = smoothed(self._queue, self.queue + waiting)
        if not self._started or self.missing or self.stopped:
            return
        if self.adapt == "rate" and not self._turns.due:
            self.interval_s = next_interval_s(self.interval_s, self._queue, config.bands, config.rate_steps)
        elif self.adapt == "threshold":
            steps = config.threshold_steps
            threshold = next_threshold(self.threshold, self._queue, config.bands, steps, self.floor)
            if threshold == self.threshold == self.floor and config.bands.steps_down(self._queue):
                self._tell_floor()  # it may have been there from the start
            self._set_threshold(now, threshold)
        elif self.adapt in GUIDED:
            self._set_threshold(now, self._guide(now))

    def _set_admission(self, now: float, event: SetAdmission) -> None:
        if event.threshold is not None:
            self._set_threshold(now, event.threshold)
        if event.rate_per_s is not None:
            self._set_rate(now, event.rate_per_s)

    def _set_rate(self, now: float, per_s: float | None) -> None:
        self.rate_per_s = per_s
        if per_s is not None:
            self.interval_s = 1.0 / per_s
            self._arrival_at = min(self._arrival_at, now + self.interval_s)

    # --- orders

    def _order_received(self, now: float, event: OrderReceived) -> None:
        """Obey an order or refuse it, and say which; the nodes' own are for this node's worker too."""
        order = event.order
        action = heard(self._book, order, retained=event.retained)
        if action is None or isinstance(action, Notice):
            self._out += [action] if action else []
            return
        try:
            self._check_order(order, action)
        except UsageError as error:
            self._out.append(Notice("order", refused(order, error), order.number))
            return
        if ORDERS[order.what].of_nodes:
            self._work(now, event)
            self._remember(order, action)
            self._command(now)
        else:
            self._out.append(Notice("order", done(order, self._obey(now, action)), order.number))

    def _check_order(self, order: Order, action: Action) -> None:
        """Raises ``UsageError`` for an order that cannot be obeyed here and now."""
        agents = [peer.name for peer in self.worker.members if peer.alive and peer.status.role == "agent"]
        must = ORDERS[order.what].node == "must"
        known = agents if must else [*agents, self.worker.name]
        if order.node and order.node not in known:
            hint = " (pause stops the source)" if must and order.node == self.worker.name else ""
            raise UsageError(
                order.what, f"a node that is there ({', '.join(sorted(known)) or 'none is'})", order.node + hint
            )
        if isinstance(action, SetThreshold) and action.threshold < self.floor and not action.force:
            raise UsageError(order.what, f"at least the floor {self.floor:g}, or force", f"{action.threshold:g}")
        if isinstance(action, SetAdapt) and action.adapt == "latency" and self.config.target_p99_s is None:
            raise UsageError(order.what, "a source that was given --target-p99", "none")
        if isinstance(action, SetRate) and action.per_s is None and self.adapt == "rate":
            raise UsageError(order.what, "a number while the rate follows the load", "max")

    def _remember(self, order: Order, action: Action) -> None:
        """What holds for all nodes holds for those that join later."""
        if order.node:
            return
        if isinstance(action, SetOffloading):
            self._offloading = action.name
        elif isinstance(action, SetLevel):
            self._log_level = action.level

    def _obey(self, now: float, action: Action) -> str:
        """Change what the source does; a remark, if there is something to say."""
        match action:
            case PauseAdmission(paused):
                self.stopped = paused
                self._arrival_at = max(self._arrival_at, now)
                self._command(now)
            case SetRate(per_s):
                self._set_rate(now, per_s)
            case SetThreshold(threshold):
                before, self.floor = self.floor, min(self.config.floor, threshold)
                self._set_threshold(now, threshold)
                if self.floor != before:
                    return f"the floor goes from {before:g} to {self.floor:g}"
            case SetAdapt(adapt):
                self.adapt = adapt
                self._turns.most = self.config.max_pending
                self.shares, self.thresholds = (), ()
                self._command(now)
                if adapt != "rate":
                    self._set_rate(now, self.rate_per_s)
            case _:
                raise IllegalEventError(f"expected an order for the source, got {action}", self.worker.story)
        return ""

    def _say_promise(self) -> None:
        if promised := self.config.promised:
            self._out.append(Notice("promise", promised.at_start(self.threshold, self.floor)))

    def _set_threshold(self, now: float, threshold: float) -> None:
        if threshold != self.threshold:
            self._set_threshold_and_tell(now, threshold)

    def _set_threshold_and_tell(self, now: float, threshold: float) -> None:
        reached, promised = threshold <= self.floor < self.threshold, self.config.promised
        crossed = promised.crossed(self.threshold, threshold) if promised else ""
        self.threshold = threshold
        self._told_floor &= threshold <= self.floor
        if reached and self.adapt not in ("none", "rate"):
            self._tell_floor()
        if crossed:
            self._out.append(Notice("promise", crossed))
        self._command(now)

    def _tell_floor(self) -> None:
        """Say once that the threshold can fall no further, though the load would have it."""
        if not self._told_floor:
            self._told_floor = True
            self._out.append(Notice("floor", floor_reached(self.threshold, self.config.promised)))

    def _command(self, now: float) -> None:
        """Publish the desired state, and obey it."""
        if self.plan is None:
            return
        control = Control(
            run=self.config.run,
            incarnation=self.worker.config.incarnation,
            source=self.worker.name,
            epoch=self.planning.epoch,
            model=self.plan.digest,
            threshold=self.threshold,
            paused=self.stopped,
            offloading=self._offloading or ("optimiser" if self.adapt == "optimiser" else ""),
            log_level=self._log_level,
            spans=self.planning.on_wire(),
            shares=self.shares,
            thresholds=self.thresholds,
            census=self.adapt in GUIDED,
            codec=self.config.codec,
        )
        if self.worker.connected:
            self._out.append(SendControl(control))
        self._work(now, ControlReceived(control))
