// The charts of the last minutes. One store of columns; each chart draws some of them.

import { count, el, perSecond, percent, say, time } from "./dom.js";

const KEPT_S = 300;
const LEAST_S = 60;
const GAP_S = 3;
const HEIGHT = 170;
const SERIES_COLOURS = 8;
const MOST_NODES = 8;

const CHARTS = [
  { id: "rate", title: "Rate", unit: "items a second", show: perSecond, tick: count, least: 4, series: [["offered", "Offered", 8], ["completed", "Completed", 1]] },
  { id: "share", title: "Accuracy and threshold", unit: "0 to 1", show: (v) => v.toFixed(2), tick: (v) => v.toFixed(2), from0to1: true,
    series: [["accuracy", "Accuracy, last 15 s", 5], ["threshold", "Threshold", 2]] },
  { id: "latency", title: "Latency", unit: "from admission to label", show: time, tick: (v) => (v ? time(v) : "0"), least: 0.01, series: [["p50", "Median", 1], ["p99", "99th percentile", 6]] },
  { id: "queues", title: "Queues", unit: "tasks waiting", show: count, tick: count, least: 4, whole: true, perNode: true, series: [] },
];

const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** Columns by name, all as long as the one of times. A gap in time gets an empty row. */
class Store {
  constructor() {
    this.columns = new Map([["at", []]]);
  }

  get at() {
    return this.columns.get("at");
  }

  add(sample) {
    const last = this.at.at(-1);
    if (last !== undefined && sample.at <= last) return;
    if (last !== undefined && sample.at - last > GAP_S) this.#row(last + 0.01, {});
    const row = { offered: sample.offered_per_s, completed: sample.completed_per_s, accuracy: sample.accuracy };
    Object.assign(row, { threshold: sample.threshold, p50: sample.p50_s, p99: sample.p99_s });
    for (const [node, waiting] of Object.entries(sample.queues)) row[`queue ${node}`] = waiting;
    this.#row(sample.at, row);
  }

  #row(at, row) {
    for (const name of Object.keys(row)) {
      if (!this.columns.has(name)) this.columns.set(name, new Array(this.at.length).fill(null));
    }
    for (const [name, values] of this.columns) values.push(name === "at" ? at : (row[name] ?? null));
    let old = 0;
    while (this.at[old] < at - KEPT_S) old += 1;
    if (!old) return;
    for (const [name, values] of this.columns) {
      values.splice(0, old);
      if (name !== "at" && values.every((value) => value === null)) this.columns.delete(name);
    }
  }
}

class Chart {
  constructor(parent, spec) {
    this.spec = spec;
    this.series = spec.series;
    this.plotAt = el("div", { class: "plot", "aria-hidden": "true" });
    this.legend = el("ul", { class: "legend", "aria-hidden": "true" });
    this.summary = el("p", { class: "hide" });
    const caption = el("figcaption", {}, el("span", {}, spec.title), el("span", { class: "unit" }, spec.unit));
    parent.append(el("figure", { class: "chart", id: `chart-${spec.id}` }, caption, this.legend, this.plotAt, this.summary));
    this.colours = new Map();
    this.plot = null;
    this.index = null;
  }

  /** Makes the plot anew: other series, another width or another colour scheme. */
  rebuild() {
    this.plot?.destroy();
    const width = Math.max(this.plotAt.clientWidth, 80);
    const axis = { stroke: style("--quiet"), font: "11px system-ui, sans-serif", ticks: { show: false }, grid: { stroke: style("--line"), width: 1 } };
    const few = { ...axis, size: 46, splits: this.spec.from0to1 ? () => [0, 0.25, 0.5, 0.75, 1] : undefined, space: 34, incrs: this.spec.whole ? [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000] : undefined };
    const options = {
      width,
      height: HEIGHT,
      legend: { show: false },
      padding: [8, 20, 0, 0],
      cursor: { sync: { key: "time" }, points: { size: 6 }, drag: { x: false, y: false }, y: false },
      scales: { x: { time: true }, y: { range: this.spec.from0to1 ? () => [0, 1] : (_, __, most) => [0, Math.max(most * 1.1, this.spec.least)] } },
      axes: [
        { ...axis, space: 64, size: 26, values: (_, splits) => splits.map((at) => new Date(at * 1000).toLocaleTimeString("en-GB")) },
        { ...few, values: (_, splits) => splits.map((value) => this.spec.tick(value)) },
      ],
      series: [{}, ...this.series.map(([, , colour], number) => ({
        stroke: style(`--s${colour}`), width: 2, spanGaps: false, points: { show: false }, dash: number && this.spec.perNode ? [6 - (number % 4), number % 4] : undefined,
      }))],
      hooks: { setCursor: [(plot) => { this.index = plot.cursor.idx ?? null; this.tell(); }] },
    };
    this.plot = new uPlot(options, this.empty(), this.plotAt);
    this.legend.replaceChildren(...this.series.map(([, label, colour]) => {
      const swatch = el("span", { class: "swatch" });
      swatch.style.setProperty("--c", `var(--s${colour})`);
      return el("li", {}, swatch, `${label} `, el("b"));
    }));
  }

  empty() {
    return [[], ...this.series.map(() => [])];
  }

  draw(store, from, to) {
    if (this.spec.perNode) this.followNodes(store);
    if (!this.plot) this.rebuild();
    this.data = [store.at, ...this.series.map(([name]) => store.columns.get(name) ?? new Array(store.at.length).fill(null))];
    this.plot.batch(() => {
      this.plot.setData(this.data, false);
      this.plot.setScale("x", { min: from, max: to });
    });
    this.tell();
  }

  /** A series for each node, of many those with the longest queues; each keeps the colour that it had first. */
  followNodes(store) {
    const all = [...store.columns].filter(([name]) => name.startsWith("queue "));
    const length = ([, values]) => values.reduce((sum, value) => sum + (value ?? 0), 0);
    const longest = all.length > MOST_NODES ? all.sort((a, b) => length(b) - length(a)).slice(0, MOST_NODES) : all;
    const names = longest.map(([name]) => name).sort((a, b) => a.localeCompare(b));
    if (names.join() === this.series.map(([name]) => name).join()) return;
    for (const name of names) if (!this.colours.has(name)) this.colours.set(name, (this.colours.size % SERIES_COLOURS) + 1);
    this.series = names.map((name) => [name, name.slice(6), this.colours.get(name)]);
    this.rebuild();
  }

  /** The values at the cursor, else the last ones, in the legend and for readers of the screen. */
  tell() {
    const told = this.series.map(([, label], number) => {
      const values = this.data?.[number + 1] ?? [];
      const value = this.index === null ? values.at(-1) : values[this.index];
      return [label, value === null || value === undefined ? "–" : this.spec.show(value)];
    });
    told.forEach(([, text], number) => this.legend.children[number] && say(this.legend.children[number].lastElementChild, text));
    say(this.summary, told.map(([label, text]) => `${label}: ${text}`).join(", "));
  }
}

export class Charts {
  constructor(parent) {
    this.store = new Store();
    this.charts = CHARTS.map((spec) => new Chart(parent, spec));
    const again = () => { this.charts.forEach((chart) => chart.plot && chart.rebuild()); this.draw(); };
    let width = 0;
    new ResizeObserver(() => {
      if (width !== parent.clientWidth) { width = parent.clientWidth; again(); }
    }).observe(parent);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  }

  add(samples) {
    samples.forEach((sample) => this.store.add(sample));
  }

  /** Nothing is drawn twice. */
  drawNew() {
    if (this.store.at.at(-1) !== this.drawn) this.draw();
  }

  draw() {
    const last = this.store.at.at(-1);
    this.drawn = last;
    if (last === undefined) {
      const now = Date.now() / 1000;
      this.charts.forEach((chart) => chart.draw(this.store, now - LEAST_S, now));
      return;
    }
    const seconds = Math.min(Math.max(last - this.store.at[0], LEAST_S), KEPT_S);
    this.charts.forEach((chart) => chart.draw(this.store, last - seconds, last));
  }
}
