// Zoom and pan of the picture: one CSS transform on the stack of layers, so no pixel is painted again.

import { byId, clamp } from "./dom.js";
import { state, update, watch } from "./state.js";

const MAX_SCALE = 40;
const stage = byId("stage");
const stack = byId("stack");
let size = { width: 1, height: 1 };
let current = { scale: 1, x: 0, y: 0 };

const box = () => ({ width: stage.clientWidth, height: stage.clientHeight });

function fitScale() {
  const { width, height } = box();
  return Math.min(width / size.width, height / size.height);
}

/** Put the layers where the state says; `state.zoom` null means the whole picture. */
export function place() {
  const { width, height } = box();
  current = state.zoom ?? { scale: fitScale(), x: size.width / 2, y: size.height / 2 };
  const left = width / 2 - current.x * current.scale;
  const top = height / 2 - current.y * current.scale;
  stack.style.transform = `translate(${left}px, ${top}px) scale(${current.scale})`;
  stack.classList.toggle("pixelated", current.scale >= 2);
  stage.dispatchEvent(new CustomEvent("viewchange"));
}

/** Tell the size of the picture in pixels. */
export function setSize(width, height) {
  size = { width, height };
  stack.style.width = `${width}px`;
  stack.style.height = `${height}px`;
  place();
}

/** Image coordinates (fractional) of a pointer event. */
export function toImage(event) {
  const rect = stage.getBoundingClientRect();
  const { width, height } = box();
  return {
    x: (event.clientX - rect.left - width / 2) / current.scale + current.x,
    y: (event.clientY - rect.top - height / 2) / current.scale + current.y,
  };
}

/** Horizontal place on the stage (CSS pixels) of an image column, and back. */
export const toStageX = (x) => box().width / 2 + (x - current.x) * current.scale;
export const fromStageX = (left) => (left - box().width / 2) / current.scale + current.x;
export const pictureSize = () => size;
export const scaleNow = () => current.scale;

/** Zoom by a factor around an image point (default: the centre). */
export function zoomBy(factor, point = { x: current.x, y: current.y }) {
  const smallest = fitScale() * 0.5;
  const scale = clamp(current.scale * factor, smallest, MAX_SCALE);
  if (factor < 1 && scale <= fitScale() * 1.001) return update({ zoom: null });
  const ratio = current.scale / scale;
  return update({ zoom: { scale, x: point.x + (current.x - point.x) * ratio, y: point.y + (current.y - point.y) * ratio } });
}

export const fit = () => update({ zoom: null });
export const actualSize = () => update({ zoom: { ...current, scale: 1 / (window.devicePixelRatio || 1) } });

/** Centre on an image point at a scale. */
const lookAt = (x, y, scale) => update({ zoom: { scale, x, y } });

function panBy(dx, dy) {
  const x = clamp(current.x - dx / current.scale, 0, size.width);
  const y = clamp(current.y - dy / current.scale, 0, size.height);
  update({ zoom: { scale: current.scale, x, y } });
}

function dragToPan(down) {
  if (down.button > 1 || down.target.closest("[data-nopan]") || stage.classList.contains("drawing")) return;
  let [lastX, lastY] = [down.clientX, down.clientY];
  stage.setPointerCapture(down.pointerId);
  stage.classList.add("panning");
  const move = (event) => {
    panBy(event.clientX - lastX, event.clientY - lastY);
    [lastX, lastY] = [event.clientX, event.clientY];
  };
  const up = () => {
    stage.classList.remove("panning");
    stage.removeEventListener("pointermove", move);
  };
  stage.addEventListener("pointermove", move);
  stage.addEventListener("pointerup", up, { once: true });
  stage.addEventListener("pointercancel", up, { once: true });
}

export function startViewport() {
  new ResizeObserver(place).observe(stage);
  watch(["zoom"], place);
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomBy(Math.exp(-clamp(event.deltaY, -240, 240) * 0.0025), toImage(event));
  }, { passive: false });
  stage.addEventListener("pointerdown", dragToPan);
  stage.addEventListener("dblclick", (event) => {
    if (event.target.closest("[data-nopan]") || stage.classList.contains("drawing")) return;
    const point = toImage(event);
    if (state.zoom) fit();
    else lookAt(point.x, point.y, Math.max(2, fitScale() * 3));
  });
}
