// Histogram of confidence with the threshold, and the precision-coverage curve with its dot. Both are sliders:
// they can be dragged, and with focus the arrow keys move them by steps of the code.

import { clamp, compact, sharp } from "./dom.js";
import { at, CODES, curve, nearestCode, WITHHELD } from "./thresholds.js";

const LABELLED = ["0", "0.5", "0.9", "0.95", "0.99", "0.999", "0.9999"];
const PAD = { left: 30, right: 8, top: 8, bottom: 18 };

const inkOf = (node) => {
  const style = getComputedStyle(node);
  return (name) => style.getPropertyValue(`--ink-${name}`).trim();
};

/** Where a code lies on the axis: half of the width belongs to codes above 0.95, where pixels lie. */
const axisX = (code, width) => PAD.left + (code / CODES) * (width - PAD.left - PAD.right);
const codeAtX = (x, width) => clamp(Math.round(((x - PAD.left) / (width - PAD.left - PAD.right)) * CODES), 0, CODES - 1);

const STEPS = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10, Home: -CODES, End: CODES };

/** Keys of a slider move a threshold by steps of the code. */
export function codeKeys(node, current, onCode) {
  node.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (!step) return;
    event.preventDefault();
    onCode(clamp(Math.min(current(), CODES - 1) + step, 0, CODES - 1));
  });
}

function slide(node, { onCode, codeAt, current }) {
  node.addEventListener("pointerdown", (down) => {
    node.setPointerCapture(down.pointerId);
    const move = (event) => onCode(codeAt(event));
    move(down);
    node.addEventListener("pointermove", move);
    const end = () => node.removeEventListener("pointermove", move);
    node.addEventListener("pointerup", end, { once: true });
    node.addEventListener("pointercancel", end, { once: true });
  });
  codeKeys(node, current, onCode);
}

function describe(node, threshold, store, text) {
  node.setAttribute("aria-valuemin", 0);
  node.setAttribute("aria-valuemax", CODES - 1);
  node.setAttribute("aria-valuenow", Math.min(threshold, CODES - 1));
  node.setAttribute("aria-valuetext", threshold >= WITHHELD ? "withheld" : `${store.edges[threshold]}, ${text}`);
}

/** Histogram chart: `draw({bins: [{all, kept}], threshold})`; threshold null = each class has its own. */
export function makeHistogram(node, store, { onCode }) {
  let thresholdNow = 0;
  const codeAt = (event) => codeAtX(event.clientX - node.getBoundingClientRect().left, node.clientWidth);
  slide(node, { onCode, codeAt, current: () => thresholdNow });
  const marks = LABELLED.map((text) => [text, nearestCode(store.edgeValues, Number(text))]);

  return ({ bins, threshold, described }) => {
    thresholdNow = threshold ?? 0;
    const { context, width, height } = sharp(node);
    const ink = inkOf(node);
    const bottom = height - PAD.bottom;
    const top = Math.log10(1 + Math.max(10, ...bins.map((bin) => bin.all)));
    const tall = (n) => (n ? (Math.log10(1 + n) / top) * (bottom - PAD.top) : 0);
    for (const [key, colour] of [["all", ink("dropped")], ["kept", ink("kept")]]) {
      context.fillStyle = colour;
      bins.forEach((bin, k) => {
        const [from, to] = [Math.round(axisX(k, width)), Math.round(axisX(k + 1, width))];
        context.fillRect(from, bottom - tall(bin[key]), Math.max(1, to - from), tall(bin[key]));
      });
    }
    context.fillStyle = ink("axis");
    context.fillRect(PAD.left, bottom, width - PAD.left - PAD.right, 1);
    context.font = "10px system-ui, sans-serif";
    context.textAlign = "center";
    let free = width;
    for (const [text, code] of [...marks].reverse()) {
      const half = context.measureText(text).width / 2;
      const x = Math.min(axisX(code, width), width - half);
      context.fillStyle = ink("axis");
      context.fillRect(axisX(code, width), bottom, 1, 4);
      if (x + half > free) continue;
      free = x - half - 5;
      context.fillStyle = ink("text");
      context.fillText(text, x, height - 5);
    }
    context.textAlign = "right";
    for (let power = 2; power < top; power += 2) {
      const y = bottom - (power / top) * (bottom - PAD.top);
      context.fillStyle = ink("grid");
      context.fillRect(PAD.left, y, width - PAD.left - PAD.right, 1);
      context.fillStyle = ink("text");
      context.fillText(compact(10 ** power), PAD.left - 5, y + 3);
    }
    describe(node, thresholdNow, store, described);
    if (threshold === null) return;
    const x = axisX(Math.min(threshold, CODES), width);
    context.fillStyle = ink("threshold");
    context.fillRect(x - 1, PAD.top - 4, 2, bottom - PAD.top + 4);
    context.beginPath();
    context.roundRect(x - 4, PAD.top - 6, 8, 12, 3);
    context.fill();
  };
}

function scaleOf(points) {
  const values = points.map((p) => p.precision).filter((value) => value !== null);
  const low = Math.min(1, ...values);
  const floor = [0.999, 0.99, 0.98, 0.95, 0.9, 0.8, 0.6, 0.4, 0.2, 0].find((value) => value <= low - 0.0005) ?? 0;
  return { floor, y: (value, bottom) => bottom - ((value - floor) / (1 - floor)) * (bottom - PAD.top) };
}

function trace(context, points, x, y, keepsGap) {
  context.beginPath();
  let open = false;
  for (const point of points) {
    if (y(point) === null) {
      open = open && !keepsGap;
      continue;
    }
    if (open) context.lineTo(x(point), y(point));
    else context.moveTo(x(point), y(point));
    open = true;
  }
  context.stroke();
}

/** Precision-coverage chart: `draw({count, right, c, threshold, evidence})` with suffix sums of pixels and of P(correct). */
export function makeCurve(node, store, { onCode }) {
  const C = store.classes.length;
  let points = [];
  let thresholdNow = 0;
  const codeAt = (event) => {
    const width = node.clientWidth - PAD.left - PAD.right;
    const coverage = clamp((event.clientX - node.getBoundingClientRect().left - PAD.left) / width, 0, 1);
    const distance = (p) => Math.abs(p.coverage - coverage);
    return points.reduce((best, p) => (distance(p) < distance(best) ? p : best), points[0]).code;
  };
  slide(node, { onCode, codeAt, current: () => thresholdNow });

  return ({ count, right, c, threshold, target, dot, described }) => {
    thresholdNow = threshold;
    points = curve(count, right, c, C);
    const { context, width, height } = sharp(node);
    const ink = inkOf(node);
    const bottom = height - PAD.bottom;
    const { floor, y } = scaleOf(points.filter((p) => p.coverage > 0.002));
    const x = (p) => PAD.left + p.coverage * (width - PAD.left - PAD.right);
    context.font = "10px system-ui, sans-serif";
    for (let i = 0; i <= 4; i += 2) {
      const value = floor + ((1 - floor) * i) / 4;
      context.fillStyle = ink("grid");
      context.fillRect(PAD.left, y(value, bottom), width - PAD.left - PAD.right, 1);
      context.fillStyle = ink("text");
      context.textAlign = "right";
      if (right && !(i === 2 && floor >= 0.99)) context.fillText(String(Math.round(1000 * value) / 10), PAD.left - 5, y(value, bottom) + 3);
      context.textAlign = i === 4 ? "right" : "center";
      context.fillText(`${i * 25} %`, PAD.left + (i / 4) * (width - PAD.left - PAD.right) + (i === 4 ? 6 : 0), height - 5);
    }
    if (right && target > floor) {
      context.strokeStyle = ink("target");
      context.setLineDash([4, 3]);
      trace(context, [{ coverage: 0 }, { coverage: 1 }], x, () => y(target, bottom), true);
      context.setLineDash([]);
    }
    context.strokeStyle = ink("kept");
    context.lineWidth = 2;
    if (right) trace(context, points.filter((p) => p.coverage > 0.0005), x, (p) => (p.precision === null ? null : y(p.precision, bottom)), false);
    const here = dot ?? points[Math.min(threshold, CODES - 1)];
    const dotY = right && here.precision !== null ? y(Math.max(here.precision, floor), bottom) : bottom;
    context.lineWidth = 1;
    context.strokeStyle = ink("threshold");
    context.setLineDash([2, 3]);
    context.beginPath();
    context.moveTo(x(here), PAD.top);
    context.lineTo(x(here), bottom);
    context.stroke();
    context.setLineDash([]);
    context.fillStyle = ink("threshold");
    context.beginPath();
    context.arc(x(here), dotY, 5.5, 0, 7);
    context.fill();
    context.lineWidth = 2;
    context.strokeStyle = ink("paper");
    context.stroke();
    describe(node, threshold, store, described);
  };
}

/** Pixels of each code, and how many of them the thresholds keep: of one class, or of all (c < 0). */
export function binsOf(sums, c, thresholds) {
  const bins = Array.from({ length: CODES }, () => ({ all: 0, kept: 0 }));
  thresholds.forEach((threshold, i) => {
    if (c >= 0 && i !== c) return;
    bins.forEach((bin, k) => {
      const n = at(sums, i, k) - at(sums, i, k + 1);
      bin.all += n;
      if (k >= threshold) bin.kept += n;
    });
  });
  return bins;
}
