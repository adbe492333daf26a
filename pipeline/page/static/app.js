// Starts the page: store, address, parts.

import { api } from "./api.js";
import { openAsk, startAsk } from "./ask.js";
import { startAudit, openAudit } from "./audit.js";
import { startClasses, useStats } from "./classes.js";
import { byId, plain, setText } from "./dom.js";
import { neighbour, openGrid, refresh, rowAt, reveal, startGrid } from "./grid.js";
import { placeIcons } from "./icons.js";
import { startKeyboard } from "./keyboard.js";
import { keyTable } from "./keys.js";
import { noImage, startNumbers, useImage } from "./numbers.js";
import { startOverlay } from "./overlay.js";
import { startPanel, useWhole } from "./panel.js";
import { startPolicy } from "./policy.js";
import { mark, startReview } from "./review.js";
import { ahead, onScene, scene, show, startScene } from "./scene.js";
import { fromQuery, mirrorAddress, state, thresholdParams, update, watch } from "./state.js";
import { faultOf, parseThreshold } from "./thresholds.js";
import { offline, online, report, toast } from "./toast.js";
import { startToolbar } from "./toolbar.js";
import { startViewport } from "./viewport.js";
import { startWeights } from "./weights.js";

let store = null;

function parse(text) {
  const { code, neighbours } = parseThreshold(text, store);
  if (code === null) throw new Error(faultOf(text, neighbours));
  return code;
}

/** Go so many images on. `first` can refuse; the list is read before it, for a mark may take the image out of a filter. */
async function go(step, first = () => true) {
  try {
    const row = await neighbour(step);
    if (!await first()) return;
    if (row) update({ image: row.name });
    else toast(step > 0 ? "The list ends here" : "The list begins here");
  } catch (error) {
    report(error);
  }
}

const markAndGo = (verdict) => go(1, () => mark(verdict));

async function lookAhead() {
  const rows = await Promise.all([1, -1].map((step) => neighbour(step).catch(() => null)));
  ahead(rows.filter(Boolean));
}

function showImageState() {
  const failed = scene.error;
  setText(byId("image-name"), state.image ?? "no image");
  byId("image-name").title = scene.details?.city ? `${state.image} · ${scene.details.city}` : state.image ?? "";
  byId("problem").hidden = !failed;
  if (failed) {
    setText(byId("problem-title"), failed.code === "StoreError" || failed.code === "IntegrityError" ? "This image's shard is damaged" : "This image cannot be shown");
    setText(byId("problem-text"), failed.message);
    setText(byId("problem-hint"), failed.hint ?? "");
  }
  byId("no-picture").hidden = Boolean(failed) || !scene.details || scene.details.picture;
}

function followScene() {
  onScene((_, what, error) => {
    if (what === "image") {
      useImage(scene.planes);
      online();
      openGrid();
      lookAhead();
      if (!performance.getEntriesByName("first-picture").length) performance.measure("first-picture", { start: 0, end: performance.now() });
      document.documentElement.dataset.ready = "true";
    }
    if (what === "error") { noImage(); openGrid(); }
    if (["human-error", "compare-error"].includes(what)) report(error);
    if (what === "picture-error") toast("The picture could not be loaded", { kind: "bad" });
    if (what === "image" || what === "error") showImageState();
  });
  watch(["image"], showImageState);
}

let asking = null;
async function askStats() {
  asking?.abort();
  asking = new AbortController();
  try {
    const stats = await api.json("stats", thresholdParams(state, store), asking.signal);
    useStats(stats);
    useWhole(stats);
    online();
  } catch (error) {
    if (error.name !== "AbortError") report(error);
  }
}

/** Say that the server is gone, and go on where it is there again; it may be another process. */
async function lookForServer() {
  setTimeout(lookForServer, 2000);
  try {
    await fetch("static/icon.svg", { cache: "no-store", signal: AbortSignal.timeout(1900) });
  } catch (error) {
    if (error.name !== "TimeoutError") offline(); // a slow answer is not the end of the server
    return;
  }
  if (byId("offline").hidden) return;
  online();
  if (scene.error) show(state.image);
  refresh({ keepTiles: true });
}

function describeStore() {
  setText(byId("store-name"), store.path.split("/").slice(-2).join("/"));
  byId("store-name").title = store.path;
  setText(byId("store-kind"), store.kind);
  setText(byId("store-size"), `${plain(store.images)} image${store.images === 1 ? "" : "s"}`);
  setText(byId("teacher"), store.teacher ? `teacher ${store.teacher.slice(0, 8)}` : "");
  document.title = `${store.name} · autolabel inspector`;
  byId("problems").hidden = !store.problems.length;
  if (store.problems.length) setText(byId("problems-text"), store.problems.length === 1 ? store.problems[0] : `${store.problems.length} problems: ${store.problems[0]}`);
}

function wire() {
  byId("previous").addEventListener("click", () => go(-1));
  byId("next").addEventListener("click", () => go(1));
  for (const verdict of ["accept", "flag"]) byId(verdict).addEventListener("click", () => markAndGo(verdict));
  byId("open-audit").addEventListener("click", openAudit);
  byId("open-ask").addEventListener("click", openAsk);
  for (const id of ["open-audit", "open-ask"]) byId(id).disabled = store.kind !== "raw";
  byId("open-help").addEventListener("click", () => byId("help").showModal());
  byId("retry").addEventListener("click", () => show(state.image));
  byId("copy-link").addEventListener("click", async () => {
    await navigator.clipboard.writeText(location.href).catch(() => {});
    toast("Address copied: it holds the whole view");
  });
  document.querySelectorAll("dialog [data-close]").forEach((button) => button.addEventListener("click", () => button.closest("dialog").close()));
  document.addEventListener("wantstats", askStats);
  setTimeout(lookForServer, 2000);
}

async function firstImage() {
  if (state.image) return;
  const row = await rowAt(0);
  if (row) update({ image: row.name });
}

function fatal(error) {
  byId("fatal").hidden = false;
  setText(byId("fatal-text"), error.message);
  setText(byId("fatal-hint"), error.hint ?? "");
  document.documentElement.dataset.ready = "error";
}

async function start() {
  placeIcons();
  store = await api.json("store");
  store.edgeValues = store.edges.map(Number);
  startNumbers(store);
  const patch = { base: store.start, ...fromQuery(location.search, store, parse) };
  if (patch.base === "policy" && !store.policy) throw new Error("the address asks for a policy, but the server was started without --policy");
  Object.assign(state, patch);
  for (const part of [startViewport, startScene, startGrid, startOverlay, startToolbar, startPanel, startClasses, startPolicy]) part(store);
  startWeights();
  startReview(() => refresh({ keepTiles: true }));
  startAudit(store, askStats);
  startAsk(store, () => { refresh({ keepTiles: true }); show(state.image); });
  describeStore();
  followScene();
  startKeyboard(keyTable(store, go, markAndGo));
  wire();
  mirrorAddress(store);
  if (state.image) show(state.image);
  await refresh();
  await firstImage();
  reveal();
  showImageState();
  askStats();
}

start().catch(fatal);
