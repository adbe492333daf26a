// Click audit: kept pixels drawn at random, class by class, shown one at a time; the answers become
// evidence for the precision of each class.

import { api } from "./api.js";
import { corner, drawCrop, judgingKeys, pictureOf, submit } from "./closeup.js";
import { byId, compact, fill, h, percent, setText } from "./dom.js";
import { loadPlanes, prefetch } from "./loader.js";
import { coloursOf, css } from "./palette.js";
import { state, thresholdParams } from "./state.js";
import { report } from "./toast.js";

const dialog = byId("audit");
const CROP = 220; // pixels of the picture across the close view
let store = null;
let audit = null; // {id, items: [{name, class, x, y, verdict}], results, overall}
let at = 0;
let maskShown = true;
let waiting = 0; // answers that the server has not confirmed yet
let finished = () => {};

const isCertificate = () => audit.kind === "certificate";
const answered = () => audit.items.filter((item) => item.verdict).length;

function progress() {
  const done = answered();
  const most = Math.max(audit.items.length, audit.budget ?? 0); // a certificate draws its pixels bit by bit
  [byId("audit-progress").max, byId("audit-progress").value] = [most, done];
  setText(byId("audit-count"), `${done} of ${isCertificate() ? "at most " : ""}${most}`);
  const rows = audit.results.map((row) => {
    const name = store.classes[row.class].name;
    const known = isCertificate() ? row.precision !== null : row.right + row.wrong > 0;
    const range = isCertificate() ? certificateState(row) : `${Math.round(100 * row.low)}–${Math.round(100 * row.high)} %`;
    return h("tr", { class: row.class === audit.items[at]?.class ? "current" : "" },
      h("th", { scope: "row" }, h("i.dot", { css: { "--swatch": css(coloursOf(store)[row.class]) } }), name),
      h("td", {}, `${row.right + row.wrong + row.unsure}/${row.drawn}`),
      h("td", {}, known ? percent(row.precision, 1, 0) : "–"),
      h("td.muted", {}, known || isCertificate() ? range : ""));
  });
  fill(byId("audit-results"), rows);
  const { overall } = audit;
  if (isCertificate()) return setText(byId("audit-overall"), `${certified().length} of ${audit.results.length} classes certified at ${percent(audit.target, 1, 1)}`);
  setText(byId("audit-overall"), overall ? `${percent(overall.precision, 1, 1)} right (${percent(overall.low, 1, 1)} – ${percent(overall.high, 1, 1)})` : "no answer yet");
}

const certified = () => audit.results.filter((row) => row.certified);

function certificateState(row) {
  const more = row.more_draws === null ? "" : `after ${row.more_draws} more`;
  return row.certified ? `≥ ${percent(row.lower, 1, 1)} from ${row.threshold} on, keeps ${percent(row.coverage, 1, 0)}${more && `; +${compact(row.more_pixels)} px ${more}`}` : more;
}

function drawMask(planes, item, canvas, left, top, size) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(size, size);
  const pixels = new Uint32Array(image.data.buffer);
  const threshold = item.low ?? audit.codes[item.class];
  const [r, g, b] = coloursOf(store)[item.class];
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      const [px, py] = [left + x, top + y];
      if (px < 0 || py < 0 || px >= planes.width || py >= planes.height) continue;
      const joined = planes.index[py * planes.width + px];
      if (joined >> 8 === item.class && (joined & 255) >= threshold) pixels[y * size + x] = ((110 << 24) | (b << 16) | (g << 8) | r) >>> 0;
    }
  }
  context.putImageData(image, 0, 0);
}

/** Position of an item's pixel, asked of the server once. */
function locate(number) {
  const item = audit.items[number];
  if (!item) return Promise.resolve(null);
  if (item.x !== undefined) return Promise.resolve(item);
  item.request ??= api.json("audit/item", { audit: audit.id, item: number }).then((found) => Object.assign(item, found, { verdict: item.verdict })).finally(() => { item.request = null; });
  return item.request;
}

async function lookAhead(from) {
  const next = await Promise.all([from, from + 1].map((number) => locate(number).catch(() => null)));
  prefetch(next.filter(Boolean).map(({ name }) => ({ name, picture: store.hasPictures })));
}

let turn = 0;
async function showItem() {
  const mine = ++turn;
  const item = audit.items[at];
  byId("audit-close").dataset.item = "";
  progress();
  byId("audit-done").hidden = Boolean(item);
  byId("audit-work").hidden = !item;
  if (!item) return finish();
  const { name } = store.classes[item.class];
  setText(byId("audit-class"), name);
  byId("audit-swatch").style.setProperty("--swatch", css(coloursOf(store)[item.class]));
  const size = CROP;
  item.failed = false;
  try {
    await locate(at);
    if (mine !== turn) return;
    setText(byId("audit-where"), `${item.name} · ${item.x}, ${item.y}`);
    const [planes, picture] = await Promise.all([loadPlanes(item.name), store.hasPictures ? pictureOf(item.name).catch(() => null) : null]);
    if (mine !== turn) return;
    // Near the picture's edge the mark moves instead of the window.
    const [left, top] = [corner(item.x, size, planes.width), corner(item.y, size, planes.height)];
    byId("audit-cross").style.setProperty("--x", `${(100 * (item.x + 0.5 - left)) / size}%`);
    byId("audit-cross").style.setProperty("--y", `${(100 * (item.y + 0.5 - top)) / size}%`);
    drawCrop(byId("audit-close"), picture, planes.width, { left, top, width: size, height: size });
    [byId("audit-mask").width, byId("audit-mask").height] = [size, size];
    drawMask(planes, item, byId("audit-mask"), left, top, size);
    const wide = byId("audit-wide");
    [wide.width, wide.height] = [480, Math.round((480 * planes.height) / planes.width)];
    if (picture) wide.getContext("2d").drawImage(picture, 0, 0, wide.width, wide.height);
    byId("audit-box").style.setProperty("--x", `${(100 * item.x) / planes.width}%`);
    byId("audit-box").style.setProperty("--y", `${(100 * item.y) / planes.height}%`);
    byId("audit-close").dataset.item = String(at);
  } catch (error) {
    item.failed = true;
    report(error, item.name);
  }
  if (mine === turn) lookAhead(at + 1);
}

function finish() {
  if (isCertificate()) {
    const names = certified().map((row) => store.classes[row.class].name);
    const [[worst], [next]] = [audit.wrong, audit.pays];
    setText(byId("audit-summary"), `${answered()} pixels judged. Certified at ${percent(audit.target, 1, 1)}: ${names.join(", ") || "no class"}.`
      + ` ${audit.more.answers} more answers would certify about ${compact(audit.more.pixels)} more pixels (${percent(audit.more.coverage, 1, 1)} of all).`
      + (worst ? ` Most wrong pixels are expected in ${worst.image} (${worst.class}).` : "")
      + (next ? ` 50 of them in ${next.class} alone would certify about ${compact(next.confirm)} pixels that are kept now and ${compact(next.bring)} that are not.` : ""));
  } else setText(byId("audit-summary"), audit.overall
    ? `${answered()} pixels judged. ${percent(audit.overall.precision, 1, 1)} of kept pixels are right (95 % interval ${percent(audit.overall.low, 1, 1)} to ${percent(audit.overall.high, 1, 1)}).`
    : "Nothing was judged.");
  setText(byId("audit-file"), audit.file);
  finished();
}

/** Record an answer ("right", "wrong", "unsure") and go on. */
async function answer(verdict) {
  const item = audit?.items[at];
  // Only what is on the screen can be judged: its pixel may still be on the way, or cannot be shown.
  if (!item || (!item.failed && byId("audit-close").dataset.item !== String(at))) return;
  const number = at;
  if (!item.failed) item.verdict = verdict;
  at += 1;
  while (at < audit.items.length && audit.items[at].verdict) at += 1;
  if (item.failed || audit.items[at]) showItem(); // else the reply may bring the next pixel
  if (item.failed) return; // nobody saw it: left out
  waiting += 1;
  try {
    const shown = audit.items[at];
    const reply = await api.post(isCertificate() ? "certificate/answer" : "audit/answer", { audit: audit.id, item: number, verdict }).finally(() => { waiting -= 1; });
    audit.results = reply.results;
    audit.overall = reply.overall;
    if (reply.items) merge(reply);
    if (shown && audit.items[at]) progress();
    else if (audit.items[at] || !waiting) showItem(); // the reply to a later answer may bring the next pixel
  } catch (error) {
    item.verdict = null;
    at = Math.min(at, number);
    showItem();
    report(error);
  }
}

/** Take the draws that were added and what others answered; what is not sent yet stays. */
function merge(reply) {
  const mine = audit.items;
  [audit.wrong, audit.pays, audit.more] = [reply.wrong, reply.pays, reply.more];
  audit.items = reply.items.map((item, number) => Object.assign(mine[number] ?? {}, { ...item, verdict: item.verdict ?? mine[number]?.verdict ?? null }));
}

function back() {
  let before = at - 1;
  while (audit.items[before]?.set) before -= 1; // the answer to a question is changed there
  if (before < 0) return;
  at = before;
  audit.items[at].verdict = null;
  showItem();
}

const chosen = () => (state.focus >= 0 && byId("audit-focus").checked ? [store.classes[state.focus].name] : []);

async function certify() {
  const target = Number((Number(byId("certificate-target").value) / 100).toFixed(4));
  open(await api.post("certificate", { target, budget: Number(byId("certificate-budget").value), classes: chosen() }));
}

async function begin() {
  const perClass = Number(byId("audit-per-class").value);
  open(await api.post("audit", { per_class: perClass, seed: Number(byId("audit-seed").value), classes: chosen(), ...thresholdParams(state, store) }));
}

function open(found) {
  audit = found;
  at = audit.items.findIndex((item) => !item.verdict);
  if (at < 0) at = audit.items.length;
  byId("audit-setup").hidden = true;
  byId("audit-run").hidden = false;
  setText(byId("audit-title"), isCertificate() ? "Certificate" : "Click audit");
  setText(byId("audit-range"), isCertificate() ? "certified" : "95 %");
  byId("audit-run").focus();
  showItem();
}

const KEYS = { ArrowRight: "right", j: "right", 1: "right", ArrowLeft: "wrong", k: "wrong", 2: "wrong", ArrowDown: "unsure", l: "unsure", 3: "unsure" };

function key(event) {
  if (KEYS[event.key]) {
    if (!event.repeat) answer(KEYS[event.key]);
  } else if (event.key === "Backspace" || event.key === "ArrowUp") back();
  else if (event.key === " ") byId("audit-mask").classList.toggle("off", (maskShown = !maskShown) === false);
  else return false;
  return true;
}

/** Open the audit: the one under way, or the form for a new one. */
export async function openAudit() {
  byId("audit-setup").hidden = false;
  byId("audit-run").hidden = true;
  setText(byId("audit-title"), "Click audit");
  setText(byId("audit-count"), "");
  byId("audit-progress").value = 0;
  byId("audit-focus-line").hidden = state.focus < 0;
  if (state.focus >= 0) setText(byId("audit-focus-name"), `only ${store.classes[state.focus].name}`);
  dialog.showModal();
  try {
    const { current } = await api.json("audit");
    byId("audit-resume").hidden = !current;
    if (current) byId("audit-resume").onclick = () => open(current);
    const { current: begun, void: reason } = await api.json("certificate");
    byId("certificate-resume").hidden = !begun;
    if (begun) byId("certificate-resume").onclick = () => open(begun);
    byId("certificate-void").hidden = !reason;
    setText(byId("certificate-void"), reason);
  } catch (error) {
    report(error);
  }
}

export function startAudit(data, onFinished) {
  store = data;
  finished = onFinished;
  byId("audit-form").addEventListener("submit", (event) => submit(event, byId("audit-start"), begin));
  byId("certificate-form").addEventListener("submit", (event) => submit(event, byId("certificate-start"), certify));
  judgingKeys(dialog, byId("audit-run"), key);
  dialog.addEventListener("close", () => { turn += 1; if (audit) finished(); });
  for (const verdict of ["right", "wrong", "unsure"]) byId(`audit-${verdict}`).addEventListener("click", () => answer(verdict));
  byId("audit-back").addEventListener("click", back);
  byId("audit-close-button").addEventListener("click", () => dialog.close());
  byId("audit-finish").addEventListener("click", () => dialog.close());
  const estimate = () => {
    const n = Number(byId("audit-per-class").value) * store.classes.length;
    setText(byId("audit-estimate"), `up to ${n} clicks, about ${Math.max(1, Math.round((n * 4) / 60))} min`);
  };
  byId("audit-per-class").addEventListener("input", estimate);
  estimate();
}
