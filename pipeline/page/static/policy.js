// "Save policy": the thresholds on the screen become the JSON that `pseudo-label` reads.

import { api } from "./api.js";
import { byId, setText } from "./dom.js";
import { state, thresholdParams, watch } from "./state.js";
import { report, toast } from "./toast.js";

let store = null;
let saved = "";

const now = () => JSON.stringify(thresholdParams(state, store));

function show() {
  const fresh = now() === saved;
  byId("save-policy").disabled = store.kind !== "raw";
  byId("save-policy").classList.toggle("done", fresh);
  setText(byId("save-label"), fresh ? "Policy saved" : "Save policy");
}

/** Write the thresholds of the screen next to the store. */
export async function savePolicy() {
  const sent = now();
  try {
    const answer = await api.post("policy", JSON.parse(sent));
    saved = sent;
    show();
    toast(`Saved ${answer.file}`, { kind: "good", hint: answer.hint });
  } catch (error) {
    report(error);
  }
}

export function startPolicy(data) {
  store = data;
  byId("save-policy").addEventListener("click", savePolicy);
  watch(["base", "pins"], show);
  show();
}
