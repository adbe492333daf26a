// Weight of each scale, computed by the server in a process of its own when somebody asks for it.

import { api } from "./api.js";
import { byId, fill, h } from "./dom.js";
import { makeLayer, paintRamp, rampTable } from "./paint.js";
import { decodeGrey } from "./png.js";
import { onScene, scene } from "./scene.js";
import { state, update, watch } from "./state.js";
import { report } from "./toast.js";

const layer = makeLayer(byId("layer-weights"));
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
let scales = [];
let turn = 0;

const wanted = () => state.layers.has("weights") && scene.planes;

function showScales(note = "") {
  byId("scales").hidden = !state.layers.has("weights");
  const choose = (scale) => h("button.small", { type: "button", "aria-pressed": String(scale === state.scale), onclick: () => update({ scale }) }, `×${scale}`);
  fill(byId("scales"), note && h("span.muted", {}, note), scales.map(choose));
}

async function compute(name, mine) {
  let answer = await api.post("weights", { name });
  while (answer.state === "running" && mine === turn) {
    showScales(`computing… ${answer.seconds} s`);
    await pause(700);
    answer = await api.json("weights", { name });
  }
  return answer;
}

async function load() {
  const mine = ++turn;
  layer.canvas.hidden = true;
  if (!wanted()) return showScales();
  try {
    const answer = await compute(scene.name, mine);
    if (mine !== turn) return null;
    scales = answer.scales;
    if (!scales.includes(state.scale)) update({ scale: scales[0] });
    const plane = await decodeGrey(await api.bytes("weight", { name: scene.name, scale: state.scale }));
    if (mine !== turn) return null;
    layer.resize(plane.width, plane.height);
    paintRamp(layer, plane.data, rampTable());
    layer.canvas.hidden = false;
    layer.canvas.style.opacity = String(state.opacity / 100);
    return showScales();
  } catch (error) {
    if (mine === turn) { showScales("not available"); report(error); }
    return null;
  }
}

export function startWeights() {
  watch(["layers", "scale"], load);
  watch(["opacity"], () => { layer.canvas.style.opacity = String(state.opacity / 100); });
  onScene((_, what) => what === "image" && load());
}
