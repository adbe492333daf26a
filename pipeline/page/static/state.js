// What the user is looking at, in one object that the address mirrors: copy the address, get the view.

import { debounce } from "./dom.js";
import { WITHHELD } from "./thresholds.js";

const LAYERS = ["image", "labels", "heat", "human", "dropped", "weights"];

/** The fields; `base` is a code, "policy", or (in a thresholded store) 0. */
const defaults = () => ({
  image: null,
  base: 0,
  pins: {}, // class id -> code; wins over the base
  focus: -1, // class that charts, sorting and filter look at; -1 = all
  sort: "name",
  dropFrom: 0.8,
  dropTo: 0.95,
  query: "",
  city: "",
  review: "",
  layers: new Set(["image", "labels"]),
  opacity: 60, // per cent, of label, human and heat layers
  alphas: {}, // class id -> per cent; 0 hides the class
  palette: "own",
  theme: "auto",
  compare: null, // null or {store: "a" | "b", base: code | "policy" | "policy-b"}
  swipe: 0.5,
  zoom: null, // null = fit, else {scale, x, y}: image point at the centre
  scale: "", // scale whose weight is shown
});

const listeners = [];
export const state = defaults();

/** Call `listener(state, changed)` after every change of one of `keys` (all keys when empty). */
export function watch(keys, listener) {
  listeners.push({ keys: new Set(keys), listener });
}

/** Change fields; listeners hear once which ones. */
export function update(patch) {
  const changed = new Set(Object.keys(patch).filter((key) => state[key] !== patch[key]));
  if (!changed.size) return;
  Object.assign(state, patch);
  for (const { keys, listener } of listeners) {
    if (!keys.size || [...keys].some((key) => changed.has(key))) listener(state, changed);
  }
  mirror();
}

const baseText = (base, store) => (typeof base === "number" ? store.edges[base] : base);

/** Whether B is shown as it is stored: thresholds would hide what people drew in a thresholded store. */
export const isStoredB = (compare, store) => store.kind !== "raw" || (compare.store === "b" && store.other.kind !== "raw");

/** Query parameters of the thresholds: {threshold, cut: ["class:edge", ...]}, as address, API and CLI write them. */
export function thresholdParams(s, store) {
  if (store.kind !== "raw") return {};
  const pins = Object.entries(s.pins).map(([c, code]) => `${store.classes[c].name}:${code >= WITHHELD ? "withheld" : store.edges[code]}`);
  return { threshold: baseText(s.base, store), cut: pins };
}

/** The query string of a state (without a leading "?"). Thresholds are written as edges of the grid. */
function toQuery(s, store) {
  const q = new URLSearchParams();
  const first = defaults();
  const put = (key, value, usual) => value !== usual && q.set(key, value);
  if (s.image) q.set("image", s.image);
  const { threshold, cut = [] } = thresholdParams(s, store);
  if (threshold) q.set("threshold", threshold);
  cut.forEach((pair) => q.append("cut", pair));
  if (s.focus >= 0) q.set("class", store.classes[s.focus].name);
  put("sort", s.sort === "drop" ? `drop:${s.dropFrom}:${s.dropTo}` : s.sort, first.sort);
  put("q", s.query, "");
  put("city", s.city, "");
  put("review", s.review, "");
  put("layers", LAYERS.filter((name) => s.layers.has(name)).join(","), "image,labels");
  put("opacity", String(s.opacity), String(first.opacity));
  for (const [c, share] of Object.entries(s.alphas)) if (share !== 100) q.append("alpha", `${store.classes[c].name}:${share}`);
  put("palette", s.palette, first.palette);
  put("theme", s.theme, first.theme);
  if (s.compare) {
    q.set("compare", baseText(s.compare.base, store));
    if (s.compare.store === "b") q.set("with", "b");
    q.set("swipe", s.swipe.toFixed(3));
  }
  if (s.zoom) q.set("view", [s.zoom.scale.toFixed(3), s.zoom.x.toFixed(1), s.zoom.y.toFixed(1)].join(","));
  put("scale", s.scale, "");
  return q.toString();
}

function splitPair(text) {
  const colon = text.lastIndexOf(":");
  return colon < 0 ? [text, ""] : [text.slice(0, colon), text.slice(colon + 1)];
}

const number = (text, low, high, usual) => {
  const value = Number(text);
  return text !== null && text !== "" && Number.isFinite(value) && value >= low && value <= high ? value : usual;
};

/**
 * Read an address. `parse(text)` turns a threshold into a code or throws (off the grid); classes that
 * do not exist throw as well. Returns a patch for `update`.
 */
export function fromQuery(search, store, parse) {
  const q = new URLSearchParams(search);
  const base = (text) => (text === "policy" || text === "policy-b" ? text : parse(text));
  const classId = (name) => {
    const id = store.classes.findIndex((row) => row.name.toLowerCase() === name.toLowerCase());
    if (id < 0) throw new Error(`unknown class “${name}” in the address`);
    return id;
  };
  const patch = {};
  if (q.get("image")) patch.image = q.get("image");
  if (q.get("threshold") !== null && store.kind === "raw") patch.base = base(q.get("threshold"));
  patch.pins = {};
  for (const pair of q.getAll("cut")) {
    const [name, text] = splitPair(pair);
    patch.pins[classId(name)] = text === "withheld" ? WITHHELD : parse(text);
  }
  if (q.get("class")) patch.focus = classId(q.get("class"));
  const [sort, from, to] = (q.get("sort") ?? "name").split(":");
  patch.sort = sort;
  if (sort === "drop") Object.assign(patch, { dropFrom: number(from, 0, 1, 0.8), dropTo: number(to, 0, 1, 0.95) });
  patch.query = q.get("q") ?? "";
  patch.city = q.get("city") ?? "";
  patch.review = q.get("review") ?? "";
  if (q.has("layers")) patch.layers = new Set(q.get("layers").split(",").filter((name) => LAYERS.includes(name)));
  patch.opacity = number(q.get("opacity"), 0, 100, 60);
  patch.alphas = {};
  for (const pair of q.getAll("alpha")) {
    const [name, text] = splitPair(pair);
    patch.alphas[classId(name)] = number(text, 0, 100, 100);
  }
  if (q.get("palette") === "safe") patch.palette = "safe";
  if (["light", "dark"].includes(q.get("theme"))) patch.theme = q.get("theme");
  if (q.get("compare") && (store.kind === "raw" || store.other)) patch.compare = { store: store.other && (store.kind !== "raw" || q.get("with") === "b") ? "b" : "a", base: base(q.get("compare")) };
  patch.swipe = number(q.get("swipe"), 0, 1, 0.5);
  const view = (q.get("view") ?? "").split(",").map(Number);
  if (view.length === 3 && view.every(Number.isFinite) && view[0] > 0) patch.zoom = { scale: view[0], x: view[1], y: view[2] };
  patch.scale = q.get("scale") ?? "";
  return patch;
}

let writeAddress = () => {};
const mirror = debounce(() => writeAddress(), 150);

/** Keep the address in step with the state from now on. */
export function mirrorAddress(store) {
  writeAddress = () => {
    const query = toQuery(state, store);
    if (query !== location.search.slice(1)) history.replaceState(null, "", query ? `?${query}` : location.pathname);
  };
  mirror();
}
