// Elements and numbers. Whatever came over the network becomes text or an attribute here, never markup.

export const byId = (id) => document.getElementById(id);

const SVG = "http://www.w3.org/2000/svg";

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** An HTML element; children are elements or text. */
export const el = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);

/** An SVG element. */
export const svg = (tag, attributes = {}, ...children) => filled(document.createElementNS(SVG, tag), attributes, children);

/** Sets the text only where it changes, so that selections and readers are left alone. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Sets attributes, each only where it changes: setting is painting. */
export function put(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
  }
}

/** A number with a unit in small. */
export function figure(node, text, unit = "") {
  if (node.dataset.shown === text + unit) return;
  node.dataset.shown = text + unit;
  node.replaceChildren(text, ...(unit ? [el("small", {}, unit)] : []));
}

export const perSecond = (value) => (value < 9.95 ? value.toFixed(1) : Math.round(value).toLocaleString("en"));
export const count = (value) => value.toLocaleString("en");
export const percent = (value, digits = 1) => `${(value * 100).toFixed(digits)} %`;

/** Seconds as [number, unit]. */
export function span(seconds) {
  if (seconds < 0.00995) return [(seconds * 1000).toFixed(1), "ms"];
  if (seconds < 0.9995) return [String(Math.round(seconds * 1000)), "ms"];
  if (seconds < 99.5) return [seconds.toFixed(seconds < 9.95 ? 2 : 1), "s"];
  return [count(Math.round(seconds)), "s"];
}

export const time = (seconds) => span(seconds).join(" ");

export function bytes(value) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (value < 999.5 || unit === "GB") return `${value < 9.95 && unit !== "B" ? value.toFixed(1) : Math.round(value)} ${unit}`;
    value /= 1000;
  }
}

export const clock = (at) => new Date(at * 1000).toLocaleTimeString("en-GB");

/** 0 to 1: how full a node's queues are, for bars and rings; 24 tasks are full. */
export const fullness = (node) => Math.min((node.inputs + node.outputs) / 24, 1);
export const levelOf = (share) => (share >= 0.95 ? "bad" : share >= 0.5 ? "warn" : "good");
