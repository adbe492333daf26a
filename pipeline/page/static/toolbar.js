// Buttons around the picture: layers, opacity, zoom, compare, palette, theme, filters of the list.

import { byId, debounce, fill, h, setText } from "./dom.js";
import { storeSums } from "./numbers.js";
import { rampCss } from "./paint.js";
import { onScene, scene } from "./scene.js";
import { isStoredB, state, update, watch } from "./state.js";
import { at, edgeText, faultOf, parseThreshold } from "./thresholds.js";
import { toast } from "./toast.js";
import { actualSize, fit, scaleNow, zoomBy } from "./viewport.js";

export const LAYERS = ["image", "labels", "heat", "human", "dropped", "weights"];
let store = null;

/** Switch a layer. Labels and heat hide each other: both colour the whole picture. */
export function toggleLayer(name) {
  const button = byId(`toggle-${name}`);
  if (button.disabled) return toast(button.title);
  const layers = new Set(state.layers);
  if (!layers.delete(name)) {
    layers.add(name);
    const covers = ["labels", "heat", "human", "weights"];
    if (covers.includes(name)) covers.filter((other) => other !== name).forEach((other) => layers.delete(other));
  }
  return update({ layers });
}

function showLayers() {
  for (const name of LAYERS) byId(`toggle-${name}`).setAttribute("aria-pressed", String(state.layers.has(name)));
  byId("opacity").value = state.opacity;
  const key = state.layers.has("heat") ? "confidence" : state.layers.has("weights") ? "weight of this scale" : "";
  byId("heat-key").hidden = !key;
  setText(byId("heat-key-name"), key);
  setText(byId("heat-key-low"), key === "confidence" ? "0.2" : "0");
}

function availability() {
  const set = (name, on, why) => {
    byId(`toggle-${name}`).disabled = !on;
    byId(`toggle-${name}`).title = on ? byId(`toggle-${name}`).dataset.title : why;
  };
  set("image", Boolean(scene.details?.picture), store.hasPictures ? "this image has no picture under the image root" : "no pictures: start with --images ROOT");
  set("human", Boolean(scene.details?.human), "no human label is known for this image");
  set("weights", store.canWeigh, "scale weights need a checkpoint: start with --checkpoint F");
}

/** Switch compare on or off. */
export function toggleCompare() {
  if (byId("compare").disabled) return toast(byId("compare").title);
  if (state.compare) return update({ compare: null });
  const side = store.other ? "b" : "a";
  const base = store.kind !== "raw" ? 0 : store.policyB ? "policy-b" : store.policy && state.base !== "policy" ? "policy" : typeof state.base === "number" ? Math.min(255, state.base + 5) : 0;
  return update({ compare: { store: side, base } });
}

function showCompare() {
  const on = Boolean(state.compare);
  byId("compare").setAttribute("aria-pressed", String(on));
  byId("compare-bar").hidden = !on;
  if (!on) return;
  const { base, store: side } = state.compare;
  byId("compare-store").value = side;
  byId("compare-base").value = typeof base === "number" ? "threshold" : base;
  byId("compare-base").hidden = isStoredB(state.compare, store);
  byId("compare-value").hidden = byId("compare-base").hidden || typeof base !== "number";
  if (typeof base === "number" && document.activeElement !== byId("compare-value")) byId("compare-value").value = edgeText(store, base);
}

function startCompare() {
  byId("compare").addEventListener("click", toggleCompare);
  byId("compare-close").addEventListener("click", () => update({ compare: null }));
  byId("compare-store-label").hidden = !store.other;
  if (store.kind !== "raw") {
    byId("compare-store").options[0].remove(); // under the same thresholds, none, it is the same
    byId("compare").disabled = !store.other;
    byId("compare").title = store.other ? "compare two stores (c)" : "this store has its thresholds already: to compare it, start with --compare STORE";
  }
  if (store.other) byId("compare-store").append(h("option", { value: "b" }, store.other.name));
  const bases = byId("compare-base");
  if (store.policy) bases.append(h("option", { value: "policy" }, `policy ${store.policy.name}`));
  if (store.policyB) bases.append(h("option", { value: "policy-b" }, `policy ${store.policyB.name}`));
  byId("compare-store").addEventListener("change", (event) => update({ compare: { ...state.compare, store: event.target.value } }));
  bases.addEventListener("change", (event) =>
    update({ compare: { ...state.compare, base: event.target.value === "threshold" ? 0 : event.target.value } }));
  byId("compare-value").addEventListener("change", (event) => {
    const { code, neighbours } = parseThreshold(event.target.value, store);
    if (code === null) return toast(faultOf(event.target.value, neighbours), { kind: "bad" });
    return update({ compare: { ...state.compare, base: code } });
  });
}

function showFilters() {
  byId("sort").value = state.sort;
  byId("drop-range").hidden = state.sort !== "drop";
  byId("city").value = state.city;
  byId("review-filter").value = state.review;
  byId("class-filter").value = String(state.focus);
  if (document.activeElement !== byId("filter")) byId("filter").value = state.query;
}

function startFilters() {
  store.cities.forEach((city) => byId("city").append(h("option", { value: city }, city)));
  byId("city-label").hidden = store.cities.length < 2;
  const { count } = storeSums();
  store.classes.forEach((row, c) => byId("class-filter").append(h("option", { value: c }, at(count, c, 0) ? row.name : `${row.name} (nowhere)`)));
  const conflict = byId("sort").querySelector('[value="conflict"]');
  conflict.disabled = !store.hasConflicts;
  if (!store.hasConflicts) conflict.textContent += " (no human labels)";
  byId("filter").addEventListener("input", debounce((event) => update({ query: byId("filter").value.trim() }), 150));
  byId("sort").addEventListener("change", (event) => update({ sort: event.target.value }));
  byId("city").addEventListener("change", (event) => update({ city: event.target.value }));
  byId("review-filter").addEventListener("change", (event) => update({ review: event.target.value }));
  byId("class-filter").addEventListener("change", (event) => update({ focus: Number(event.target.value) }));
  for (const [id, key] of [["drop-from", "dropFrom"], ["drop-to", "dropTo"]]) {
    byId(id).value = String(state[key]);
    byId(id).addEventListener("change", () => {
      const { code } = parseThreshold(byId(id).value, store);
      byId(id).setAttribute("aria-invalid", String(code === null));
      if (code !== null) update({ [key]: Number(store.edges[code]) });
    });
  }
}

function applyTheme() {
  document.documentElement.dataset.theme = state.theme;
  const next = { auto: "dark", dark: "light", light: "auto" }[state.theme];
  byId("theme").title = `Colours: ${state.theme} (click: ${next})`;
  byId("palette").setAttribute("aria-pressed", String(state.palette === "safe"));
}

export function startToolbar(data) {
  store = data;
  for (const name of LAYERS) {
    byId(`toggle-${name}`).dataset.title = byId(`toggle-${name}`).title;
    byId(`toggle-${name}`).addEventListener("click", () => toggleLayer(name));
  }
  byId("opacity").addEventListener("input", () => update({ opacity: Number(byId("opacity").value) }));
  byId("zoom-in").addEventListener("click", () => zoomBy(1.5));
  byId("zoom-out").addEventListener("click", () => zoomBy(1 / 1.5));
  byId("zoom-fit").addEventListener("click", fit);
  byId("zoom-one").addEventListener("click", actualSize);
  byId("theme").addEventListener("click", () => update({ theme: { auto: "dark", dark: "light", light: "auto" }[state.theme] }));
  byId("palette").addEventListener("click", () => update({ palette: state.palette === "safe" ? "own" : "safe" }));
  byId("heat-ramp").style.setProperty("--ramp", `linear-gradient(90deg, ${[0, 0.25, 0.5, 0.75, 1].map(rampCss).join(", ")})`);
  byId("stage").addEventListener("viewchange", () => setText(byId("zoom-level"), !scene.planes ? "" : `${Math.round(scaleNow() * 100 * (window.devicePixelRatio || 1))} %`));
  startCompare();
  startFilters();
  watch(["layers", "opacity"], showLayers);
  watch(["compare"], showCompare);
  watch(["sort", "city", "review", "focus", "query"], showFilters);
  watch(["theme", "palette"], applyTheme);
  onScene((_, what) => (what === "image" || what === "error") && availability());
  for (const show of [showLayers, showCompare, showFilters, applyTheme]) show();
  fill(byId("class-count"), `${store.classes.length}`);
}
