// Questions about regions: a region is shown, a key says what it is, and the answer becomes labels at once.

import { api } from "./api.js";
import { corner, drawCrop, judgingKeys, pictureOf, submit } from "./closeup.js";
import { byId, compact, fill, h, percent, setText } from "./dom.js";
import { remember } from "./loader.js";
import { coloursOf, css } from "./palette.js";
import { state } from "./state.js";
import { report } from "./toast.js";

const dialog = byId("ask");
const run = byId("ask-run");
const ZOOM = 3; // canvas pixels of the close view for a pixel of the label map
const CROSS = 5; // canvas pixels of an arm of the cross
const SECONDS = 3; // of an answer, for the estimate
const FREE = [..."abcdefghijklnopqrstvwyz0123456789"]; // m, x and u are taken
let store = null;
let questions = null; // what the server says: {id, who, total, upcoming: [number, ...], price, last, words}
let at = null; // the question on the screen
let failed = false; // its image cannot be shown
let queue = []; // questions that come next, the one on the screen first
let keys = []; // of each class
const known = new Map(); // questions with their regions, by number
const sent = new Set(); // answered here; the server has not confirmed it yet
let sending = Promise.resolve(); // answers leave one after the other
let outlined = true;
let finished = () => {};

/** A key for each class: its number up to ten classes, else a letter of its name where one is free. */
function keysOf(classes) {
  if (classes.length <= 10) return classes.map((_, number) => String(number));
  const free = new Set(FREE);
  return classes.map(({ name }) => {
    const key = [...name.toLowerCase(), ...FREE].find((letter) => free.has(letter)) ?? "";
    free.delete(key);
    return key;
  });
}

/** A question with its region, asked of the server once. */
const detail = (number) => remember(known, Infinity, number, () => api.json("questions/item", { audit: questions.id, item: number }));

const lookAhead = () => queue.slice(1).forEach((number) => detail(number).then(({ name }) => pictureOf(name)).catch(() => {}));

function progress() {
  const { answers } = questions.price.at(-1);
  [byId("ask-progress").max, byId("ask-progress").value] = [questions.total, answers];
  setText(byId("ask-count"), `${answers} of ${questions.total}`);
  setText(byId("ask-who"), questions.who ? `Answers carry the name ${questions.who}.` : "Answers carry no name.");
  const row = (one, head) => h("tr", {}, h("th", { scope: "row" }, head), h("td", {}, one.minutes.toFixed(1)),
    ...["labelled", "corrected", "ignored"].map((key) => h("td", {}, compact(one[key]))));
  const { last } = questions;
  fill(byId("ask-price"), questions.price.map((one) => row(one, one.answers)), last.answers < answers && row(last, `last ${last.answers}`));
  setText(byId("ask-words"), questions.words);
  const { before, after } = questions.price.at(-1);
  const range = ([value, low, high]) => `${percent(value, 1, 1)} (${percent(low, 1, 1)} – ${percent(high, 1, 1)})`;
  setText(byId("ask-share"), answers ? `Right labels: ${range(before)} before, ${range(after)} after corrections.` : "");
}

function drawRegion(canvas, picture, { size, box, outline, x, y }, most) {
  const { width, height } = canvas.parentElement.getBoundingClientRect();
  const zoom = Math.min(most, Math.min(width, height) / (1.3 * Math.max(box.width, box.height)));
  const view = { width: width / zoom, height: height / zoom };
  view.left = corner(box.x + box.width / 2, view.width, size.width);
  view.top = corner(box.y + box.height / 2, view.height, size.height);
  const ratio = window.devicePixelRatio || 1;
  const context = drawCrop(canvas, picture, size.width, view, zoom * ratio);
  if (!outlined) return;
  const arm = CROSS / zoom;
  const cross = `M${x + 0.5 - arm} ${y + 0.5}h${2 * arm}M${x + 0.5} ${y + 0.5 - arm}v${2 * arm}`;
  context.lineCap = "square";
  for (const [path, colour, thick] of [[outline, "#000", 3], [outline, "#f0f", 1.5], [cross, "#000", 3], [cross, "#ff0", 1.5]]) {
    [context.strokeStyle, context.lineWidth] = [colour, thick / zoom];
    context.stroke(new Path2D(path));
  }
}

async function draw() {
  const number = at;
  const question = await detail(number);
  const picture = await pictureOf(question.name).catch(() => { throw new Error("the photograph could not be loaded"); });
  if (number !== at) return;
  const { name } = store.classes[question.class];
  setText(byId("ask-class"), name);
  byId("ask-swatch").style.setProperty("--swatch", css(coloursOf(store)[question.class]));
  setText(byId("ask-where"), `${question.name} · ${question.box.x}, ${question.box.y}`);
  for (const button of byId("ask-classes").children) button.setAttribute("aria-pressed", String(button.dataset.name === name));
  drawRegion(byId("ask-close"), picture, question, ZOOM);
  drawRegion(byId("ask-wide"), picture, question, 1);
  run.dataset.item = String(number);
}

async function showNext() {
  at = queue[0] ?? null;
  failed = false;
  run.dataset.item = "";
  if (!dialog.open) return undefined;
  const isDone = at === null && sent.size === 0;
  byId("ask-done").hidden = !isDone;
  byId("ask-work").hidden = isDone;
  if (isDone) return finish();
  if (at === null) return undefined; // the reply to the last answer brings the next question
  const number = at;
  try {
    await draw();
    lookAhead();
  } catch (error) {
    if (number !== at) return undefined;
    failed = true;
    report(error, `question ${number} cannot be shown, x leaves it out`);
  }
  return undefined;
}

function finish() {
  const { answers, minutes, labelled, corrected } = questions.price.at(-1);
  setText(byId("ask-summary"), `${answers} questions answered in ${minutes.toFixed(1)} minutes: ${compact(labelled)} pixels labelled, ${compact(corrected)} of them corrected. pseudo-label sets them above its labels.`);
  setText(byId("ask-file"), questions.file);
  finished();
}

/** Take a reply: figures, and the questions that come next, without those answered here meanwhile. */
function take(reply) {
  questions = reply;
  queue = reply.upcoming.filter((number) => !sent.has(number));
  progress();
}

/** Send in turn; `back()` after an error. */
function send(path, body, { done, back }) {
  sending = sending.then(() => api.post(path, body)).then(done).catch((error) => {
    back();
    report(error);
  });
}

/** Record an answer (a class, "right", "mixed", "unsure") and go on. */
function answer(verdict) {
  // Only what is on the screen can be judged.
  if (at === null || (failed ? verdict !== "unsure" : run.dataset.item !== String(at))) return;
  const number = at;
  sent.add(number);
  queue = queue.filter((one) => one !== number);
  showNext();
  send("questions/answer", { audit: questions.id, item: number, verdict }, {
    done: (reply) => {
      sent.delete(number);
      const shown = at;
      take(reply);
      if (shown === null) showNext();
      else {
        queue = [shown, ...queue.filter((one) => one !== shown)];
        lookAhead();
      }
    },
    back: () => {
      sent.delete(number);
      queue = [number, ...queue];
      showNext();
    },
  });
}

function undo() {
  const shown = at;
  [at, run.dataset.item] = [null, ""]; // no answer meanwhile
  send("questions/undo", { audit: questions.id }, {
    done: (reply) => { take(reply); showNext(); },
    back: () => { at = shown; showNext(); },
  });
}

function open(found) {
  known.clear();
  sent.clear();
  byId("ask-setup").hidden = true;
  run.hidden = false;
  run.focus();
  take(found);
  showNext();
}

function setup() {
  byId("ask-setup").hidden = false;
  run.hidden = true;
  setText(byId("ask-count"), "");
  byId("ask-progress").value = 0;
  byId("ask-aim").value = state.focus >= 0 ? store.classes[state.focus].name : "";
  byId("ask-budget").focus();
}

async function begin() {
  const classes = byId("ask-aim").value.split(",").map((name) => name.trim()).filter(Boolean);
  open(await api.post("questions", { budget: Number(byId("ask-budget").value), classes, after: questions?.id ?? "" }));
}

function key(event) {
  // Enter and space on a button that was reached by Tab press it.
  if (event.target.closest("button") && (event.key === "Enter" || event.key === " ")) return false;
  const number = keys.indexOf(event.key.toLowerCase());
  const said = number < 0 ? { Enter: "right", m: "mixed", x: "unsure" }[event.key] : store.classes[number].name;
  if (said) {
    if (!event.repeat) answer(said);
  } else if (event.key === "u" || event.key === "Backspace") {
    if (!event.repeat) undo();
  } else if (event.key === " ") {
    outlined = !outlined;
    if (run.dataset.item) draw();
  } else return false;
  return true;
}

/** Open the questions: the next of those under way, else the form for new ones. */
export async function openAsk() {
  byId("ask-setup").hidden = run.hidden = true;
  dialog.showModal();
  try {
    const { current, void: reason } = await api.json("questions");
    byId("ask-void").hidden = !reason;
    setText(byId("ask-void"), reason && `${reason}. Answers given before stay labels.`);
    questions = current;
    if (current?.upcoming.length) open(current);
    else setup();
  } catch (error) {
    setup();
    report(error);
  }
}

export function startAsk(data, onFinished) {
  store = data;
  finished = onFinished;
  keys = keysOf(store.classes);
  const said = (verdict) => () => { run.focus(); answer(verdict); };
  fill(byId("ask-classes"), store.classes.map(({ name }, number) => h("button", { type: "button", dataset: { name }, onclick: said(name) },
    keys[number] && h("kbd", {}, keys[number]), h("i.dot", { css: { "--swatch": css(coloursOf(store)[number]) } }), h("span", {}, name))));
  fill(byId("ask-names"), store.classes.map(({ name }) => h("option", { value: name })));
  for (const verdict of ["right", "mixed", "unsure"]) byId(`ask-${verdict}`).addEventListener("click", said(verdict));
  byId("ask-undo").addEventListener("click", () => { run.focus(); undo(); });
  for (const id of ["ask-more", "ask-others"]) byId(id).addEventListener("click", setup);
  for (const id of ["ask-close-button", "ask-finish"]) byId(id).addEventListener("click", () => dialog.close());
  byId("ask-form").addEventListener("submit", (event) => submit(event, byId("ask-start"), begin));
  byId("ask-pictures").hidden = store.hasPictures;
  byId("ask-start").disabled = !store.hasPictures;
  const estimate = () => setText(byId("ask-estimate"), `about ${Math.max(1, Math.round((Number(byId("ask-budget").value) * SECONDS) / 60))} min`);
  byId("ask-budget").addEventListener("input", estimate);
  estimate();
  judgingKeys(dialog, run, key);
  window.addEventListener("resize", () => { if (dialog.open && run.dataset.item) draw(); });
  dialog.addEventListener("close", () => { at = null; if (questions) finished(); });
}
