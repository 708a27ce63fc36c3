// Tiles, the table of nodes, the exits, the log: words and numbers.

import { bytes, byId, clock, count, el, figure, fullness, levelOf, percent, perSecond, put, say, span, time } from "./dom.js";

const LOGGED = 60;

export function drawTiles(state, sample) {
  const run = state.run;
  if (!run) return;
  figure(byId("t-rate"), perSecond(run.completed_per_s), "/s");
  const offered = run.rate_per_s === null ? "as fast as it can" : `${perSecond(run.rate_per_s)}/s offered`;
  say(byId("t-rate-note"), run.paused ? "paused" : offered);
  const accuracy = sample?.accuracy ?? (run.judged ? run.right / run.judged : null);
  figure(byId("t-accuracy"), accuracy === null ? "–" : (accuracy * 100).toFixed(1), accuracy === null ? "" : "%");
  say(byId("t-accuracy-note"), run.judged ? `whole run ${percent(run.right / run.judged)}` : "truth not known");
  figure(byId("t-threshold"), run.threshold.toFixed(2));
  const follows = { threshold: `adapts, floor ${run.floor.toFixed(2)}`, rate: "fixed; the rate adapts", none: "fixed" };
  say(byId("t-threshold-note"), follows[run.adapt] ?? run.adapt);
  figure(byId("t-p50"), ...(run.latency_s ? span(run.latency_s[0]) : ["–"]));
  say(byId("t-p50-note"), run.latency_s ? `99 % within ${time(run.latency_s[2])}` : " ");
  figure(byId("t-pending"), count(run.pending));
  say(byId("t-pending-note"), run.refused ? `${count(run.refused)} turned away` : "none turned away");
  figure(byId("t-total"), count(run.completed));
  say(byId("t-total-note"), run.errors ? `${count(run.errors)} without a label` : `${count(run.retried)} tried again`);
  byId("t-total-note").classList.toggle("bad", run.errors > 0);
}

/** Rows by key, in the order of ``items``; each is made once and then filled again. */
function rows(parent, items, key, make, fill) {
  const known = new Map([...parent.children].map((row) => [row.dataset.key, row]));
  items.forEach((item, number) => {
    let row = known.get(key(item));
    if (!row) {
      row = make();
      row.dataset.key = key(item);
    }
    known.delete(key(item));
    if (parent.children[number] !== row) parent.insertBefore(row, parent.children[number] ?? null);
    fill(row, item);
  });
  known.forEach((row) => row.remove());
}

export function drawNodes(nodes) {
  rows(byId("nodes"), nodes, (node) => node.name, makeNode, fillNode);
}

function makeNode() {
  const bar = el("span", { class: "bar" }, el("span"));
  const cells = [el("td", {}, el("span", { class: "tag" })), el("td"), el("td", {}, bar, el("span"))];
  const numbers = Array.from({ length: 6 }, () => el("td", { class: "n" }));
  return el("tr", {}, el("th", { scope: "row" }, el("span"), el("span", { class: "emul" })), ...cells, ...numbers);
}

/** A bar of that share, coloured by level. */
function fill(bar, share, level = "") {
  const width = `${(share * 100).toFixed(1)}%`;
  if (bar.style.width !== width) bar.style.width = width;
  if (bar.className !== level) bar.className = level;
}

function fillNode(row, node) {
  const [name, state, layers, queue, ...numbers] = row.children;
  say(name.children[0], node.name);
  say(name.children[1], node.emulated ? "emulated" : "");
  put(name, { title: [node.engine, node.emulated && `emulated: ${node.emulated}`, node.version].filter(Boolean).join(", ") });
  say(state.firstChild, node.state);
  const tag = `tag ${node.state === "gone" ? "bad" : node.state === "ready" ? "good" : ""}`;
  if (state.firstChild.className !== tag) state.firstChild.className = tag;
  say(layers, node.span ? node.span.replace("-", "–") : "–");
  const [bar, waiting] = queue.children;
  fill(bar.firstChild, fullness(node), levelOf(fullness(node)));
  say(waiting, `${node.inputs}+${node.outputs}`);
  const speeds = Object.values(node.speed_s);
  const speed = speeds.length ? `${time(Math.max(...speeds))}/task` : "–";
  const board = [node.memory_bytes && bytes(node.memory_bytes), node.temperature_c !== null && `${node.temperature_c.toFixed(0)} °C`];
  if (node.power_w !== null) board.push(`${node.power_w.toFixed(1)} W`);
  const shown = [time(node.backlog_s), perSecond(node.executed_per_s), speed, count(node.exited), `${node.cpu_percent.toFixed(0)} %`];
  [...shown, board.filter(Boolean).join(" · ") || "–"].forEach((text, number) => say(numbers[number], text));
}

export function drawExits(run) {
  const found = run?.exits ?? {};
  const last = Math.max(-1, ...Object.keys(found).map(Number));
  const exits = Array.from({ length: last + 1 }, (_, number) => ({ number, items: found[number] ?? 0 }));
  const total = exits.reduce((sum, exit) => sum + exit.items, 0);
  const make = () => el("li", {}, el("span"), el("span", { class: "bar" }, el("span")), el("span", { class: "share" }));
  rows(byId("exits"), exits, (exit) => String(exit.number), make, (row, exit) => {
    const share = total ? exit.items / total : 0;
    say(row.children[0], `exit ${exit.number}`);
    fill(row.children[1].firstChild, share);
    figure(row.children[2], percent(share, 0), ` ${count(exit.items)}`);
  });
}

export function drawLog(happenings) {
  const items = happenings.slice(-LOGGED).reverse();
  const key = (each) => `${each.at.toFixed(3)} ${each.kind} ${each.text}`;
  const make = () => el("li", {}, el("time"), el("span", { class: "kind" }), el("span", { class: "text" }));
  const shown = items.length ? items : [{ at: 0, kind: "", text: "Joins, deaths, gaps and orders are noted here." }];
  rows(byId("log"), shown, key, make, (row, each) => {
    row.classList.toggle("none", !each.at);
    say(row.children[0], each.at ? clock(each.at) : "");
    say(row.children[1], each.kind);
    say(row.children[2], each.text);
  });
}
