// The OpenAPI description, readable.

import { byId, el, say } from "./dom.js";

const description = await (await fetch("/openapi.json")).json();
say(byId("curl"), `curl --data-binary @image.jpg ${location.origin}/v1/infer`);

const named = (schema) => description.components.schemas[schema.$ref?.split("/").at(-1)] ?? schema;

function schemaOf(content) {
  const schema = Object.values(content ?? {})[0]?.schema;
  if (!schema?.$ref) return null;
  const shown = JSON.stringify(named(schema), null, 2);
  return el("details", {}, el("summary", {}, `Schema of ${schema.$ref.split("/").at(-1)}`), el("pre", { tabindex: 0 }, shown));
}

function operation(path, method, one) {
  const title = el("h2", {}, el("span", { class: "method" }, method.toUpperCase()), el("code", {}, path));
  const inputs = (one.parameters ?? []).map((each) => el("p", {}, el("code", {}, each.name), ` (${each.in}) ${each.description ?? ""}`));
  const body = one.requestBody && el("p", {}, `Body: ${Object.keys(one.requestBody.content).join(" or ")}. ${one.requestBody.description}.`);
  const answers = Object.entries(one.responses).flatMap(([status, each]) => [el("dt", {}, status), el("dd", {}, each.description)]);
  return el("section", { class: "panel" }, title, el("p", {}, one.summary), ...inputs, body, el("dl", {}, ...answers), schemaOf(one.responses["200"].content));
}

for (const [path, methods] of Object.entries(description.paths)) {
  for (const [method, one] of Object.entries(methods)) byId("operations").append(operation(path, method, one));
}
