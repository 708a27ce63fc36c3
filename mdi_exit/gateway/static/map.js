// The map: the source in the middle, its agents around it, features as lines whose width says how many.

import { bytes, fullness, levelOf, perSecond, put, say, svg, time } from "./dom.js";

const DISC = 29;
const RING = 34;
const ROUND = 2 * Math.PI * RING;
const LABELS = 78;
const BEND = 30;
const SHOWN = 40;
const SMALL = 0.7;
const IDLE_PER_S = 0.05;
const LABELLED_AT = [0.5, 0.36, 0.64, 0.25, 0.75];

export class NodeMap {
  constructor(parent) {
    this.parent = parent;
    this.pipes = svg("g");
    this.discs = svg("g");
    this.labels = svg("g");
    this.empty = svg("text", { class: "empty" });
    this.root = svg("svg", { role: "img", "aria-label": "No nodes yet" }, this.pipes, this.discs, this.labels, this.empty);
    parent.append(this.root);
    this.nodes = new Map();
    this.links = new Map();
    new ResizeObserver(() => this.state && this.draw(this.state)).observe(parent);
  }

  draw(state) {
    this.state = state;
    const { clientWidth: width, clientHeight: height } = this.parent;
    put(this.root, { viewBox: `0 0 ${width} ${height}` });
    const nodes = state.nodes.slice(0, SHOWN);
    const places = placed(nodes, width, height);
    const crowded = nodes.length > 12;
    this.keep(this.nodes, nodes.map((node) => node.name), () => this.makeNode());
    nodes.forEach((node) => drawNode(this.nodes.get(node.name), node, places.get(node.name), crowded));
    const links = state.links.filter((link) => link.tasks > 0 && places.has(link.sender) && places.has(link.to));
    const key = (link) => `${link.sender} ${link.to}`;
    this.keep(this.links, links.map(key), () => this.makeLink());
    const middle = places.get(nodes.find((node) => node.role === "source")?.name);
    const labelled = links.map((link) => {
      const parts = this.links.get(key(link));
      const drawn = curve(places.get(link.sender), places.get(link.to), middle);
      drawLink(parts, link, drawn);
      return { parts, link, at: drawn.at };
    });
    drawLabels(labelled, places, crowded ? SMALL : 1);
    this.describe(state, links, width, height);
  }

  describe(state, links, width, height) {
    const hidden = state.nodes.length - SHOWN;
    const text = !state.nodes.length ? "Nodes appear here as they join" : hidden > 0 ? `and ${hidden} more nodes, in the table` : "";
    say(this.empty, text);
    put(this.empty, { x: width / 2, y: state.nodes.length ? height - 8 : height / 2 });
    const busy = links.filter((link) => link.tasks_per_s >= IDLE_PER_S);
    const flows = busy.map((link) => `${link.sender} to ${link.to} ${perSecond(link.tasks_per_s)} a second`).join("; ");
    put(this.root, { "aria-label": `${state.nodes.length} nodes. Tasks: ${flows || "none on their way"}.` });
  }

  /** One drawing for each key: new ones made, those of keys that are gone removed. */
  keep(drawings, keys, make) {
    const wanted = new Set(keys);
    for (const [key, parts] of drawings) {
      if (!wanted.has(key)) {
        parts.all.forEach((part) => part.remove());
        drawings.delete(key);
      }
    }
    for (const key of wanted) if (!drawings.has(key)) drawings.set(key, make());
  }

  makeNode() {
    const parts = {
      track: svg("circle", { class: "track", r: RING }),
      load: svg("circle", { class: "load", r: RING, transform: "rotate(-90)" }),
      rate: svg("text", { class: "rate", y: 1 }),
      unit: svg("text", { class: "sub", y: 15 }),
      name: svg("text", { class: "name" }),
      sub: svg("text", { class: "sub" }),
      title: svg("title"),
    };
    const disc = svg("circle", { class: "disc", r: DISC });
    parts.group = svg("g", {}, parts.title, parts.track, parts.load, disc, parts.rate, parts.unit, parts.name, parts.sub);
    parts.all = [parts.group];
    this.discs.append(parts.group);
    return parts;
  }

  makeLink() {
    const parts = { title: svg("title"), flow: svg("path", { class: "flow" }), label: svg("text", { class: "label" }) };
    parts.pipe = svg("path", { class: "pipe" }, parts.title);
    parts.all = [parts.pipe, parts.flow, parts.label];
    this.pipes.append(parts.pipe, parts.flow);
    this.labels.append(parts.label);
    return parts;
  }
}

/** Where each node stands: the first source in the middle, all others on an ellipse around it. */
function placed(nodes, width, height) {
  const source = nodes.find((node) => node.role === "source");
  const others = nodes.filter((node) => node !== source);
  const tall = width < 1.4 * height;
  const middle = { x: width / 2, y: height / 2 };
  // Three would leave a quarter of the space empty: they spread, and all of it moves aside.
  const three = others.length === 3;
  const rx = Math.max(Math.min((width - 120) / (three && !tall ? 1.5 : 2), 340), 50);
  const ry = Math.max((height - 2 * LABELS) / (three && tall ? 1.5 : 2), 50);
  if (three && tall) middle.y = LABELS + ry;
  else if (three) middle.x += rx / 4;
  const places = new Map();
  if (source) places.set(source.name, middle);
  const even = others.length % 2 === 0 && others.length > 2;
  const first = (tall ? -Math.PI / 2 : Math.PI) + (even ? Math.PI / others.length : 0);
  others.forEach((node, number) => {
    const angle = first + (2 * Math.PI * number) / others.length;
    const y = middle.y + ry * Math.sin(angle);
    places.set(node.name, { x: middle.x + rx * Math.cos(angle), y, above: y < middle.y - 10 });
  });
  return places;
}

function drawNode(parts, node, place, crowded) {
  const gone = node.state === "gone";
  put(parts.name, { y: place.above ? -RING - 26 : RING + 20 });
  put(parts.sub, { y: place.above ? -RING - 10 : RING + 36 });
  const share = gone ? 0 : fullness(node);
  const size = crowded ? ` scale(${SMALL})` : "";
  put(parts.group, { transform: `translate(${place.x.toFixed(1)} ${place.y.toFixed(1)})${size}`, class: `${node.role}${gone ? " gone" : ""}` });
  const arc = `${(share * ROUND).toFixed(1)} ${ROUND.toFixed(1)}`;
  put(parts.load, { class: `load ${levelOf(share)}`, "stroke-dasharray": arc, visibility: share ? "visible" : "hidden" });
  say(parts.rate, gone ? "gone" : perSecond(node.executed_per_s));
  say(parts.unit, gone ? "" : "tasks/s");
  say(parts.name, node.name);
  const ready = gone || node.state === "ready" || (node.role === "source" && !node.span);
  say(parts.sub, ready ? (node.span ? `layers ${node.span.replace("-", "–")}` : "no layers") : node.state);
  const more = [`${node.inputs + node.outputs} waiting`, `backlog ${time(node.backlog_s)}`, node.engine, node.emulated && `emulated: ${node.emulated}`];
  say(parts.title, `${node.name}: ${node.state}, ${more.filter(Boolean).join(", ")}`);
}

/** From disc to disc, to the right of its direction, so that the two directions lie side by side; around the middle. */
function curve(a, b, middle) {
  const far = Math.hypot(b.x - a.x, b.y - a.y) || 1;
  const [ux, uy] = [(b.x - a.x) / far, (b.y - a.y) / far];
  const edge = RING + 4;
  const [x1, y1, x2, y2] = [a.x + ux * edge, a.y + uy * edge, b.x - ux * edge, b.y - uy * edge];
  let bend = Math.min(BEND, far * 0.14);
  if (middle && a !== middle && b !== middle) {
    const along = (middle.x - a.x) * ux + (middle.y - a.y) * uy;
    const aside = (middle.y - a.y) * ux - (middle.x - a.x) * uy; // of the middle, to the right
    const needed = aside + RING + 22;
    if (along > edge && along < far - edge && Math.abs(aside) < RING + 12) bend = Math.max(bend, 2 * needed);
  }
  const control = { x: (x1 + x2) / 2 - uy * bend, y: (y1 + y2) / 2 + ux * bend };
  const at = (t) => ({
    x: (1 - t) ** 2 * x1 + 2 * t * (1 - t) * control.x + t ** 2 * x2 - uy * 9,
    y: (1 - t) ** 2 * y1 + 2 * t * (1 - t) * control.y + t ** 2 * y2 + ux * 9,
  });
  const [from, over, to] = [[x1, y1], [control.x, control.y], [x2, y2]].map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`);
  return { path: `M${from}Q${over} ${to}`, at };
}

function drawLink(parts, link, { path }) {
  const idle = link.tasks_per_s < IDLE_PER_S;
  const width = idle ? 1.5 : Math.min(2.5 + 2.2 * Math.sqrt(link.tasks_per_s), 18);
  put(parts.pipe, { d: path, class: `pipe${idle ? " idle" : ""}`, "stroke-width": width.toFixed(1) });
  put(parts.flow, { d: path, class: `flow${idle ? " idle" : ""}`, "stroke-width": Math.min(width * 0.6, 5).toFixed(1) });
  const facts = [`${perSecond(link.tasks_per_s)} tasks/s`, `${bytes(link.bytes_per_s)}/s`, `delay ${time(link.delay_s)}`, `${link.credits} credits`];
  say(parts.title, `${link.sender} to ${link.to}: ${facts.join(", ")}`);
}

const apart = (a, b) => Math.abs(a.x - b.x) * 2 >= a.width + b.width || Math.abs(a.y - b.y) * 2 >= a.height + b.height;

/** Puts each label where it covers nothing, the busiest links' first; one without such a place is left out. */
function drawLabels(labelled, places, small) {
  const taken = [...places.values()].flatMap(({ x, y, above }) => [
    { x, y, width: 2 * RING * small, height: 2 * RING * small },
    { x, y: y + (above ? -RING - 22 : RING + 24) * small, width: 78 * small, height: 34 * small },
  ]);
  labelled.sort((a, b) => b.link.tasks - a.link.tasks);
  for (const { parts, link, at } of labelled) {
    const text = link.tasks_per_s < IDLE_PER_S ? "" : `${perSecond(link.tasks_per_s)}/s`;
    const boxes = LABELLED_AT.map((t) => ({ ...at(t), width: 7.5 * text.length + 4, height: 15 }));
    const box = text && boxes.find((each) => taken.every((other) => apart(each, other)));
    say(parts.label, box ? text : "");
    if (!box) continue;
    taken.push(box);
    put(parts.label, { x: box.x.toFixed(1), y: (box.y + 4).toFixed(1) });
  }
}
