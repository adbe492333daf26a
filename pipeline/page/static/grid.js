// The list of images: thousands of rows, of which only those in view exist. Thumbnails carry their own
// small label and code planes, so the whole list follows the slider.

import { api } from "./api.js";
import { byId, compact, debounce, fill, h, percent, plain, setText } from "./dom.js";
import { icon } from "./icons.js";
import { labelTable, paint, makeLayer } from "./paint.js";
import { coloursOf } from "./palette.js";
import { decodeGrey } from "./png.js";
import { scene } from "./scene.js";
import { state, thresholdParams, update, watch } from "./state.js";

const COLUMNS = 2;
const ROW = 122; // CSS pixels, as in grid.css
const PAGE = 60;
const MINIS = 120;

const list = byId("grid");
const spacer = byId("grid-space");
let store = null;
let total = 0;
let reviewed = 0; // images of the whole store
let pages = new Map(); // page number -> rows, or a promise of them
let generation = 0;
let order = new Map(); // name -> position, as far as known
let last = 0; // position of the image on the screen when it was last in the list
const tiles = new Map(); // position -> tile in the document
const minis = new Map(); // name -> {width, height, index}
const table = new Uint32Array(65536);

/** Query parameters of what is selected (thresholds, sort, filters), for any endpoint that lists or counts. */
function selection() {
  const params = { sort: state.sort === "drop" ? `drop:${state.dropFrom}:${state.dropTo}` : state.sort };
  if (state.focus >= 0) params.class = store.classes[state.focus].name;
  if (state.query) params.q = state.query;
  if (state.city) params.city = state.city;
  if (state.review) params.review = state.review;
  Object.assign(params, thresholdParams(state, store));
  return params;
}

const ask = (number) => api.json("images", { ...selection(), offset: number * PAGE, limit: PAGE });

function take(number, answer) {
  ({ total, reviewed } = answer);
  answer.images.forEach((row, i) => order.set(row.name, number * PAGE + i));
  pages.set(number, answer.images);
  return answer.images;
}

async function page(number) {
  const mine = generation;
  const answer = await ask(number);
  return mine === generation ? take(number, answer) : null;
}

/** Row at a position of the list, loading its page if need be (null past the end). */
export async function rowAt(position) {
  if (position < 0 || (pages.size && position >= total)) return null;
  const number = Math.floor(position / PAGE);
  const known = pages;
  if (!known.has(number)) known.set(number, page(number).catch((error) => { known.delete(number); throw error; }));
  const rows = await known.get(number);
  if (rows) return rows[position % PAGE] ?? null;
  known.delete(number);
  return rowAt(position); // the list was asked for anew meanwhile
}

/** Row so many steps away; from an image that its mark took out of the list, from where it was. */
export function neighbour(step) {
  const here = positionOf(state.image);
  return rowAt(here >= 0 ? here + step : last + step - Number(step > 0));
}

const positionOf = (name) => order.get(name) ?? -1;

const BADGES = { accept: "accepted", flag: "flagged" };

function makeTile(position) {
  const tile = h("div.tile", { role: "option", id: `tile-${position}`, css: { top: `${Math.floor(position / COLUMNS) * ROW}px`, left: `${(position % COLUMNS) * 50}%` } });
  tile.picture = h("img", { alt: "", loading: "lazy", decoding: "async" });
  tile.mask = h("canvas", { width: 1, height: 1 });
  tile.layer = makeLayer(tile.mask);
  tile.badge = h("span.badge");
  tile.caption = h("bdi", { dir: "ltr" });
  tile.share = h("span.tile-share");
  tile.bar = h("span.bar", {}, h("i"));
  tile.append(h("span.frame", {}, tile.picture, tile.mask, tile.badge), h("span.tile-line", {}, h("span.tile-name", {}, tile.caption), tile.share), tile.bar);
  tile.addEventListener("click", () => tile.row && update({ image: tile.row.name, zoom: null }));
  return tile;
}

function repaint(tile) {
  const mini = tile.row && minis.get(tile.row.name);
  if (!mini || !scene.thresholds) return;
  tile.layer.resize(mini.width, mini.height);
  paint(tile.layer, mini.index, table);
}

async function loadMini(tile, name) {
  if (!minis.has(name)) {
    const stacked = await decodeGrey(await api.bytes("mini", { name }));
    const n = (stacked.width * stacked.height) / 2; // labels above, codes below
    const index = Uint16Array.from({ length: n }, (_, i) => (stacked.data[i] << 8) | stacked.data[n + i]);
    minis.set(name, { width: stacked.width, height: stacked.height / 2, index });
    if (minis.size > MINIS) minis.delete(minis.keys().next().value);
  }
  if (tile.row?.name === name) repaint(tile);
}

function metric(row) {
  if (state.sort === "conflict") return `${compactShare(row.conflict, row.pixels)} conflict`;
  if (state.sort === "uncertain") return `${(100 * row.uncertain).toFixed(1)} % in doubt`;
  if (state.sort === "drop") return `−${compact(row.drop)} px`;
  return compactShare(row.kept, row.pixels);
}

const compactShare = (part, whole) => percent(part, whole, 1);

function fillTile(tile, row) {
  const isSame = tile.row?.name === row.name;
  tile.row = row;
  setText(tile.caption, row.name);
  tile.title = row.city ? `${row.name} · ${row.city}` : row.name;
  setText(tile.share, metric(row).split(/ (?=[a-z])/)[0]); // the words would leave no room for the name
  tile.share.title = metric(row);
  tile.bar.firstChild.style.width = row.pixels ? `${(100 * row.kept) / row.pixels}%` : "0";
  fill(tile.badge, BADGES[row.review] && icon(row.review));
  tile.badge.className = `badge ${row.review || ""}`;
  tile.setAttribute("aria-label", `${row.name}, ${metric(row)}${BADGES[row.review] ? `, ${BADGES[row.review]}` : ""}`);
  tile.setAttribute("aria-selected", String(row.name === state.image));
  tile.picture.hidden = !row.picture;
  if (isSame) return;
  tile.classList.remove("damaged");
  tile.layer.clear();
  queue.push({ tile, name: row.name, picture: row.picture });
  drain();
}

// Pictures of the list wait for the big one: at most three requests at a time, newest first.
const queue = [];
let running = 0;
let open = false;

async function loadTile({ tile, name, picture }) {
  if (tile.row?.name !== name || !tile.isConnected) return;
  if (picture) tile.picture.src = api.url("thumb", { name });
  try {
    await loadMini(tile, name);
  } catch (error) {
    tile.classList.add("damaged");
    tile.title = error.message;
  }
}

function drain() {
  while (open && running < 3 && queue.length) {
    running += 1;
    loadTile(queue.pop()).finally(() => {
      running -= 1;
      drain();
    });
  }
}

/** Let thumbnails load (called when the first picture is there). */
export function openGrid() {
  open = true;
  drain();
}

function place(position, tile) {
  const mine = generation;
  rowAt(position).then((row) => mine === generation && row && fillTile(tile, row)).catch(() => tile.classList.add("damaged"));
}

function layout() {
  spacer.style.height = `${Math.ceil(total / COLUMNS) * ROW}px`;
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 1) * COLUMNS;
  const last = Math.min(total, (Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 1) * COLUMNS);
  for (const [position, tile] of tiles) {
    if (position < first || position >= last) {
      tile.remove();
      tiles.delete(position);
    }
  }
  for (let position = first; position < last; position++) {
    if (tiles.has(position)) continue;
    const tile = makeTile(position);
    tiles.set(position, tile);
    spacer.append(tile);
    place(position, tile);
  }
}

function mark() {
  for (const tile of tiles.values()) tile.setAttribute("aria-selected", String(tile.row?.name === state.image));
  const position = positionOf(state.image);
  setText(byId("image-position"), position >= 0 ? `${plain(position + 1)} / ${plain(total)}` : "");
  if (position < 0) return;
  last = position;
  list.setAttribute("aria-activedescendant", `tile-${position}`);
}

/** Scroll the current image into view. */
export function reveal() {
  const position = positionOf(state.image);
  if (position < 0) return;
  const top = Math.floor(position / COLUMNS) * ROW;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
}

function announce(error = null) {
  const words = state.focus >= 0 ? ` with ${store.classes[state.focus].name}` : "";
  const looked = reviewed ? ` · ${plain(reviewed)} reviewed` : "";
  setText(byId("grid-count"), error ? error.message : `${plain(total)} image${total === 1 ? "" : "s"}${words}${looked}`);
  byId("grid-empty").hidden = total > 0 || Boolean(error);
}

/** Ask the server for the list anew (sort, filter or thresholds changed); `first`: show its first image. */
export async function refresh({ keepTiles = false, first = false } = {}) {
  const mine = ++generation;
  const number = keepTiles ? Math.floor(last / PAGE) : 0;
  let answer;
  try {
    answer = await ask(number); // until it is there, and without the server, the old list stays usable
  } catch (error) {
    announce(error);
    return;
  }
  if (mine !== generation) return; // overtaken by a later question
  [pages, order] = [new Map(), new Map()];
  take(number, answer);
  if (!keepTiles) list.scrollTop = last = 0;
  if (first && total) update({ image: pages.get(0)[0].name });
  announce();
  layout();
  tiles.forEach((tile, position) => place(position, tile));
  mark();
}

function recolour() {
  if (!scene.thresholds) return;
  const alpha = store.classes.map((_, c) => ((state.alphas[c] ?? 100) > 0 && (state.focus < 0 || state.focus === c) ? 190 : 0));
  labelTable(table, { thresholds: scene.thresholds, colours: coloursOf(store), alpha, dropped: 0 });
  tiles.forEach(repaint);
}

export function startGrid(data) {
  store = data;
  list.addEventListener("scroll", layout, { passive: true });
  new ResizeObserver(layout).observe(list);
  const soon = debounce(recolour, 40);
  const reorder = debounce(() => refresh({ keepTiles: true }), 350);
  watch(["base", "pins"], () => { soon(); reorder(); });
  watch(["alphas", "palette", "focus"], soon);
  watch(["focus", "sort", "dropFrom", "dropTo", "query", "city", "review"], debounce((_, changed) => refresh({ first: !(state.image && changed.has("focus")) }), 120));
  watch(["image"], () => { mark(); reveal(); });
  byId("grid-all").addEventListener("click", () => update({ query: "", city: "", review: "", focus: -1 }));
  recolour();
}
