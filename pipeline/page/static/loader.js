// Fetches and decodes the planes of an image, keeps the last few, and fetches neighbours ahead.

import { api } from "./api.js";
import { join } from "./paint.js";
import { decodeGrey } from "./png.js";

const KEEP = 6;
const cache = new Map();

async function fetchPlanes(name, side) {
  const where = { name, side };
  const started = performance.now();
  const [label, code] = await Promise.all(["label", "confidence"].map((plane) => api.bytes("plane", { ...where, plane })));
  const fetched = performance.now();
  const planes = join(await decodeGrey(label), await decodeGrey(code));
  performance.measure("decode", { start: fetched, end: performance.now(), detail: { name, fetch: fetched - started } });
  return planes;
}

/** What `make()` promises, kept in `cache` with the last `keep` that were asked for; a failure is not kept. */
export function remember(cache, keep, key, make) {
  const found = cache.get(key) ?? make().catch((error) => {
    cache.delete(key);
    throw error;
  });
  cache.delete(key);
  cache.set(key, found);
  if (cache.size > keep) cache.delete(cache.keys().next().value);
  return found;
}

/** Planes of an image of store `side` ("a" or "b"): {width, height, index, histogram}. */
export const loadPlanes = (name, side = "a") => remember(cache, KEEP, `${side}/${name}`, () => fetchPlanes(name, side));

/** The human label of an image as a plane of train ids, or null where there is none. */
export async function loadHuman(name) {
  return decodeGrey(await api.bytes("plane", { name, side: "a", plane: "human" }));
}

/** Load rows of the list quietly when nothing else is going on. */
export function prefetch(rows) {
  const idle = window.requestIdleCallback ?? ((work) => setTimeout(work, 200));
  idle(() => {
    for (const { name, picture } of rows) {
      loadPlanes(name).catch(() => {}); // shown when the user gets there
      if (picture) new Image().src = api.url("picture", { name });
    }
  });
}
