// Images of late, and the ways to post an item: a file, a drop, the camera; a text. What the model takes decides.

import { byId, el, percent, say, time } from "./dom.js";

const MOST = 24;
const MOST_ANSWERS = 4; // as many as stand beside the map without making it taller
const CAMERA_MS = 700;
const LARGEST_BYTES = 8 * 1024 * 1024;
const SIDE = 640;
const KINDS = {
  image: { title: "Images", hint: "Drop an image here, or choose one, to have it labelled.", choose: "Try an image", accept: "image/*" },
  audio: { title: "Sound", hint: "Drop a WAV file here, or choose one, to have it labelled.", choose: "Try a WAV file", accept: ".wav,audio/wav" },
  text: { title: "Texts", hint: "Write a text to have it labelled." },
  tensor: { title: "Values", hint: "What this model takes is prepared by a program." },
};

export class Frames {
  constructor() {
    this.list = byId("frames");
    this.own = new Set();
    this.recent = [];
    this.stream = null;
    this.kind = "image";
    byId("file").addEventListener("change", (event) => {
      this.postAll([...event.target.files]);
      event.target.value = "";
    });
    this.acceptDrops(byId("drop"));
    this.offerCamera(byId("camera"));
    byId("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.post(new Blob([byId("text").value], { type: "text/plain" }), byId("text").value);
    });
    let width = 0;
    new ResizeObserver(() => {
      if (width === this.list.clientWidth) return;
      width = this.list.clientWidth;
      this.layOut();
    }).observe(this.list);
    this.layOut();
  }

  /** The kind of the model's input, as in its manifest; of texts and sound there are no pictures. */
  takes(kind) {
    if (kind === this.kind || !KINDS[kind]) return;
    this.kind = kind;
    this.stopCamera();
    const { title, hint, choose, accept } = KINDS[kind];
    say(byId("frames-title"), title);
    this.tell([hint]);
    byId("choose").hidden = !choose;
    say(byId("choose-word"), choose ?? "");
    byId("file").accept = accept ?? "";
    byId("camera").hidden = this.list.hidden = kind !== "image";
    byId("ask").hidden = kind !== "text";
    byId("answers").hidden = kind === "image";
    byId("answers").replaceChildren();
    if (kind === "image") this.layOut();
  }

  /** Each new frame takes the place of the oldest, so that nothing else moves. After a gap all begins anew. */
  add(frames, { anew = false } = {}) {
    this.recent = [...(anew ? [] : this.recent), ...frames].slice(-MOST);
    if (anew) this.layOut();
    else frames.slice(-this.places).forEach((frame) => this.put(this.card(frame), "new"));
  }

  put(card, ...classes) {
    this.list.querySelector(".new")?.classList.remove("new");
    card.classList.add(...classes);
    this.list.children[this.next].replaceWith(card);
    this.next = (this.next + 1) % this.places;
  }

  /** As many places as two rows have. */
  layOut() {
    this.places = 2 * getComputedStyle(this.list).gridTemplateColumns.split(" ").length;
    this.next = 0;
    this.list.replaceChildren(...Array.from({ length: this.places }, () => el("li", { class: "frame none", "aria-hidden": "true" })));
    this.recent.slice(-this.places).forEach((frame) => this.put(this.card(frame)));
  }

  card(frame) {
    const name = frame.name || `class ${frame.label}`;
    const picture = el("img", { src: `/v1/frames/${frame.number}.jpg?${Math.round(frame.at * 1000)}`, alt: "", width: 94, height: 84 });
    picture.addEventListener("load", () => picture.classList.toggle("tiny", picture.naturalWidth < 64));
    const sure = el("i", { "aria-hidden": "true" });
    sure.style.setProperty("--sure", `${frame.confidence * 100}%`);
    const wrong = frame.truth !== null && frame.truth !== name;
    const exit = el("span", {}, `exit ${frame.exit} · ${percent(frame.confidence, 0)}`);
    const last = el("span", {}, wrong ? `is: ${frame.truth}` : time(frame.latency_s));
    const classes = `frame${wrong ? " wrong" : ""}${this.own.has(frame.number) ? " own" : ""}`;
    const title = `${name}, ${percent(frame.confidence)} sure at exit ${frame.exit}, by ${frame.path.join(", ")}`;
    return el("li", { class: classes, title, "data-number": frame.number }, picture, el("b", {}, name), exit, sure, last);
  }

  // --- posting

  async postAll(files) {
    for (const file of files) await this.post(file, file.type === "text/plain" ? await file.text() : file.name);
  }

  /** ``what``: the item in words, where there are any. */
  async post(blob, what = "") {
    if (blob.size > LARGEST_BYTES) {
      this.tell([`${blob.name ?? "This"} is larger than 8 MiB.`], "bad");
      return;
    }
    this.tell(["Asking …"]);
    try {
      const type = /^(image\/|text\/plain)/.test(blob.type) ? blob.type : "application/octet-stream";
      const answer = await fetch("/v1/infer", { method: "POST", body: blob, headers: { "Content-Type": type } });
      const body = await answer.json();
      if (answer.ok) this.answered(body, what);
      else this.tell([body.error.text], "bad");
    } catch {
      this.tell(["The gateway could not be reached."], "bad");
    }
  }

  answered(answer, what) {
    if (answer.frame !== null) {
      this.own.add(answer.frame); // its event may come before or after this answer
      this.list.querySelector(`[data-number="${Number(answer.frame)}"]`)?.classList.add("own");
    }
    const name = answer.name || `class ${answer.label}`;
    const how = ` · ${percent(answer.confidence)} sure at exit ${answer.exit}, ${time(answer.latency_s)}, by ${answer.path.join(" → ")}`;
    this.tell([el("strong", {}, name), how]);
    if (this.kind !== "image") this.keep(name, answer, what);
  }

  /** One's own answers, the last one first: an event has no picture of a text or sound to tell them by. */
  keep(name, answer, what) {
    const sure = el("i", { "aria-hidden": "true" });
    sure.style.setProperty("--sure", `${answer.confidence * 100}%`);
    const how = el("span", {}, `exit ${answer.exit} · ${percent(answer.confidence, 0)}`);
    const item = el("q", { title: what.slice(0, 400) }, what.slice(0, 120));
    byId("answers").prepend(el("li", {}, el("b", {}, name), how, sure, what ? item : null));
    while (byId("answers").children.length > MOST_ANSWERS) byId("answers").lastChild.remove();
  }

  tell(parts, level = "good") {
    const line = byId("answer");
    line.dataset.level = level;
    line.replaceChildren(...parts);
  }

  acceptDrops(panel) {
    const over = (on) => (event) => {
      event.preventDefault();
      panel.classList.toggle("over", on);
    };
    panel.addEventListener("dragenter", over(true));
    panel.addEventListener("dragover", over(true));
    panel.addEventListener("dragleave", over(false));
    panel.addEventListener("drop", (event) => {
      over(false)(event);
      const wanted = { image: "image/", audio: "audio/", text: "text/plain" }[this.kind];
      this.postAll([...event.dataTransfer.files].filter((file) => wanted && file.type.startsWith(wanted)));
    });
    document.addEventListener("paste", (event) => this.postAll([...event.clipboardData.files]));
  }

  // --- the camera

  offerCamera(button) {
    if (!navigator.mediaDevices?.getUserMedia) { // only pages of this machine or over TLS may ask for it
      button.style.visibility = "hidden";
      return;
    }
    button.addEventListener("click", () => (this.stream ? this.stopCamera() : this.startCamera()));
  }

  async startCamera() {
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ video: { width: SIDE }, audio: false });
    } catch {
      this.tell(["There is no camera, or it may not be used."], "bad");
      return;
    }
    const view = byId("view");
    view.srcObject = this.stream;
    view.hidden = false;
    byId("camera").setAttribute("aria-pressed", "true");
    say(byId("camera"), "Stop camera");
    await view.play();
    this.watch();
  }

  stopCamera() {
    this.stream?.getTracks().forEach((track) => track.stop());
    this.stream = null;
    byId("view").hidden = true;
    byId("view").srcObject = null;
    byId("camera").setAttribute("aria-pressed", "false");
    say(byId("camera"), "Camera");
  }

  /** One picture after the other, the next only when the one before has its answer. */
  async watch() {
    const view = byId("view");
    const canvas = el("canvas");
    while (this.stream) {
      if (view.videoWidth) {
        canvas.width = view.videoWidth;
        canvas.height = view.videoHeight;
        canvas.getContext("2d").drawImage(view, 0, 0);
        const picture = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.85));
        if (picture && this.stream) await this.post(picture);
      }
      await new Promise((done) => setTimeout(done, CAMERA_MS));
    }
  }
}
