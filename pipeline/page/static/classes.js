// The table of classes: colour, visibility, own threshold, what it keeps, how right that is and how we know.

import { codeKeys } from "./charts.js";
import { byId, fill, h, percent, setText } from "./dom.js";
import { icon } from "./icons.js";
import { storeSums } from "./numbers.js";
import { coloursOf, css } from "./palette.js";
import { setPin } from "./panel.js";
import { scene } from "./scene.js";
import { state, update, watch } from "./state.js";
import { at, edgeText, nearestCode, parseThreshold, WITHHELD } from "./thresholds.js";

const CHIPS = {
  given: ["own", "given by hand"],
  certified: ["good", "distribution-free: answers about drawn pixels prove it for these very labels"],
  measured: ["good", "under the block model: in 9 of 10 simulated searches for the threshold the target is reached"],
  estimate: ["warn", "no promise: a figure of few blocks, or its search for the threshold fails too often in simulation"],
  pooled: ["warn", "too little evidence of its own: shared with its class group"],
  withheld: ["bad", "no threshold could be justified: nothing of this class is kept"],
  "not covered by evidence": ["bad", "these images differ too much from those the threshold was measured on"],
  yours: ["own", "set by you"],
  "one for all": ["", "the common threshold"],
};

let store = null;
let rows = [];
let measured = new Map(); // class id -> row of /api/stats for the thresholds it was computed with

/** Status of a class under the present state. */
function statusOf(c) {
  if (c in state.pins) return state.pins[c] >= WITHHELD ? "withheld" : "yours";
  if (state.base === "policy") return store.policy.statuses[c];
  return "one for all";
}

/** Lines of the tooltip: what was measured for this very threshold, next to what the table expects of this store. */
function evidence(known) {
  if (!known || known.precision === null) return "";
  if (known.precision_source === "coarse-corrected") return `by coarse human labels, corrected: ${percent(known.precision, 1, 1)}`;
  const range = known.precision_high === null ? `at least ${percent(known.precision_low, 1, 1)}` : `${percent(known.precision_low, 1, 1)} to ${percent(known.precision_high, 1, 1)}`;
  if (known.precision_source === "certificate") return `certified in this store: ${percent(known.precision, 1, 1)}, ${range} (all certified classes together)`;
  if (known.precision_source === "audit") return `audited here: ${percent(known.precision, 1, 1)}, ${range} (95 %)`;
  const where = { calibration: "", "outside-coarse": ", outside of human labels" }[known.precision_source];
  if (where !== undefined) return `on calibration images${where}: ${percent(known.precision, 1, 1)}, ${range} (95 %)`;
  return "";
}

function precisionOf(c) {
  const threshold = scene.thresholds[c];
  const known = measured.get(c)?.code === threshold ? measured.get(c) : null;
  const { count, right } = storeSums();
  const kept = at(count, c, threshold);
  const lines = [evidence(known)];
  if (right && kept) {
    const marginal = at(count, c, threshold) - at(count, c, threshold + 1);
    lines.push(`expected of what is kept here: ${percent(at(right, c, threshold), kept, 1)}`);
    if (marginal) lines.push(`at the threshold itself: ${percent(at(right, c, threshold) - at(right, c, threshold + 1), marginal, 0)}`);
  }
  const title = lines.filter(Boolean).join("\n");
  if (["audit", "certificate"].includes(known?.precision_source)) return { text: percent(known.precision, 1, 1), title, source: "audit" };
  if (right && kept) return { text: percent(at(right, c, threshold), kept, 1), title, source: "" };
  return { text: "–", title: kept ? "not measured yet: an audit (u) of 5 pixels or more measures it" : "nothing of this class is kept", source: "" };
}

function toggleVisible(c, solo) {
  const hidden = (i) => state.alphas[i] === 0;
  const alphas = { ...state.alphas };
  if (solo) {
    const alone = store.classes.every((_, i) => i === c || hidden(i)) && !hidden(c);
    store.classes.forEach((_, i) => { alphas[i] = alone || i === c ? 100 : 0; });
  } else alphas[c] = hidden(c) ? 100 : 0;
  for (const [i, share] of Object.entries(alphas)) if (share === 100) delete alphas[i];
  update({ alphas });
}

function detail(c) {
  const name = store.classes[c].name;
  const alpha = h("input", { type: "range", min: 0, max: 100, step: 5, value: state.alphas[c] ?? 100, id: `class-alpha-${c}`, "aria-label": `opacity of ${name}` });
  alpha.addEventListener("input", () => update({ alphas: { ...state.alphas, [c]: Number(alpha.value) } }));
  const value = h("input.number", { type: "text", inputmode: "decimal", value: edgeText(store, scene.thresholds[c]), "aria-label": `threshold of ${name}`, autocomplete: "off" });
  const message = h("span.field-error", { hidden: true, role: "alert" });
  value.addEventListener("change", () => {
    const { code, neighbours } = parseThreshold(value.value, store);
    message.hidden = code !== null;
    setText(message, neighbours.length ? `not on the grid: ${neighbours.join(" or ")}` : "a number from 0 to 1");
    if (code !== null) setPin(c, code);
  });
  const fixed = store.kind !== "raw";
  value.disabled = fixed;
  return h("div.class-detail", {},
    h("label", {}, "Opacity", alpha),
    h("label", {}, "Exact", value), message,
    h("span.row-buttons", {},
      h("button.small", { type: "button", disabled: fixed, onclick: () => setPin(c, WITHHELD) }, "Withhold"),
      h("button.small", { type: "button", disabled: fixed || !(c in state.pins), onclick: () => setPin(c, null) }, "Reset")));
}

function makeRow(c) {
  const { name } = store.classes[c];
  const parts = {
    eye: h("button.swatch", { type: "button", "aria-label": `show ${name}`, title: "show or hide (Alt: only this one)", onclick: (event) => toggleVisible(c, event.altKey) }),
    name: h("button.class-name", { type: "button", onclick: () => update({ focus: state.focus === c ? -1 : c }) }, name),
    chip: h("span.chip"),
    value: h("output.class-value"),
    slider: h("input", { type: "range", min: 0, max: 1, step: "any", id: `class-threshold-${c}`, "aria-label": `threshold of ${name}`, disabled: store.kind !== "raw" }),
    bar: h("span.bar", {}, h("i")),
    kept: h("span.class-kept"),
    precision: h("span.class-precision"),
  };
  parts.slider.addEventListener("input", () => setPin(c, nearestCode(store.edgeValues, Number(parts.slider.value))));
  parts.slider.addEventListener("change", () => showRow(c));
  codeKeys(parts.slider, () => scene.thresholds[c], (code) => setPin(c, code));
  parts.node = h("li.class-row", { dataset: { class: name } },
    parts.eye, parts.name, parts.value, parts.kept, parts.precision,
    h("span.class-status", {}, parts.chip), parts.slider, parts.bar);
  return parts;
}

function showRow(c) {
  const row = rows[c];
  const threshold = scene.thresholds[c];
  const status = statusOf(c);
  const [tone, why] = CHIPS[status] ?? ["", status];
  const share = state.alphas[c] ?? 100;
  row.eye.style.setProperty("--swatch", css(coloursOf(store)[c]));
  row.eye.classList.toggle("off", share === 0);
  row.eye.setAttribute("aria-pressed", String(share > 0));
  row.node.classList.toggle("focused", state.focus === c);
  row.name.setAttribute("aria-pressed", String(state.focus === c));
  row.chip.className = `chip ${tone}`;
  setText(row.chip, status);
  row.chip.title = why;
  row.chip.hidden = status === "one for all" || status === "as stored";
  setText(row.value, edgeText(store, threshold));
  row.slider.value = String(threshold >= WITHHELD ? 1 : store.edgeValues[threshold]);
  row.slider.setAttribute("aria-valuetext", edgeText(store, threshold));
  const { count } = storeSums();
  const [all, kept] = [at(count, c, 0), at(count, c, threshold)];
  row.node.classList.toggle("absent", all === 0);
  row.bar.firstChild.style.width = all ? `${(100 * kept) / all}%` : "0";
  row.kept.dataset.kept = String(kept);
  setText(row.kept, percent(kept, all, 1));
  row.kept.title = all ? "share of the pixels predicted as this class that is kept" : "the teacher predicted this class nowhere";
  const precision = precisionOf(c);
  setText(row.precision, precision.text);
  row.precision.title = precision.title;
  row.precision.classList.toggle("audited", precision.source === "audit");
}

function showRows() {
  rows.forEach((_, c) => showRow(c));
}

function openDetail() {
  document.querySelector(".class-detail")?.remove();
  if (state.focus < 0) return;
  rows[state.focus].node.append(detail(state.focus));
  rows[state.focus].node.scrollIntoView({ block: "nearest" });
}

/** Take the measured precision of /api/stats (with intervals and audits). */
export function useStats(stats) {
  measured = new Map(stats.classes.map((row) => [row.id, row]));
  showRows();
}

export function startClasses(data) {
  store = data;
  rows = store.classes.map((_, c) => makeRow(c));
  fill(byId("classes"), rows.map((row) => row.node));
  let queued = false;
  const soon = () => {
    if (!queued) requestAnimationFrame(() => { queued = false; showRows(); });
    queued = true;
  };
  watch(["base", "pins"], showRows); // at once, for scripts that read the numbers
  watch(["focus", "alphas", "palette"], soon);
  watch(["focus"], openDetail);
  byId("show-all").prepend(icon("eye"));
  byId("show-all").addEventListener("click", () => update({ alphas: {} }));
  showRows();
  openDetail();
}
