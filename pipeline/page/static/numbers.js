// Live numbers: what the present thresholds keep of this image and of the whole store, from the histograms the
// page already has. Nothing here asks the server.

import { CODES, keptBy, suffixSums } from "./thresholds.js";

let store = null;
const sides = {};
let here = null;

function prepare(data, precision) {
  const C = store.classes.length;
  const totals = Float64Array.from(data.totals);
  return { pixels: data.pixels, count: suffixSums(totals, C), right: precision ? suffixSums(totals, C, precision.table) : null };
}

export function startNumbers(data) {
  store = data;
  sides.a = prepare(data, data.precision);
  if (data.other) sides.b = prepare(data.other, data.precision);
}

export const storeSums = (side = "a") => sides[side];

/** Take the histogram of the image on the screen. */
export function useImage(planes) {
  const C = store.classes.length;
  const histogram = Float64Array.from(planes.histogram.subarray(0, C * CODES));
  here = { pixels: planes.width * planes.height, count: suffixSums(histogram, C), right: store.precision ? suffixSums(histogram, C, store.precision.table) : null };
}

export const noImage = () => { here = null; };
export const imageSums = () => here;

/** {kept, pixels, precision} of some sums under some thresholds; precision is null without a calibration. */
export function measure(sums, thresholds) {
  const kept = keptBy(sums.count, thresholds);
  return { kept, pixels: sums.pixels, precision: sums.right && kept ? keptBy(sums.right, thresholds) / kept : null };
}
