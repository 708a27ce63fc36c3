"""A dashboard under construction: it places panels, numbers them, and links them to each other."""

from __future__ import annotations

from typing import Final

from dashboards.parts import HERE, SOURCE, query
from dashboards.sdk import Builder, dashboard, models

__all__ = ["TAG", "Board"]

TAG: Final = "mdi-exit"
_WIDTH: Final = 24
_STEP: Final = "15s"
_KNOWN_EVENTS: Final = "joined|left|silent|gap|covered|order|floor|state|stale-run"

# Name, kinds of mdi_exit_events_total, colour.
_EVENTS: Final = (
    ("Joins", "joined", "green"),
    ("Deaths", "left|silent", "red"),
    ("Gaps and their ends", "gap|covered", "orange"),
    ("Orders", "order", "blue"),
    ("Threshold at its floor", "floor", "purple"),
)


def _rises(selector: str) -> str:
    """1 and more where a counter has risen within the step, be it from nothing."""
    now, before = f"sum by (kind) ({selector})", f"sum by (kind) ({selector} offset $__interval)"
    return f"{now} - ({before} or {now} * 0) > 0"


def _annotations() -> list[dashboard.AnnotationQuery]:
    events = [
        *(
            (name, _rises(f'mdi_exit_events_total{{{HERE},kind=~"{kinds}"}}'), colour)
            for name, kinds, colour in _EVENTS
        ),
        ("Re-plans and other events", _rises(f'mdi_exit_events_total{{{HERE},kind!~"{_KNOWN_EVENTS}"}}'), "yellow"),
    ]
    threshold = f"max by (deployment) (mdi_exit_threshold{{{HERE}}})"
    before = f"max by (deployment) (mdi_exit_threshold{{{HERE}}} offset $__interval)"
    moved = f"abs({threshold} - {before}) >= 0.05"
    made = [_annotation(name, expr, colour, "{{kind}}") for name, expr, colour in events]
    return [*made, _annotation("Threshold moved by 0.05 or more", moved, "super-light-blue", "exit threshold")]


def _annotation(name: str, expr: str, colour: str, text: str) -> dashboard.AnnotationQuery:
    built = dashboard.AnnotationQuery().name(name).datasource(SOURCE).enable(True).hide(False).icon_color(colour)
    built.title_format(name).text_format(text).tag_keys("kind")
    # Grafana since 11 reads the target, earlier ones the expression beside it.
    return built.expr(expr).step(_STEP).target(query(expr, ref="annotation").interval(_STEP))


class Board:
    """Panels are added from left to right; a row ends where it is full or ``row`` is called."""

    def __init__(self, uid: str, title: str, text: str) -> None:
        self._built = dashboard.Dashboard(title).uid(uid).description(text).tags([TAG]).editable().timezone("browser")
        self._built.time("now-30m", "now").refresh("10s").tooltip(models.DashboardCursorSync.CROSSHAIR)
        self._built.version(1).annotations([*_annotations()])
        ways = dashboard.DashboardLink("mdi-exit").type(models.DashboardLinkType.DASHBOARDS).tags([TAG])
        self._built.link(ways.as_dropdown(False).include_vars(True).keep_time(True).icon("external link"))
        self._uid = uid
        self._panels: dict[str, models.Panel] = {}
        self._details: dict[str, str] = {}
        self._x = self._y = self._height = self._id = 0
        source = dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
        self._built.with_variable(source.description("The Prometheus that scrapes the deployment."))
        self.variable("deployment", "Deployment", "Which deployment.", "label_values(mdi_exit_info, deployment)")

    def variable(self, name: str, label: str, text: str, values: str, *, several: bool = False) -> None:
        """A choice out of the values of a label."""
        built = dashboard.QueryVariable(name).label(label).description(text).datasource(SOURCE)
        built.query(values).definition(values).sort(models.VariableSort.NATURAL_ASC)
        built.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        if several:
            everything = models.VariableOption(text=["All"], value=["$__all"], selected=True)
            built.multi(True).include_all(True).all_value(".*").current(everything)
        self._built.with_variable(built)

    def row(self, title: str) -> None:
        self._end_line()
        self._id += 1
        place = models.GridPos(h=1, w=_WIDTH, x=0, y=self._y)
        self._built.with_row(dashboard.Row(title).id(self._id).grid_pos(place))
        self._y += 1

    def _end_line(self) -> None:
        self._x, self._y, self._height = 0, self._y + self._height, 0

    def add(self, name: str, panel: Builder[models.Panel], width: int, height: int, *, detail: str = "") -> None:
        """Place a panel; ``detail``: the name of the panel that shows more of the same."""
        if self._x + width > _WIDTH:
            self._end_line()
        self._id += 1
        built = panel.build()
        built.id_val = self._id
        built.grid_pos = models.GridPos(h=height, w=width, x=self._x, y=self._y)
        self._x, self._height = self._x + width, max(self._height, height)
        self._panels[name] = built
        if detail:
            self._details[name] = detail

    def finish(self) -> models.Dashboard:
        """The dashboard, its panels linked."""
        for name, detail in self._details.items():
            target = self._panels[detail]
            self._panels[name].links = [self._panel_link(f"More: {target.title}", target.id_val)]
        finished = self._built.build()
        places = [*(finished.panels or []), *self._panels.values()]
        finished.panels = sorted(
            places, key=lambda panel: (panel.grid_pos.y, panel.grid_pos.x) if panel.grid_pos else (0, 0)
        )
        return finished

    def _panel_link(self, title: str, number: int | None) -> models.DashboardLink:
        url = f"/d/{self._uid}?viewPanel={number}&${{__all_variables}}&${{__url_time_range}}"
        return dashboard.DashboardLink(title).type(models.DashboardLinkType.LINK).url(url).build()
