// The right-hand panel: one threshold for all, live totals, the two charts.

import { binsOf, codeKeys, makeCurve, makeHistogram } from "./charts.js";
import { byId, clamp, compact, debounce, fill, h, percent, setText, sharp } from "./dom.js";
import { imageSums, measure, storeSums } from "./numbers.js";
import { coloursOf, css } from "./palette.js";
import { onScene, scene } from "./scene.js";
import { state, update, watch } from "./state.js";
import { at, CODES, edgeText, nearestCode, parseThreshold } from "./thresholds.js";

let store = null;
let draw = null;
let judged = null; // measured precision of the whole store at the present thresholds, where no table expects one
const UNKNOWN = "not measured yet: judge 5 pixels of each class (u)";
const slider = byId("threshold");
const field = byId("threshold-value");

/** Code that the global slider stands for: the base, or (under a policy) 0, which keeps every pixel. */
function globalCode() {
  return typeof state.base === "number" ? state.base : 0;
}

/** Use one threshold for every class that has no pin. A thresholded store has none to move. */
function setGlobal(code) {
  if (store.kind === "raw") update({ base: clamp(code, 0, CODES - 1) });
}

/** Move the threshold of the class in focus, or of all classes, by steps of the code. */
export function nudge(steps) {
  if (state.focus < 0) return setGlobal(globalCode() + steps);
  return setPin(state.focus, clamp(Math.min(scene.thresholds[state.focus], CODES - 1) + steps, 0, CODES - 1));
}

/** Give one class its own threshold (code null: back to the base). */
export function setPin(c, code) {
  if (store.kind !== "raw") return;
  const pins = { ...state.pins };
  if (code === null) delete pins[c];
  else pins[c] = code;
  update({ pins });
}

function drawEdges() {
  const { context, width, height } = sharp(byId("edges"));
  const style = getComputedStyle(byId("edges"));
  const usable = width - 16; // the thumb's half width on either side, as in base.css
  const tick = (code, colour, wide, tall) => {
    context.fillStyle = colour;
    context.fillRect(8 + store.edgeValues[code] * usable - wide / 2, 0, wide, tall);
  };
  store.edges.forEach((_, code) => tick(code, style.getPropertyValue("--ink-axis"), 0.5, code % 10 === 0 && code <= 90 ? 7 : 4));
  // Where the classes' own thresholds lie, in their colours; a common one in the colour of thresholds.
  const own = (c) => typeof state.base !== "number" || c in state.pins;
  scene.thresholds.forEach((code, c) => own(c) && code < CODES && tick(code, css(coloursOf(store)[c]), 2.5, height));
  if (typeof state.base === "number") tick(state.base, style.getPropertyValue("--ink-threshold"), 2, height);
}

function showShare(node, { kept, pixels }) {
  node.dataset.kept = String(kept);
  setText(node, percent(kept, pixels));
}

function showTotals() {
  const whole = measure(storeSums(), scene.thresholds);
  showShare(byId("kept-share-total"), whole);
  setText(byId("kept-total-detail"), `${compact(whole.kept)} of ${compact(whole.pixels)}`);
  const right = whole.precision ?? judged;
  setText(byId("precision-total"), right === null ? "–" : percent(right, 1));
  const here = imageSums();
  if (here) {
    const one = measure(here, scene.thresholds);
    showShare(byId("kept-share"), one);
    setText(byId("kept-detail"), `${compact(one.kept)} of ${compact(one.pixels)}`);
    setText(byId("precision-image"), one.precision === null ? "–" : percent(one.precision, 1));
  } else {
    setText(byId("kept-share"), "–");
    delete byId("kept-share").dataset.kept;
    setText(byId("kept-detail"), "no image");
    setText(byId("precision-image"), "–");
  }
  if (state.compare) {
    const other = measure(storeSums(state.compare.store), scene.thresholdsB);
    setText(byId("kept-total-b"), `${percent(other.kept, other.pixels)} in B`);
  }
  byId("kept-total-b").hidden = !state.compare;
}

function sliderText(code) {
  if (state.base === "policy") return "policy";
  return edgeText(store, code);
}

function showSlider() {
  const code = globalCode();
  slider.value = String(store.edgeValues[code]);
  slider.classList.toggle("idle", typeof state.base !== "number");
  slider.setAttribute("aria-valuetext", state.base === "policy" ? "each class has its own, from the policy" : `${store.edges[code]}, code ${code} of ${CODES}`);
  slider.dataset.edge = store.edges[code];
  if (document.activeElement !== field) field.value = sliderText(code);
  setText(byId("threshold-code"), state.base === "policy" ? "per class, measured" : `code ${code} of ${CODES}`);
  byId("base-one").setAttribute("aria-pressed", String(typeof state.base === "number"));
  byId("base-policy").setAttribute("aria-pressed", String(state.base === "policy"));
  const pinned = Object.keys(state.pins).length;
  setText(byId("pins-note"), pinned ? `${pinned} class${pinned > 1 ? "es have" : " has"} a threshold of ${pinned > 1 ? "their" : "its"} own` : "");
  byId("pins-clear").hidden = !pinned;
}

function showCharts() {
  const sums = storeSums();
  const c = state.focus;
  const threshold = c >= 0 ? scene.thresholds[c] : globalCode();
  const common = c >= 0 || (typeof state.base === "number" && !Object.keys(state.pins).length);
  setText(byId("chart-scope"), c >= 0 ? store.classes[c].name : "all classes");
  const all = c >= 0 ? at(sums.count, c, 0) : sums.pixels;
  const now = c >= 0
    ? { coverage: all ? at(sums.count, c, threshold) / all : 0, precision: sums.right && at(sums.count, c, threshold) ? at(sums.right, c, threshold) / at(sums.count, c, threshold) : null }
    : (({ kept, pixels, precision }) => ({ coverage: kept / pixels, precision }))(measure(sums, scene.thresholds));
  const described = `keeps ${percent(now.coverage, 1, 1)}${now.precision === null ? "" : `, expected precision ${percent(now.precision, 1, 1)}`}`;
  draw.histogram({ bins: binsOf(sums.count, c, scene.thresholds), threshold: common ? threshold : null, described });
  draw.curve({ count: sums.count, right: sums.right, c, threshold: Math.min(threshold, CODES - 1), dot: c < 0 ? now : null, target: store.policy?.target ?? 0, described });
  setText(byId("curve-note"), now.precision === null ? `keeps ${percent(now.coverage, 1, 1)}` : `keeps ${percent(now.coverage, 1, 1)}, ${percent(now.precision, 1, 1)} right`);
}

function showAll() {
  showSlider();
  showTotals();
  drawEdges();
  showCharts();
}

/** Act on a threshold typed as text: take it, or show its two neighbours as buttons. */
function typed() {
  const { code, neighbours } = parseThreshold(field.value, store);
  const message = byId("threshold-error");
  field.setAttribute("aria-invalid", String(code === null));
  message.hidden = code !== null;
  if (code !== null) return setGlobal(code);
  const take = (edge) => h("button.chip", { type: "button", onclick: () => { message.hidden = true; field.setAttribute("aria-invalid", "false"); field.value = edge; typed(); } }, edge);
  return fill(message, neighbours.length ? `${field.value} is not on the grid. Neighbours: ` : "Give a number from 0 to 1, such as 0.9. ", ...neighbours.map(take));
}

/** Say how much is measured where no calibration table gives an expectation; `stats`: figures of the present thresholds. */
export function useWhole(stats) {
  if (store.precision || store.kind !== "raw") return;
  const known = stats.classes.filter((row) => row.precision !== null).length;
  judged = stats.precision;
  showTotals();
  const some = known ? `measured for ${known} of ${stats.classes.length} classes (below)` : UNKNOWN;
  setText(byId("precision-source"), stats.precision === null ? some : stats.precision_source);
}

const fetchSources = debounce(() => {
  document.dispatchEvent(new CustomEvent("wantstats"));
}, 250);

export function startPanel(data) {
  store = data;
  const move = (code) => (state.focus < 0 ? setGlobal(code) : setPin(state.focus, code));
  draw = { histogram: makeHistogram(byId("histogram"), store, { onCode: move }), curve: makeCurve(byId("curve"), store, { onCode: move }) };
  slider.addEventListener("input", () => setGlobal(nearestCode(store.edgeValues, Number(slider.value))));
  slider.addEventListener("change", showSlider); // the thumb snaps to the code
  codeKeys(slider, globalCode, setGlobal);
  byId("threshold-down").addEventListener("click", () => nudge(-1));
  byId("threshold-up").addEventListener("click", () => nudge(1));
  field.addEventListener("change", typed);
  field.addEventListener("focus", () => field.select());
  byId("base-one").addEventListener("click", () => typeof state.base !== "number" && setGlobal(0));
  byId("base-policy").addEventListener("click", () => update({ base: "policy" }));
  byId("base-policy").hidden = !store.policy;
  byId("pins-clear").addEventListener("click", () => update({ pins: {} }));
  for (const id of ["threshold", "threshold-value", "threshold-down", "threshold-up", "base-one", "base-policy"]) byId(id).disabled = store.kind !== "raw";
  byId("threshold-section").classList.toggle("fixed", store.kind !== "raw");
  byId("thresholded-note").hidden = store.kind === "raw";
  const none = store.kind === "raw" ? UNKNOWN : "not known of finished labels";
  setText(byId("precision-source"), store.precision ? "calibration table" : none);
  let queued = false;
  const soon = () => {
    if (!queued) requestAnimationFrame(() => { queued = false; showAll(); });
    queued = true;
  };
  // Numbers at once, so that a script that moved the slider reads the new ones; drawings with the next frame.
  watch(["base", "pins", "compare"], () => { judged = null; showSlider(); showTotals(); });
  watch(["base", "pins", "focus", "compare", "theme", "palette"], soon);
  watch(["base", "pins"], fetchSources);
  onScene((_, what) => (what === "image" || what === "error") && soon());
  new ResizeObserver(soon).observe(byId("panel"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", soon);
  showAll();
}
