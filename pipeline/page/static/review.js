// Accept or flag an image or a region, with a note. Marks go into the review file next to the store;
// `pseudo-label` sets flagged pixels to ignore.

import { api } from "./api.js";
import { byId, fill, h, setText, svg } from "./dom.js";
import { icon } from "./icons.js";
import { onScene, scene } from "./scene.js";
import { state, update } from "./state.js";
import { report, toast } from "./toast.js";
import { toImage } from "./viewport.js";

const stage = byId("stage");
const drawing = byId("drawing");
const shape = svg("polygon", { class: "draft" });
let corners = null; // while a region is drawn: [[x, y], ...] in pixels of the image
let region = null; // finished region that the next mark belongs to
let owner = null; // image that region and note belong to
const drafts = new Map(); // what was drawn and typed on other images and not saved: name -> {region, note}
const saving = new Set(); // images whose mark is on its way
const done = recall(); // marks of this window that stand, the newest last: {name, id}
const SAID = { accept: "Accepted", flag: "Flagged", correct: "Corrected" };
let changed = () => {};

// The window's own marks outlive a reload, where the browser allows it to keep anything.
function recall() {
  try { return JSON.parse(sessionStorage.getItem("marks")) ?? []; } catch { return []; }
}

function remember(marks) {
  done.splice(0, done.length, ...marks);
  try { sessionStorage.setItem("marks", JSON.stringify(done)); } catch { /* undo ends with the page */ }
}

const forget = (id) => remember(done.filter((mark) => mark.id !== id));

const points = (list) => list.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");

function showMarks() {
  const marks = scene.details?.reviews ?? [];
  const outline = (mark) => svg("polygon", { points: points(mark.region), class: `mark ${mark.verdict}` });
  drawing.replaceChildren(...marks.filter((mark) => mark.region).map(outline), shape);
  shape.setAttribute("points", points(corners ?? region ?? []));
  const what = (mark) => `${SAID[mark.verdict]} ${mark.region ? "region" : mark.verdict === "correct" ? "pixels" : "image"}${mark.earlier ? " (other labels)" : ""}`;
  fill(byId("marks"), marks.map((mark) => h(`li.mark-item.${mark.verdict}`, {}, icon(mark.verdict), h("b", {}, what(mark)),
    mark.note && h("span.note", {}, mark.note), mark.reviewer && h("span.muted", {}, mark.reviewer),
    h("button.ghost", { type: "button", "aria-label": `withdraw: ${what(mark)}`, title: "withdraw", onclick: () => withdraw(mark) }, icon("undo")))));
  byId("region").setAttribute("aria-pressed", String(Boolean(corners || region)));
  setText(byId("region-label"), corners ? "Click corners, Enter to close" : region ? "Region drawn (Esc discards)" : "Region");
}

async function post(name, body, message) {
  const answer = await api.post("review", { name, ...body });
  if (answer.id) remember([...done, { name, id: answer.id }]);
  else forget(body.withdraws);
  toast(message, { kind: "good", action: answer.id && h("button.link", { type: "button", onclick: undo }, "Undo") });
  changed();
  if (scene.name !== name || !scene.details) return;
  scene.details.reviews = answer.entries;
  showMarks();
}

const send = (...mark) => post(...mark).then(() => true, (error) => { report(error, mark[0]); return false; });

/** Mark the image, or the region that was drawn; true when the image was marked and the next one may follow. */
export async function mark(verdict) {
  const { name } = scene;
  if (!scene.planes || name !== state.image) return false; // only what is on the screen can be judged
  if (corners) {
    toast("A region is being drawn: Enter closes it, Esc leaves it");
    return false;
  }
  if (saving.has(name)) {
    toast("The last mark of this image is still being saved");
    return false;
  }
  const typed = byId("note").value;
  const where = region;
  saving.add(name);
  const done = `${SAID[verdict]} ${where ? "a region of " : ""}${name}`;
  const saved = await send(name, { verdict, region: where, note: typed.trim() }, done);
  saving.delete(name);
  if (owner !== name) {
    // The draft was put away with the image; only what was not saved, or was changed since, comes back with it.
    const draft = drafts.get(name);
    if (saved && draft?.region === where && draft.note === typed) drafts.delete(name);
    return false;
  }
  if (!saved) return false; // what was drawn and typed stays, to be tried again
  if (byId("note").value === typed) byId("note").value = "";
  if (region === where) region = null;
  showMarks();
  return !where;
}

/** Withdraw the last mark of this window that still stands, and show its image. */
export async function undo() {
  for (let last = done.at(-1); last; last = done.at(-1)) {
    try {
      await post(last.name, { withdraws: last.id }, `Withdrawn: the last mark of ${last.name}`);
      return update({ image: last.name });
    } catch (error) {
      if (error.status !== 404) return report(error, last.name);
      forget(last.id); // somebody else withdrew it first
    }
  }
  return toast("This window has made no mark that could be withdrawn");
}

/** Put what was drawn and typed away with its image, and take out what belongs to the one that is shown now. */
function changeOwner() {
  if (owner === scene.name) return;
  const left = { region, note: byId("note").value };
  if (owner !== null && (left.region || left.note)) drafts.set(owner, left);
  owner = scene.name;
  cancelRegion();
  const found = drafts.get(owner);
  drafts.delete(owner);
  region = found?.region ?? null;
  byId("note").value = found?.note ?? "";
}

const withdraw = (entry) => send(scene.name, { withdraws: entry.id }, "Withdrawn");

/** Start to draw a region: clicks set corners, a drag draws a box. */
export function startRegion() {
  if (!scene.planes) return;
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

/** `onChange()` is told after a mark was written. */
export function startReview(onChange) {
  changed = onChange;
  stage.addEventListener("pointerdown", press);
  stage.addEventListener("dblclick", () => { if (corners) { corners.pop(); closeRegion(); } });
  byId("region").addEventListener("click", () => (corners || region ? cancelRegion() : startRegion()));
  onScene((_, what) => {
    if (what !== "image" && what !== "error") return;
    changeOwner();
    if (scene.planes) drawing.setAttribute("viewBox", `0 0 ${scene.planes.width} ${scene.planes.height}`);
    showMarks();
  });
}
