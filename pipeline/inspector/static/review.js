// Accept or flag an image or a region, with a note. Marks go into the review file beside the store;
// `pseudo-label` sets flagged pixels to ignore.

import { api } from "./api.js";
import { byId, fill, h, setText, svg } from "./dom.js";
import { icon } from "./icons.js";
import { onScene, scene } from "./scene.js";
import { report, toast } from "./toast.js";
import { toImage } from "./viewport.js";

const stage = byId("stage");
const drawing = byId("drawing");
const shape = svg("polygon", { class: "draft" });
let corners = null; // while a region is drawn: [[x, y], ...] in pixels of the image
let region = null; // finished region that the next mark belongs to
let changed = () => {};

const points = (list) => list.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");

function showMarks() {
  const marks = scene.details?.reviews ?? [];
  const outline = (mark) => svg("polygon", { points: points(mark.region), class: `mark ${mark.verdict}` });
  drawing.replaceChildren(...marks.filter((mark) => mark.region).map(outline), shape);
  shape.setAttribute("points", points(corners ?? region ?? []));
  const what = (mark) => `${mark.verdict === "flag" ? "Flagged" : "Accepted"} ${mark.region ? "region" : "image"}`;
  fill(byId("marks"), marks.map((mark) => h(`li.mark-item.${mark.verdict}`, {}, icon(mark.verdict), h("b", {}, what(mark)),
    mark.note && h("span.note", {}, mark.note), mark.reviewer && h("span.muted", {}, mark.reviewer),
    !api.isExport && h("button.ghost", { type: "button", "aria-label": `withdraw: ${what(mark)}`, title: "withdraw", onclick: () => withdraw(mark) }, icon("undo")))));
  byId("region").setAttribute("aria-pressed", String(Boolean(corners || region)));
  setText(byId("region-label"), corners ? "Click corners, Enter to close" : region ? "Region drawn (Esc discards)" : "Region");
}

async function send(body, message) {
  const { name } = scene;
  try {
    const answer = await api.post("review", { name, ...body });
    if (scene.name !== name) return true;
    scene.details.reviews = answer.entries;
    toast(message, { kind: "good" });
    changed(name, answer.status);
    showMarks();
    return true;
  } catch (error) {
    report(error);
    return false;
  }
}

/** Mark the image, or the region that was drawn. */
export async function mark(verdict) {
  if (!scene.planes || api.isExport) return;
  const note = byId("note").value.trim();
  const where = region;
  const saved = await send({ verdict, region: where, note }, `${verdict === "flag" ? "Flagged" : "Accepted"} ${where ? "a region of " : ""}${scene.name}`);
  if (!saved) return; // what was drawn and typed stays, to be tried again
  byId("note").value = "";
  region = null;
  showMarks();
}

const withdraw = (entry) => send({ withdraws: entry.id }, "Withdrawn");

/** Start to draw a region: clicks set corners, a drag draws a box. */
export function startRegion() {
  if (!scene.planes || api.isExport) return;
  corners = [];
  region = null;
  stage.classList.add("drawing");
  stage.focus();
  showMarks();
}

/** Leave drawing; true when there was something to leave. */
export function cancelRegion() {
  const had = Boolean(corners || region);
  corners = null;
  region = null;
  stage.classList.remove("drawing");
  if (had) showMarks();
  return had;
}

/** Close the region that is being drawn; true when there was one. */
export function closeRegion() {
  if (!corners) return false;
  if (corners.length >= 3) region = corners;
  else toast("A region needs at least three corners");
  corners = null;
  stage.classList.remove("drawing");
  showMarks();
  return true;
}

function clampPoint({ x, y }) {
  const { width, height } = scene.planes;
  return [Math.min(width, Math.max(0, x)), Math.min(height, Math.max(0, y))].map((value) => Math.round(value * 10) / 10);
}

function press(down) {
  if (!corners || down.button !== 0) return;
  down.preventDefault();
  stage.setPointerCapture(down.pointerId);
  const [x0, y0] = clampPoint(toImage(down));
  let box = null;
  const move = (event) => {
    const [x, y] = clampPoint(toImage(event));
    if (!corners || corners.length || Math.hypot(event.clientX - down.clientX, event.clientY - down.clientY) < 5) return;
    box = [[x0, y0], [x, y0], [x, y], [x0, y]];
    shape.setAttribute("points", points(box));
  };
  const up = () => {
    stage.removeEventListener("pointermove", move);
    if (!corners) return;
    if (box) {
      corners = box;
      closeRegion();
    } else corners.push([x0, y0]);
    showMarks();
  };
  stage.addEventListener("pointermove", move);
  stage.addEventListener("pointerup", up, { once: true });
}

/** `onChange(name, status)` is told after a mark was written. */
export function startReview(onChange) {
  changed = onChange;
  stage.addEventListener("pointerdown", press);
  stage.addEventListener("dblclick", () => { if (corners) { corners.pop(); closeRegion(); } });
  byId("accept").addEventListener("click", () => mark("accept"));
  byId("flag").addEventListener("click", () => mark("flag"));
  byId("region").addEventListener("click", () => (corners || region ? cancelRegion() : startRegion()));
  byId("review-bar").hidden = api.isExport;
  onScene((_, what) => {
    if (what !== "image" && what !== "error") return;
    cancelRegion();
    if (scene.planes) drawing.setAttribute("viewBox", `0 0 ${scene.planes.width} ${scene.planes.height}`);
    showMarks();
  });
}
