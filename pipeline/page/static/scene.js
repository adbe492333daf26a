// The picture with its layers: loads an image, paints label, heat, human and weight layers, and keeps
// the numbers of the current image. Everything here works without the server once an image is loaded.

import { api } from "./api.js";
import { byId } from "./dom.js";
import { loadHuman, loadPlanes, prefetch } from "./loader.js";
import { heatTable, labelTable, makeLayer, paint, paintPlane, rampTable, rgba } from "./paint.js";
import { coloursOf } from "./palette.js";
import { isStoredB, state, update, watch } from "./state.js";
import { resolveThresholds } from "./thresholds.js";
import { setSize } from "./viewport.js";

const layers = Object.fromEntries(["labels", "other", "heat", "human"].map((name) => [name, makeLayer(byId(`layer-${name}`))]));
const picture = byId("layer-image");
const tables = { labels: new Uint32Array(65536), stripes: new Uint32Array(65536), heat: new Uint32Array(65536) };
// Stripes, because no single colour is free: every hue is some class's.
const DROPPED = [rgba(0, 0, 0, 190), rgba(255, 255, 255, 130)];

let store = null;
/** What is on the screen: image name, details, planes of both sides, human plane, thresholds of both sides. */
export const scene = { name: null, details: null, planes: null, other: null, human: null, error: null, thresholds: null, thresholdsB: null };

const listeners = [];
/** Call `listener(scene, what)` when an image was loaded ("image"), failed ("error") or painted ("paint"). */
export const onScene = (listener) => listeners.push(listener);
const tell = (what, error = null) => listeners.forEach((listener) => listener(scene, what, error));

/** Thresholds of a base ("policy", "policy-b" or a code). Pins belong to the user's own side. */
function thresholdsOf(base, pins) {
  const policies = { policy: store.policy?.codes, "policy-b": store.policyB?.codes };
  return resolveThresholds(typeof base === "number" ? base : policies[base], pins, store.classes.length);
}

function alphas() {
  return store.classes.map((_, c) => {
    const share = state.alphas[c] ?? 100;
    const focused = state.focus < 0 || state.focus === c ? 1 : 0.28;
    return Math.round(255 * (share / 100) * focused);
  });
}

const shown = (name) => state.layers.has(name);

function paintSide(layer, index, thresholds) {
  const settings = { thresholds, colours: coloursOf(store), alpha: alphas() };
  const striped = shown("dropped");
  labelTable(tables.labels, { ...settings, dropped: striped ? DROPPED[0] : 0 });
  if (striped) labelTable(tables.stripes, { ...settings, dropped: DROPPED[1] });
  paint(layer, index, tables.labels, striped ? tables.stripes : null);
}

function paintLabels() {
  paintSide(layers.labels, scene.planes.index, scene.thresholds);
  if (state.compare && scene.other) paintSide(layers.other, scene.other.index, scene.thresholdsB);
}

function paintHeat() {
  const ramp = rampTable((code) => (store.edgeValues[code] - 0.2) / 0.8);
  paint(layers.heat, scene.planes.index, heatTable(tables.heat, ramp, store.classes.length));
}

function paintHuman() {
  if (scene.human) paintPlane(layers.human, scene.human.data, coloursOf(store), alphas());
}

let pending = new Set();
let scheduled = false;

function frame() {
  scheduled = false;
  const work = pending;
  pending = new Set();
  if (!scene.planes) return;
  if (work.has("labels")) {
    const start = performance.now();
    paintLabels();
    performance.measure("rethreshold", { start, end: performance.now() });
    if (performance.getEntriesByName("rethreshold").length > 500) performance.clearMeasures("rethreshold");
  }
  if (work.has("heat") && shown("heat")) paintHeat();
  if (work.has("human") && shown("human")) paintHuman();
  tell("paint");
}

/** Ask for layers to be painted with the next frame. */
function schedule(...names) {
  names.forEach((name) => pending.add(name));
  if (!scheduled) requestAnimationFrame(frame);
  scheduled = true;
}

function applyThresholds() {
  scene.thresholds = thresholdsOf(state.base, state.pins);
  scene.thresholdsB = state.compare ? thresholdsOf(isStoredB(state.compare, store) ? 0 : state.compare.base, {}) : null;
}

function applyVisibility() {
  const strength = String(state.opacity / 100);
  byId("layer-image").hidden = !shown("image") || !scene.details?.picture;
  for (const name of ["labels", "heat", "human"]) {
    const canvas = byId(`layer-${name}`);
    canvas.hidden = !shown(name) && !(name === "labels" && shown("dropped"));
    canvas.style.opacity = strength;
  }
  byId("layer-human").hidden ||= !scene.human;
  byId("layer-other").hidden = byId("layer-labels").hidden || !state.compare;
  byId("layer-other").style.opacity = strength;
}

let turn = 0;

async function loadHumanIfWanted(name) {
  if (!shown("human") || scene.human || !scene.details?.human) return;
  const mine = turn;
  try {
    const human = await loadHuman(name);
    if (mine !== turn) return;
    scene.human = human;
    layers.human.resize(human.width, human.height);
    applyVisibility();
    schedule("human");
  } catch (error) {
    tell("human-error", error);
  }
}

async function loadOther(name, mine) {
  if (!state.compare) return;
  const other = state.compare.store === "b" ? await loadPlanes(name, "b") : scene.planes;
  if (mine !== turn) return;
  scene.other = other;
  layers.other.resize(other.width, other.height);
  schedule("labels");
}

function fail(name, error) {
  Object.assign(scene, { name, planes: null, other: null, human: null, error });
  byId("stack").hidden = true;
  tell("error");
}

/** Show an image: planes first, then what else is wanted. */
export async function show(name) {
  const mine = ++turn;
  byId("stage").setAttribute("aria-busy", "true");
  try {
    const [details, planes] = await Promise.all([api.json("image", { name }), loadPlanes(name)]);
    if (mine !== turn) return;
    Object.assign(scene, { name, details, planes, other: null, human: null, error: null });
    for (const key of ["labels", "heat"]) layers[key].resize(planes.width, planes.height);
    if (details.picture) picture.src = api.url("picture", { name });
    else picture.removeAttribute("src");
    picture.style.visibility = picture.complete ? "" : "hidden"; // not the last image's photograph under these labels
    picture.alt = details.picture ? `photograph ${name}` : "";
    byId("stack").hidden = false;
    setSize(planes.width, planes.height);
    applyThresholds();
    applyVisibility();
    schedule("labels", "heat");
    tell("image");
    await Promise.all([loadOther(name, mine), loadHumanIfWanted(name)]);
  } catch (error) {
    if (mine === turn) fail(name, error);
  } finally {
    if (mine === turn) byId("stage").removeAttribute("aria-busy");
  }
}

/** Load neighbours ahead of the user. */
export const ahead = (rows) => prefetch(rows.filter((row) => row.name !== scene.name));

export function startScene(data) {
  store = data;
  applyThresholds();
  watch(["base", "pins", "compare"], () => {
    applyThresholds();
    schedule("labels");
  });
  watch(["compare"], () => {
    applyVisibility();
    if (scene.planes) loadOther(scene.name, turn).catch((error) => {
      tell("compare-error", error);
      update({ compare: null });
    });
  });
  watch(["alphas", "palette", "focus"], () => schedule("labels", "human"));
  watch(["layers"], () => {
    applyVisibility();
    schedule("labels", "heat", "human");
    if (scene.planes) loadHumanIfWanted(scene.name);
  });
  watch(["opacity"], applyVisibility);
  watch(["image"], () => state.image && show(state.image));
  picture.addEventListener("load", () => { picture.style.visibility = ""; });
  picture.addEventListener("error", () => {
    if (picture.getAttribute("src")) tell("picture-error");
  });
}
