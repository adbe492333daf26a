// Thresholds as the store knows them: one code per class. A pixel is kept when code >= threshold[class].

export const CODES = 256;
export const WITHHELD = 256; // no code reaches it

/** Per class and code: pixels (or weights) with at least that code; C x 257, last column 0. */
export function suffixSums(histogram, numClasses, weight = null) {
  const sums = new Float64Array(numClasses * (CODES + 1));
  for (let c = 0; c < numClasses; c++) {
    let running = 0;
    for (let k = CODES - 1; k >= 0; k--) {
      const w = weight ? weight[c][k] : 1;
      running += histogram[c * CODES + k] * w;
      sums[c * (CODES + 1) + k] = running;
    }
  }
  return sums;
}

/** One threshold per class from a base (a code, or an array of codes as a policy has) and the user's pins {class: code}. */
export function resolveThresholds(base, pins, numClasses) {
  const thresholds = new Uint16Array(numClasses);
  for (let c = 0; c < numClasses; c++) thresholds[c] = pins[c] ?? (typeof base === "number" ? base : base[c]);
  return thresholds;
}

export const at = (sums, c, code) => sums[c * (CODES + 1) + Math.min(code, CODES)];

/** Sum over classes of what the thresholds keep. */
export function keptBy(sums, thresholds) {
  let kept = 0;
  for (let c = 0; c < thresholds.length; c++) kept += at(sums, c, thresholds[c]);
  return kept;
}

/** Index of the edge nearest to a value in [0, 1]. */
export function nearestCode(edges, value) {
  let low = 0;
  let high = edges.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (edges[middle] < value) low = middle + 1;
    else high = middle;
  }
  if (low > 0 && value - edges[low - 1] <= edges[low] - value) low -= 1;
  return low;
}

/** Code of an edge given as text, or null and its two neighbours when the text is off the grid. */
export function parseThreshold(text, store) {
  const clean = text.trim();
  const value = Number(clean);
  if (clean === "" || !Number.isFinite(value) || value < 0 || value > 1) return { code: null, neighbours: [] };
  const code = nearestCode(store.edgeValues, value);
  if (store.edgeValues[code] === value) return { code, neighbours: [] };
  const above = store.edgeValues.findIndex((edge) => edge > value);
  const codes = above < 0 ? [CODES - 1] : above === 0 ? [0] : [above - 1, above];
  return { code: null, neighbours: codes.map((k) => store.edges[k]) };
}

/** What is wrong with a text that `parseThreshold` finds no code for. */
export const faultOf = (text, neighbours) =>
  neighbours.length
    ? `threshold ${text} is not on the grid of the confidence code; its neighbours are ${neighbours.join(" and ")}`
    : `“${text}” is not a threshold from 0 to 1`;

export const edgeText = (store, code) => (code >= WITHHELD ? "withheld" : store.edges[code]);

/** Precision and coverage for every threshold of one class (c >= 0) or, with one common threshold, of all classes. */
export function curve(count, right, c, numClasses) {
  const classes = c >= 0 ? [c] : Array.from({ length: numClasses }, (_, i) => i);
  const sum = (sums, k) => classes.reduce((total, i) => total + at(sums, i, k), 0);
  const all = sum(count, 0);
  const points = [];
  for (let k = 0; k < CODES; k++) {
    const kept = sum(count, k);
    points.push({ code: k, coverage: all ? kept / all : 0, precision: kept && right ? sum(right, k) / kept : null });
  }
  return points;
}
