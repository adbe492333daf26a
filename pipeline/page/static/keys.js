// The table of keys: what each does, and how the help page calls it.

import { byId } from "./dom.js";
import { nudge } from "./panel.js";
import { savePolicy } from "./policy.js";
import { cancelRegion, closeRegion, mark, startRegion, undo } from "./review.js";
import { state, update } from "./state.js";
import { LAYERS, toggleCompare, toggleLayer } from "./toolbar.js";
import { actualSize, fit, zoomBy } from "./viewport.js";

/** One step back at a time: out of a field, then out of a region, then out of compare and the chosen class. */
function escape() {
  const field = document.activeElement;
  if (field && field !== document.body && field !== byId("stage")) field.blur();
  else if (!cancelRegion()) update({ compare: null, focus: -1 });
}

/** Groups of keys, [title, entries]; `go(steps)` goes to another image, `markAndGo(verdict)` marks this one first. */
export function keyTable(store, go, markAndGo) {
  return [
    ["Images", [
      { keys: ["ArrowRight"], show: "→", text: "next image", run: () => go(1) },
      { keys: ["ArrowLeft"], show: "←", text: "previous image", run: () => go(-1) },
      { keys: ["ArrowDown"], show: "↓", text: "a row down", run: () => go(2) },
      { keys: ["ArrowUp"], show: "↑", text: "a row up", run: () => go(-2) },
      { keys: ["/"], show: "/", text: "filter by name", run: () => byId("filter").focus() },
    ]],
    ["Review", [
      { keys: ["A"], once: true, show: "A", text: "accept, then the next image", run: () => markAndGo("accept") },
      { keys: ["F"], once: true, show: "F", text: "flag, then the next image", run: () => markAndGo("flag") },
      { keys: ["a"], once: true, show: "a", text: "accept and stay", run: () => mark("accept") },
      { keys: ["f"], once: true, show: "f", text: "flag and stay", run: () => mark("flag") },
      { keys: ["z"], ctrl: true, once: true, show: "Ctrl+Z", text: "withdraw the last mark", run: undo },
      { keys: ["r"], show: "r", text: "draw a region", run: startRegion },
      { keys: ["n"], show: "n", text: "write a note", run: () => byId("note").focus() },
      { keys: ["Enter"], show: "Enter", text: "close the region", run: closeRegion },
      { keys: ["u"], show: "u", text: "click audit", run: () => byId("open-audit").click() },
      { keys: ["q"], show: "q", text: "questions about regions", run: () => byId("open-ask").click() },
    ]],
    ["Threshold", [
      { keys: ["["], show: "[", text: "one step lower", run: () => nudge(-1) },
      { keys: ["]"], show: "]", text: "one step higher", run: () => nudge(1) },
      { keys: ["{"], show: "{", text: "ten steps lower", run: () => nudge(-10) },
      { keys: ["}"], show: "}", text: "ten steps higher", run: () => nudge(10) },
      { keys: ["p"], show: "p", text: "policy or one threshold", run: () => store.policy && update({ base: state.base === "policy" ? 0 : "policy" }) },
      { keys: ["s"], ctrl: true, everywhere: true, show: "Ctrl+S", text: "save policy", run: savePolicy },
    ]],
    ["Layers and view", [
      ...LAYERS.map((name, i) => ({ keys: [String(i + 1)], show: String(i + 1), text: { labels: "label overlay", heat: "confidence heat map", human: "human label", dropped: "dropped pixels", weights: "scale weights" }[name] ?? name, run: () => toggleLayer(name) })),
      { keys: ["c"], show: "c", text: "compare, swipe", run: toggleCompare },
      { keys: ["+", "="], show: "+", text: "zoom in", run: () => zoomBy(1.4) },
      { keys: ["-"], show: "-", text: "zoom out", run: () => zoomBy(1 / 1.4) },
      { keys: ["0", "z"], show: "0", text: "whole picture", run: fit },
      { keys: ["x"], show: "x", text: "one pixel to one pixel", run: actualSize },
    ]],
    ["Page", [
      { keys: ["?"], show: "?", text: "this help", run: () => byId("help").showModal() },
      { keys: ["Escape"], everywhere: true, show: "Esc", text: "leave field, region, compare or class", run: escape },
    ]],
  ];
}
