// Judging one place after the other in a dialog (click audit, questions): a part of the photograph, and the keys.

import { api } from "./api.js";
import { remember } from "./loader.js";
import { report } from "./toast.js";

const KEEP = 8;
const pictures = new Map();

/** The photograph of an image, decoded; the last few are kept. */
export const pictureOf = (name) => remember(pictures, KEEP, name, () => load(name));

async function load(name) {
  const picture = new Image();
  picture.src = api.url("picture", { name });
  await picture.decode();
  return picture;
}

/** First pixel of a window of `size` pixels around `at`; it stays inside of `length` pixels, or in their middle. */
export const corner = (at, size, length) => Math.round(Math.max(Math.min(0, (length - size) / 2), Math.min(Math.round(at - size / 2), length - size)));

/** Draw a window of the label map's pixels, `zoom` canvas pixels each; the context goes on in pixels of the map. */
export function drawCrop(canvas, picture, mapWidth, { left, top, width, height }, zoom = 1) {
  const context = canvas.getContext("2d");
  [canvas.width, canvas.height] = [Math.round(width * zoom), Math.round(height * zoom)];
  context.fillStyle = "#222";
  context.fillRect(0, 0, canvas.width, canvas.height);
  if (picture) {
    context.imageSmoothingQuality = "high";
    const scale = picture.naturalWidth / mapWidth;
    context.drawImage(picture, left * scale, top * scale, width * scale, height * scale, 0, 0, canvas.width, canvas.height);
  }
  context.setTransform(zoom, 0, 0, zoom, -left * zoom, -top * zoom);
  return context;
}

/** Do the work of a form that was sent; its button waits meanwhile. */
export async function submit(event, button, work) {
  event.preventDefault();
  button.disabled = true;
  try {
    await work();
  } catch (error) {
    report(error);
  } finally {
    button.disabled = false;
  }
}

/** Keys of a dialog while its part `run` is shown; `act(event)` is true for a key that it used. */
export function judgingKeys(dialog, run, act) {
  // Of the document, because the focus may be on a part that was just hidden.
  document.addEventListener("keydown", (event) => {
    if (!dialog.open || run.hidden || event.target.closest("input, select")) return;
    if (event.ctrlKey || event.metaKey || event.altKey) return; // a shortcut of the browser
    if (act(event)) event.preventDefault();
  });
}
