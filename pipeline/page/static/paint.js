// From two byte planes to colours. One 16-bit index per pixel (label, code) and one table of 65,536
// colours: moving a threshold rewrites the table and looks every pixel up again.

const LITTLE_ENDIAN = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;

export const rgba = (r, g, b, a = 255) =>
  (LITTLE_ENDIAN ? (a << 24) | (b << 16) | (g << 8) | r : (r << 24) | (g << 16) | (b << 8) | a) >>> 0;

/** Join label and code planes; returns {width, height, index, histogram} with histogram[label << 8 | code]. */
export function join(label, code) {
  if (label.width !== code.width || label.height !== code.height) throw new Error("label and confidence differ in size");
  const n = label.data.length;
  const index = new Uint16Array(n);
  const histogram = new Uint32Array(65536);
  for (let i = 0; i < n; i++) {
    const joined = (label.data[i] << 8) | code.data[i];
    index[i] = joined;
    histogram[joined] += 1;
  }
  return { width: label.width, height: label.height, index, histogram };
}

/** Colours of kept pixels by class; what is not kept gets `dropped` (0 = transparent). */
export function labelTable(table, { thresholds, colours, alpha, dropped }) {
  table.fill(0);
  for (let c = 0; c < thresholds.length; c++) {
    const [r, g, b] = colours[c];
    const kept = rgba(r, g, b, alpha[c]);
    const row = c << 8;
    const threshold = Math.min(thresholds[c], 256);
    table.fill(alpha[c] ? dropped : 0, row, row + threshold);
    table.fill(kept, row + threshold, row + 256);
  }
  return table;
}

/** Colours by confidence: `ramp` holds 256 colours by code. */
export function heatTable(table, ramp, numClasses) {
  table.fill(0);
  for (let c = 0; c < numClasses; c++) table.set(ramp, c << 8);
  return table;
}

/** Paint `index` through `table` into a canvas of the same size; a second table makes diagonal stripes. */
export function paint(layer, index, table, stripes = null) {
  const { context, image, pixels } = layer;
  if (stripes) {
    const { width } = image;
    const shift = width > 1400 ? 4 : width > 400 ? 3 : 2;
    for (let i = 0, y = 0; i < index.length; y++) {
      for (let x = 0; x < width; x++, i++) pixels[i] = ((x + y) >> shift) & 1 ? stripes[index[i]] : table[index[i]];
    }
  } else for (let i = 0; i < index.length; i++) pixels[i] = table[index[i]];
  context.putImageData(image, 0, 0);
}

/** Paint a plain label plane (human label) with the classes' colours. */
export function paintPlane(layer, plane, colours, alpha) {
  const table = new Uint32Array(256);
  colours.forEach(([r, g, b], c) => { table[c] = rgba(r, g, b, alpha[c]); });
  for (let i = 0; i < plane.length; i++) layer.pixels[i] = table[plane[i]];
  layer.context.putImageData(layer.image, 0, 0);
}

/** Paint a byte plane through 256 colours (scale weights). */
export function paintRamp(layer, plane, ramp) {
  for (let i = 0; i < plane.length; i++) layer.pixels[i] = ramp[plane[i]];
  layer.context.putImageData(layer.image, 0, 0);
}

/** A canvas with its reusable pixel buffer; resized only when the size changes. */
export function makeLayer(canvas) {
  const context = canvas.getContext("2d");
  const layer = { canvas, context, image: null, pixels: null };
  layer.resize = (width, height) => {
    if (layer.image?.width === width && layer.image?.height === height) return;
    [canvas.width, canvas.height] = [width, height];
    layer.image = context.createImageData(width, height);
    layer.pixels = new Uint32Array(layer.image.data.buffer);
  };
  layer.clear = () => context.clearRect(0, 0, canvas.width, canvas.height);
  return layer;
}

// Anchors of a perceptually even ramp from deep blue through grey to yellow that stays readable with
// any colour vision (lightness rises all the way).
const ANCHORS = [[10, 24, 74], [38, 66, 128], [82, 96, 128], [124, 124, 122], [170, 156, 104], [218, 194, 82], [255, 236, 92]];

function ramp(position) {
  const x = Math.min(0.999999, Math.max(0, position)) * (ANCHORS.length - 1);
  const i = Math.floor(x);
  return [0, 1, 2].map((k) => Math.round(ANCHORS[i][k] + (x - i) * (ANCHORS[i + 1][k] - ANCHORS[i][k])));
}

/** 256 colours by position along the ramp. */
export function rampTable(positionOf = (k) => k / 255) {
  return Uint32Array.from({ length: 256 }, (_, k) => rgba(...ramp(positionOf(k))));
}

export const rampCss = (position) => `rgb(${ramp(position).join(" ")})`;
