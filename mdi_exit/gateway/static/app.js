// The live page: one stream of events, drawn.

import { Charts } from "./charts.js";
import { byId, count, say } from "./dom.js";
import { Frames } from "./frames.js";
import { NodeMap } from "./map.js";
import { follow } from "./stream.js";
import { drawExits, drawLog, drawNodes, drawTiles } from "./tables.js";

const DRAWN_MS = 400;

const charts = new Charts(byId("charts"));
const map = new NodeMap(byId("map"));
const frames = new Frames();
let paused = false;
let latest = null;
let lastSample = null;
let cut = true;
let planned = 0;
let drawn = 0;

function tell(level, word, text) {
  byId("link").dataset.level = level;
  say(byId("link-word"), word);
  byId("status").dataset.level = level;
  say(byId("status"), text);
  document.body.classList.toggle("stale", level === "bad" || level === "wait");
}

function describe(state) {
  if (state.problem) {
    const kept = state.run ? " The last figures are kept." : "";
    if (state.problem.what === "broker") tell("wait", "No broker", `${sentence(state.problem.text)} Trying again.${kept}`);
    // Not for how long, which would be read aloud each second.
    else if (state.run) tell("wait", "No source", `The source ${state.run.source} has fallen silent.${kept}`);
    else tell("wait", "No source", `${sentence(state.problem.text)} Start one: edge-source --deployment ${state.deployment} …`);
    return;
  }
  const agents = state.nodes.filter((node) => node.role === "agent" && node.state !== "gone");
  const ready = agents.filter((node) => node.state === "ready").length;
  const parts = [`${state.model || "model not known yet"}${state.layers ? `, ${state.layers} layers` : ""}`];
  parts.push(agents.length ? `${ready} of ${agents.length} agents ready` : "no agents: the source works alone");
  if (state.run.source !== "source") parts.push(`fed by ${state.run.source}`);
  tell(state.run.paused ? "warn" : "good", state.run.paused ? "Paused" : "Live", parts.join(" · "));
}

/** "nano, nanox0.4" as "nano (×1, ×0.4)". */
function devices(emulated) {
  const speeds = new Map();
  for (const name of emulated.split(", ")) {
    const [, device, speed] = name.match(/^(.*?)(?:x([\d.]+))?$/);
    speeds.set(device, [...(speeds.get(device) ?? []), speed ?? "1"]);
  }
  return [...speeds].map(([device, all]) => (all.join() === "1" ? device : `${device} (×${all.join(", ×")})`)).join(", ");
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (text.endsWith(".") ? "" : ".");

/** Draws soon, and at most every DRAWN_MS: what changes faster cannot be read. */
function drawSoon() {
  if (planned || document.hidden) return;
  planned = setTimeout(() => {
    planned = 0;
    drawn = performance.now();
    requestAnimationFrame(draw);
  }, Math.max(drawn + DRAWN_MS - performance.now(), 0));
}

function draw() {
  if (!latest || paused) return;
  const state = latest;
  say(byId("deployment"), state.deployment);
  document.title = `${state.deployment} · mdi-exit`;
  byId("emulated").hidden = !state.emulated;
  say(byId("emulated"), state.emulated ? `emulated: ${devices(state.emulated)}` : "");
  byId("emulated").title = state.emulated;
  drawTiles(state, lastSample);
  map.draw(state);
  drawNodes(state.nodes);
  drawExits(state.run);
  drawLog(state.happenings);
  charts.drawNew();
  say(byId("foot"), `mdi-exit ${state.version} · ${count(state.nodes.length)} nodes · ${state.labels.length} classes`);
}

function onUpdate(update) {
  latest = update.state;
  frames.takes(latest.takes);
  frames.add(update.frames, { anew: cut });
  charts.add(update.samples);
  lastSample = update.samples.at(-1) ?? (cut ? null : lastSample);
  cut = false;
  describe(latest);
  drawSoon();
}

function onCut(milliseconds) {
  cut = true;
  const seconds = Math.max(Math.round(milliseconds / 1000), 1);
  tell("bad", "Cut off", `The gateway does not answer. Trying again in ${seconds} s; the last figures are kept.`);
}

byId("pause").addEventListener("click", (event) => {
  paused = !paused;
  event.target.setAttribute("aria-pressed", String(paused));
  say(event.target, paused ? "Resume" : "Pause");
  document.body.classList.toggle("paused", paused);
  draw();
});
document.addEventListener("visibilitychange", drawSoon);

draw();
charts.draw();
follow("/v1/events", onUpdate, onCut);
