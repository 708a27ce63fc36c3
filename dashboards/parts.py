"""The pieces that all dashboards are made of: queries, panels of each kind, and links.

Looks are the same everywhere: named colours of Grafana's palette, which it draws for its light and for its dark theme, no
backgrounds of ours, and lines that do not bridge gaps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, TypeVar

from dashboards.sdk import (
    PromQueryFormat,
    common,
    dashboard,
    heat,
    heatmap,
    looks,
    models,
    nodegraph,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)

__all__ = [
    "HERE",
    "ITEMS_PER_S",
    "MESSAGES_PER_S",
    "SOURCE",
    "TASKS",
    "TASKS_PER_S",
    "Steps",
    "heat_map",
    "lines",
    "named_values",
    "node_graph",
    "node_link",
    "number",
    "query",
    "rate",
    "states",
    "table_of",
    "text_value",
]

SOURCE: Final = looks.DataSourceRef(type_val="prometheus", uid="${datasource}")
HERE: Final = 'deployment="$deployment"'
ITEMS_PER_S: Final = "suffix:items/s"
TASKS_PER_S: Final = "suffix:tasks/s"
MESSAGES_PER_S: Final = "suffix:msg/s"
TASKS: Final = "suffix:tasks"

Steps = Sequence[tuple[float | None, str]]
Colour = Literal["thresholds", "palette"]
P = TypeVar("P", stat.Panel, timeseries.Panel, table.Panel, heatmap.Panel, nodegraph.Panel, statetimeline.Panel)


def rate(metric: str, labels: str = HERE, by: str = "") -> str:
    """The sum of a counter's rates over Grafana's interval, ``by`` labels."""
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} (rate({metric}{{{labels}}}[$__rate_interval]))"


def query(expr: str, legend: str = "", ref: str = "A", *, instant: bool = False) -> prometheus.Dataquery:
    """A query over the shown time, or of now (``instant``)."""
    built = prometheus.Dataquery().expr(expr).ref_id(ref).datasource(SOURCE)
    if legend:
        built.legend_format(legend)
    return built.instant() if instant else built.range()


def _queries(exprs: Mapping[str, str], *, instant: bool = False) -> list[prometheus.Dataquery]:
    """Queries by their legends."""
    return [
        query(expr, legend, chr(ord("A") + index), instant=instant)
        for index, (legend, expr) in enumerate(exprs.items())
    ]


def _common(panel: P, title: str, text: str, unit: str) -> P:
    panel.title(title).description(text).datasource(SOURCE).unit(unit)
    return panel


def _steps(steps: Steps) -> dashboard.ThresholdsConfig:
    points = [models.Threshold(value=value, color=colour) for value, colour in steps]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(points)


def _coloured(mode: models.FieldColorModeId) -> dashboard.FieldColor:
    return dashboard.FieldColor().mode(mode)


def named_values(values: Mapping[str, tuple[str, str]]) -> list[models.ValueMapping]:
    """Words and colours in place of values."""
    results = {
        value: models.ValueMappingResult(text=text, color=colour, index=index)
        for index, (value, (text, colour)) in enumerate(values.items())
    }
    return [models.ValueMap(options=results)]


def node_link(name: str) -> dashboard.DashboardLink:
    """From a value to the page of the node that ``name`` gives, in Grafana's words for a field."""
    url = f"/d/mdi-exit-node?var-node=${{{name}}}&${{deployment:queryparam}}&${{datasource:queryparam}}&${{__url_time_range}}"
    return dashboard.DashboardLink(f"Page of ${{{name}}}").type(models.DashboardLinkType.LINK).url(url)


def number(
    title: str, text: str, expr: str, unit: str, steps: Steps = ((None, "text"),), *, decimals: int | None = None,
    values: Mapping[str, tuple[str, str]] | None = None, none: str = "–",
) -> stat.Panel:  # fmt: skip
    """One number, with its course behind it."""
    panel = _common(stat.Panel(), title, text, unit).with_target(query(expr))
    panel.thresholds(_steps(steps)).color_scheme(_coloured(models.FieldColorModeId.THRESHOLDS)).no_value(none)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    panel.color_mode(looks.BigValueColorMode.VALUE).justify_mode(looks.BigValueJustifyMode.AUTO)
    panel.graph_mode(looks.BigValueGraphMode.NONE if values else looks.BigValueGraphMode.AREA)
    if values:
        panel.mappings(named_values(values))
    return panel.decimals(decimals) if decimals is not None else panel


def text_value(title: str, text: str, metric: str, labels: str, label: str) -> stat.Panel:
    """The value of a label of a metric, as words; nothing where it is empty."""
    expr = f'max by ({label}) ({metric}{{{labels},{label}!=""}})'
    panel = _common(stat.Panel(), title, text, "string").with_target(query(expr, f"{{{{{label}}}}}", instant=True))
    panel.text_mode(looks.BigValueTextMode.NAME).graph_mode(looks.BigValueGraphMode.NONE).no_value("–")
    panel.color_mode(looks.BigValueColorMode.NONE)
    return panel.thresholds(_steps([(None, "text")])).reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))


def lines(
    title: str, text: str, exprs: Mapping[str, str], unit: str, *, stacked: bool = False, least: float | None = 0,
    most: float | None = None, steps: Steps = (), links: Sequence[dashboard.DashboardLink] = (), percent: bool = False,
) -> timeseries.Panel:  # fmt: skip
    """Courses over time; ``exprs`` by legend. ``steps``: drawn as dashed lines; ``percent``: stacked to a whole."""
    panel = _common(timeseries.Panel(), title, text, unit).targets([*_queries(exprs)])
    panel.color_scheme(_coloured(models.FieldColorModeId.PALETTE_CLASSIC)).line_width(1).span_nulls(False)
    panel.fill_opacity(60 if stacked else 8).show_points(looks.VisibilityMode.AUTO)
    legend = (
        common.VizLegendOptions().display_mode(looks.LegendDisplayMode.TABLE).placement(looks.LegendPlacement.BOTTOM)
    )
    panel.legend(legend.show_legend(True).calcs(["lastNotNull", "max"]))
    panel.tooltip(common.VizTooltipOptions().mode(looks.TooltipDisplayMode.MULTI).sort(looks.SortOrder.DESCENDING))
    if stacked:
        mode = looks.StackingMode.PERCENT if percent else looks.StackingMode.NORMAL
        panel.stacking(common.StackingConfig().mode(mode).group("A"))
    if steps:
        panel.thresholds(_steps(steps))
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(looks.GraphThresholdsStyleMode.DASHED))
    if least is not None:
        panel.min(least)
    if most is not None:
        panel.max(most)
    return panel.data_links([*links]) if links else panel


def heat_map(title: str, text: str, expr: str, unit: str) -> heatmap.Panel:
    """A histogram's buckets over time."""
    buckets = query(expr, "{{le}}").format(PromQueryFormat.HEATMAP)
    panel = _common(heatmap.Panel(), title, text, "short").with_target(buckets).calculate(False)
    panel.y_axis(heatmap.YAxisConfig().unit(unit)).show_legend()
    scheme = heatmap.HeatmapColorOptions().mode(heat.HeatmapColorMode.SCHEME).scheme("Viridis").steps(32)
    return panel.color(scheme).exemplars_color("purple")


def states(
    title: str, text: str, exprs: Mapping[str, str], values: Mapping[str, tuple[str, str]],
    links: Sequence[dashboard.DashboardLink] = (),
) -> statetimeline.Panel:  # fmt: skip
    """A band for each series, in the colours of its states."""
    panel = _common(statetimeline.Panel(), title, text, "short").targets([*_queries(exprs)])
    panel.mappings(named_values(values)).show_value(looks.VisibilityMode.NEVER).row_height(0.8).merge_values(True)
    panel.fill_opacity(70).line_width(0).thresholds(_steps([(None, "text")]))
    legend = (
        common.VizLegendOptions().display_mode(looks.LegendDisplayMode.LIST).placement(looks.LegendPlacement.BOTTOM)
    )
    return panel.legend(legend.show_legend(True).calcs([])).data_links([*links])


def table_of(
    title: str, text: str, exprs: Mapping[str, str], key: str, units: Mapping[str, str],
    overrides: Mapping[str, Sequence[models.DynamicConfigValue]] | None = None, hidden: Sequence[str] = (),
) -> table.Panel:  # fmt: skip
    """Instant queries joined on the label ``key``; ``exprs`` by the heading of their value, ``units`` by heading."""
    refs = {heading: chr(ord("A") + index) for index, heading in enumerate(exprs)}
    queries = [
        query(expr, ref=refs[heading], instant=True).format(PromQueryFormat.TABLE) for heading, expr in exprs.items()
    ]
    panel = _common(table.Panel(), title, text, "short").targets([*queries]).no_value("–")
    join = {"byField": key, "mode": "outer"}
    values = {heading: f"Value #{ref}" if len(refs) > 1 else "Value" for heading, ref in refs.items()}
    names: dict[str, object] = {value: heading for heading, value in values.items()}
    drop = {f"Time{suffix}": True for suffix in ("", *(f" {index}" for index in range(1, len(refs) + 1)))}
    drop |= {values[heading]: True for heading in hidden}  # before they are renamed
    order = {"excludeByName": drop, "fieldOrder": "manual", "indexByName": {key: 0}, "renameByName": names}
    transformations = [models.DataTransformerConfig(id_val="joinByField", options=join)] if len(refs) > 1 else []
    panel.transformations([*transformations, models.DataTransformerConfig(id_val="organize", options=order)])
    for heading, unit in units.items():
        panel.override_by_name(heading, [models.DynamicConfigValue(id_val="unit", value=unit)])
    for heading, properties in (overrides or {}).items():
        panel.override_by_name(heading, [*properties])
    return panel.thresholds(_steps([(None, "text")]))


def node_graph(title: str, text: str, nodes: str, edges: str, unit: str) -> nodegraph.Panel:
    """Who hands work to whom. ``nodes``: series with id, title and subtitle; ``edges``: with id, source and target.

    Grafana wants the frame of nodes first, both ends of an edge among the nodes, and here a unit that is only words.
    """
    queries = [
        query(expr, ref=ref, instant=True).format(PromQueryFormat.TABLE) for ref, expr in (("A", nodes), ("B", edges))
    ]
    panel = _common(nodegraph.Panel(), title, text, unit).targets([*queries])
    main = dict.fromkeys(("Value #A", "Value #B", "Value"), "mainstat")
    order = {"excludeByName": {"Time": True}, "indexByName": {}, "renameByName": main}
    panel.with_transformation(models.DataTransformerConfig(id_val="organize", options=order))
    panel.nodes(nodegraph.NodeOptions().main_stat_unit(unit)).edges(nodegraph.EdgeOptions().main_stat_unit(unit))
    return panel.data_links([node_link("__data.fields.id")])
