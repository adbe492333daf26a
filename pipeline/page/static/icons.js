// Line icons, drawn on a 16 x 16 grid.

import { svg } from "./dom.js";

const PATHS = {
  accept: "M3 8.5l3.2 3.2L13 4.8",
  correct: "M3 13l.6-3L10.500 3a1.500 1.500 0 012.200 2.200L6 12.400z",
  flag: "M4 14V2.5m0 .5h7.5l-2 2.75 2 2.75H4",
  region: "M3 5.5l5-3 5 3.5-1.5 6.5h-7z",
  eye: "M1.5 8S4 3.5 8 3.5 14.5 8 14.5 8 12 12.5 8 12.5 1.5 8 1.5 8zM8 10a2 2 0 100-4 2 2 0 000 4z",
  close: "M4 4l8 8m0-8l-8 8",
  left: "M10 3L5 8l5 5",
  right: "M6 3l5 5-5 5",
  plus: "M8 3v10M3 8h10",
  minus: "M3 8h10",
  fit: "M2.5 6V2.500H6M10 2.500h3.500V6M13.500 10v3.500H10M6 13.500H2.500V10",
  swipe: "M8 2v12M5.500 5.500L3 8l2.500 2.500M10.500 5.500L13 8l-2.500 2.500",
  target: "M8 1.500v3m0 7v3M1.500 8h3m7 0h3M8 11a3 3 0 100-6 3 3 0 000 6z",
  palette: "M8 2a6 6 0 000 12c1 0 1.500-.700 1.500-1.500 0-1-1-1.200-1-2 0-.700.600-1 1.300-1H11.500A2.500 2.500 0 0014 7c0-2.800-2.700-5-6-5zM5 7.500h.01M7 4.800h.01M10 5h.01",
  theme: "M8 2a6 6 0 100 12V2zM8 2a6 6 0 010 12",
  help: "M6 6a2 2 0 113 1.700c-.700.400-1 .800-1 1.600M8 12h.01M8 14.500a6.500 6.500 0 100-13 6.500 6.500 0 000 13z",
  ask: "M2.500 3h11v8H8l-3 2.500V11H2.500zM6.500 5.800a1.500 1.500 0 112 1.400c-.400.200-.500.400-.500.800M8 9.500h.01",
  save: "M3 2.500h8l2.500 2.500v8.500H2.500v-11zM5 2.500v3.500h5v-3.500M5 13.500V9.500h6v4",
  warn: "M8 2L1.500 13.500h13zM8 6.500v3M8 11.700h.01",
  undo: "M6 3.500L3 6.500l3 3M3 6.500h6a3.500 3.500 0 010 7H6",
  link: "M6.500 9.500l3-3M7 5l1.500-1.500a2.500 2.500 0 013.600 3.500L10.500 8.500M9 11l-1.500 1.500a2.500 2.500 0 01-3.600-3.500L5.500 7.500",
  search: "M7 12A5 5 0 107 2a5 5 0 000 10zm3.500-1.500L14 14",
};

export function icon(name) {
  return svg("svg", { viewBox: "0 0 16 16", class: "icon", "aria-hidden": "true", focusable: "false" }, svg("path", { d: PATHS[name] }));
}

/** Put icons into elements marked with data-icon. */
export function placeIcons(root = document) {
  for (const node of root.querySelectorAll("[data-icon]")) if (!node.querySelector("svg")) node.prepend(icon(node.dataset.icon));
}
