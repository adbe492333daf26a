// Small helpers for the document. Text always goes in as text: nothing here parses HTML.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

function assign(node, key, value) {
  if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
  else if (key === "dataset") Object.assign(node.dataset, value);
  else if (key === "css") for (const [name, text] of Object.entries(value)) node.style.setProperty(name, text);
  else if (value === true) node.setAttribute(key, "");
  else if (value !== false && value != null) node.setAttribute(key, value);
}

/** Make an element: `h("button.primary", {onclick}, "Save")`; children that are null or false are left out. */
export function h(tag, props = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const node = document.createElement(name);
  if (classes.length) node.className = classes.join(" ");
  for (const [key, value] of Object.entries(props)) assign(node, key, value);
  node.append(...children.flat().filter((child) => child != null && child !== false));
  return node;
}

/** Make an SVG element. */
export function svg(tag, props = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(props)) assign(node, key, value);
  node.append(...children);
  return node;
}

/** Replace an element's content; returns it. */
export function fill(node, ...children) {
  node.replaceChildren(...children.flat().filter((child) => child != null && child !== false));
  return node;
}

/** Set the text of an element only when it changed (spares layout while the slider moves). */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export const percent = (part, whole, digits = 2) => (whole > 0 ? `${((100 * part) / whole).toFixed(digits)} %` : "–");

const COUNT = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const PLAIN = new Intl.NumberFormat("en");

export const compact = (count) => COUNT.format(count);
export const plain = (count) => PLAIN.format(count);

/** Call `action` once, `ms` after the last call. */
export function debounce(action, ms) {
  let timer = 0;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...args), ms);
  };
}

export const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

/** Size a canvas to its box in device pixels and return its context, scaled so that one unit is one CSS pixel. */
export function sharp(canvas) {
  const { width, height } = canvas.getBoundingClientRect();
  const ratio = window.devicePixelRatio || 1;
  const [w, t] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
  if (canvas.width !== w || canvas.height !== t) [canvas.width, canvas.height] = [w, t];
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}
