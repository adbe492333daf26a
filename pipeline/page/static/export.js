// The data source of a static export: plain script files, so that the page also opens from a folder
// without any server (browsers do not let a file:// page fetch its neighbours).

import { ApiError, useSource } from "./api.js";
import { CODES } from "./cuts.js";

const planes = new Map();

function fromBase64(text) {
  const binary = atob(text);
  return Uint8Array.from(binary, (letter) => letter.charCodeAt(0)).buffer;
}

function loadScript(path) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = path;
    script.onload = () => { script.remove(); resolve(); };
    script.onerror = () => { script.remove(); reject(new ApiError(`${path} is missing from this export`)); };
    document.head.append(script);
  });
}

function keptOf(image, cuts, c) {
  let kept = 0;
  for (const [label, code, count] of image.histogram) if (code >= cuts[label] && (c < 0 || label === c)) kept += count;
  return kept;
}

function sumOf(image, weightOf, c) {
  let sum = 0;
  for (const [label, code, count] of image.histogram) if (c < 0 || label === c) sum += count * weightOf(label, code);
  return sum;
}

const ORDERS = {
  name: () => 0,
  coverage: (row) => (row.pixels ? row.kept / row.pixels : 2),
  conflict: (row) => -row.conflict,
  uncertain: (row) => -row.uncertain,
  drop: (row) => -row.drop,
};

class Export {
  isExport = true;

  constructor(bundle) {
    this.bundle = bundle;
    this.byName = new Map(bundle.images.map((image) => [image.name, image]));
  }

  image(name) {
    const image = this.byName.get(name);
    if (!image) throw new ApiError(`no image named “${name}” in this export`, { status: 404 });
    return image;
  }

  url = (path, params) => (path === "thumb" ? this.image(params.name).thumb : this.image(params.name).picture);

  bytes = async (path, params) => {
    const image = this.image(params.name);
    if (path === "mini") return fromBase64(image.mini);
    if (!planes.has(image.data)) {
      await loadScript(image.data);
      planes.set(image.data, window.autolabelPlanes);
      if (planes.size > 6) planes.delete(planes.keys().next().value);
    }
    const text = planes.get(image.data)[params.plane];
    if (!text) throw new ApiError(`this export holds no ${params.plane} plane`, { status: 404 });
    return fromBase64(text);
  };

  json = async (path, params = {}) => {
    if (path === "store") return this.bundle.store;
    if (path === "images") return this.images(params);
    if (path === "image") return this.image(params.name).details;
    if (path === "review") return { entries: this.bundle.reviews.filter((entry) => !params.name || entry.name === params.name) };
    throw new ApiError("a static export has no server for this", { status: 404 });
  };

  post = async () => {
    throw new ApiError("a static export is read-only", { hint: "open the store with `autolabel serve` to review, audit or save" });
  };

  images(params) {
    const { store } = this.bundle;
    const c = params.class ? store.classes.findIndex((row) => row.name === params.class) : -1;
    const cuts = params.codes;
    const uniform = (text) => new Array(store.classes.length).fill(store.edges.indexOf(text));
    const [sort, from, to] = (params.sort ?? "name").split(":");
    const inDoubt = (label, code) => 1 - (store.precision ? store.precision.table[label][code] : store.edgeValues[code]);
    const rows = this.bundle.images
      .filter((image) => !params.q || image.name.toLowerCase().includes(params.q.toLowerCase()))
      .filter((image) => !params.city || image.city === params.city)
      .map((image) => {
        const pixels = c < 0 ? image.pixels : sumOf(image, () => 1, c);
        return { ...image.row, pixels, kept: keptOf(image, cuts, c), uncertain: pixels ? sumOf(image, inDoubt, c) / pixels : 0,
          drop: sort === "drop" ? keptOf(image, uniform(from), c) - keptOf(image, uniform(to), c) : undefined };
      })
      .filter((row) => c < 0 || row.pixels > 0)
      .filter((row) => !params.review || row.review === params.review || (params.review === "none" && !row.review));
    const order = ORDERS[sort] ?? ORDERS.name;
    rows.sort((a, b) => order(a) - order(b) || (a.name < b.name ? -1 : 1));
    const offset = Number(params.offset ?? 0);
    return { total: rows.length, offset, images: rows.slice(offset, offset + Number(params.limit ?? CODES)) };
  }
}

if (window.autolabelExport) useSource(new Export(window.autolabelExport));
