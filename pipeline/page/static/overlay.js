// What lies over the picture: the read-out under the cursor, the swipe handle of compare, the pixel frame.

import { byId, clamp, fill, h, percent, setText } from "./dom.js";
import { coloursOf, css } from "./palette.js";
import { onScene, scene } from "./scene.js";
import { state, update, watch } from "./state.js";
import { fromStageX, pictureSize, scaleNow, toImage, toStageX } from "./viewport.js";

let store = null;
const stage = byId("stage");
const handle = byId("swipe");
let pointer = null;

const HINT = "A accept · F flag · 2 labels on or off · Ctrl+Z undo · ? all keys · point at a pixel to read it";

const className = (label) => (label < store.classes.length ? store.classes[label].name : "ignored");

function verdict(label, code, threshold) {
  if (label >= store.classes.length) return "ignored (255)";
  return code >= threshold ? "kept" : "dropped";
}

function readAt(x, y, planes, thresholds) {
  const joined = planes.index[y * planes.width + x];
  const [label, code] = [joined >> 8, joined & 255];
  const p = store.precision?.table[label]?.[code];
  return { label, code, p, threshold: thresholds[label] ?? 256 };
}

function swatch(label) {
  return h("i.dot", { css: { "--swatch": label < store.classes.length ? css(coloursOf(store)[label]) : "transparent" } });
}

/** Fill the line at the foot of the picture for the pixel under the cursor. */
function readOut() {
  const out = byId("readout");
  const planes = scene.planes;
  const inside = pointer && planes && pointer.x >= 0 && pointer.y >= 0 && pointer.x < planes.width && pointer.y < planes.height;
  byId("pixel").hidden = !inside || scaleNow() < 6;
  if (!inside) return fill(out, h("span.muted", {}, scene.planes ? HINT : ""));
  const [x, y] = [Math.floor(pointer.x), Math.floor(pointer.y)];
  byId("pixel").style.transform = `translate(${x}px, ${y}px)`;
  const onB = state.compare && scene.other && pointer.x > state.swipe * planes.width;
  const side = onB ? { planes: scene.other, thresholds: scene.thresholdsB } : { planes, thresholds: scene.thresholds };
  const { label, code, p, threshold } = readAt(x, y, side.planes, side.thresholds);
  const parts = [h("span.coordinates", {}, `${x}, ${y}`), h("b", {}, swatch(label), className(label)), h("span", {}, `confidence ≥ ${store.edges[code]}`)];
  if (p !== undefined) parts.push(h("span", {}, `P(correct) ${percent(p, 1, 1)}`));
  const says = verdict(label, code, threshold);
  parts.push(h(`span.verdict.${says.split(" ")[0]}`, {}, says));
  if (scene.human) {
    const human = scene.human.data[y * scene.human.width + x];
    parts.push(h("span", {}, "human: ", swatch(human), human === 255 ? "nothing" : className(human)));
  }
  if (state.compare) parts.unshift(h("span.side", {}, onB ? "B" : "A"));
  return fill(out, parts);
}

function placeSwipe() {
  const on = Boolean(state.compare && scene.planes);
  handle.hidden = !on;
  stage.classList.toggle("comparing", on);
  const { width } = pictureSize();
  const left = clamp(toStageX(state.swipe * width), 0, stage.clientWidth);
  handle.style.left = `${left}px`;
  handle.setAttribute("aria-valuenow", Math.round(state.swipe * 100));
  byId("layer-labels").style.clipPath = on ? `inset(0 ${100 - state.swipe * 100}% 0 0)` : "";
  byId("layer-other").style.clipPath = on ? `inset(0 0 0 ${state.swipe * 100}%)` : "";
}

function setSwipe(share) {
  update({ swipe: clamp(share, 0, 1) });
}

function dragSwipe(down) {
  down.preventDefault();
  handle.setPointerCapture(down.pointerId);
  handle.focus();
  const move = (event) => setSwipe(fromStageX(event.clientX - stage.getBoundingClientRect().left) / pictureSize().width);
  handle.addEventListener("pointermove", move);
  const end = () => handle.removeEventListener("pointermove", move);
  handle.addEventListener("pointerup", end, { once: true });
  handle.addEventListener("pointercancel", end, { once: true });
}

/** Count pixels that only A or only B keeps, and those where both keep different classes. */
function difference() {
  const [a, b] = [scene.planes, scene.other];
  if (!a || !b || a.index.length !== b.index.length) return null;
  const C = store.classes.length;
  let [onlyA, onlyB, differ] = [0, 0, 0];
  for (let i = 0; i < a.index.length; i++) {
    const [la, lb] = [a.index[i] >> 8, b.index[i] >> 8];
    const keptA = la < C && (a.index[i] & 255) >= scene.thresholds[la];
    const keptB = lb < C && (b.index[i] & 255) >= scene.thresholdsB[lb];
    if (keptA && !keptB) onlyA += 1;
    else if (keptB && !keptA) onlyB += 1;
    else if (keptA && la !== lb) differ += 1;
  }
  return { onlyA, onlyB, differ, pixels: a.index.length };
}

let counting = 0;
function showDifference() {
  clearTimeout(counting);
  counting = setTimeout(() => {
    const found = state.compare && difference();
    if (!found) return setText(byId("difference"), "");
    const share = (n) => percent(n, found.pixels);
    return setText(byId("difference"), `only A ${share(found.onlyA)} · only B ${share(found.onlyB)} · different class ${share(found.differ)}`);
  }, 120);
}

export function startOverlay(data) {
  store = data;
  stage.addEventListener("pointermove", (event) => { pointer = toImage(event); readOut(); });
  stage.addEventListener("pointerleave", () => { pointer = null; readOut(); });
  stage.addEventListener("viewchange", placeSwipe);
  handle.addEventListener("pointerdown", dragSwipe);
  handle.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -0.02, ArrowRight: 0.02, Home: -1, End: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    setSwipe(state.swipe + step);
  });
  watch(["compare", "swipe"], placeSwipe);
  onScene((_, what) => {
    if (what === "image") placeSwipe();
    if (what === "paint" || what === "image") { readOut(); showDifference(); }
  });
  watch(["compare"], showDifference);
  placeSwipe();
}
