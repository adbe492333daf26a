// The keyboard: what its table of keys (keys.js) says is done, and listed on the help page.

import { byId, fill, h } from "./dom.js";

let groups = [];

function find(event) {
  for (const [, entries] of groups) {
    for (const entry of entries) if (entry.keys.includes(event.key) && Boolean(entry.ctrl) === (event.ctrlKey || event.metaKey)) return entry;
  }
  return null;
}

function typing(event) {
  if (event.key === "Enter" && event.target.matches?.("#filter, #note")) event.target.blur();
  const field = event.target.closest?.("input, select, textarea");
  return field && !(field.type === "checkbox" || (field.type === "range" && !event.key.startsWith("Arrow") && event.key !== "Home" && event.key !== "End"));
}

function handle(event) {
  if (event.altKey || event.defaultPrevented || document.querySelector("dialog[open]")) return;
  const entry = find(event);
  if (!entry || (typing(event) && !entry.everywhere)) return;
  if (event.target.closest?.("button, [role=slider]") && (event.key === "Enter" || event.key === " ")) return;
  event.preventDefault();
  if (!(event.repeat && entry.once)) entry.run(event); // a key that is held down marks one image
}

// Arrow keys and letters that follow a choice by mouse are meant for the images, not for the list of choices.
function leaveChoice() {
  let byMouse = false;
  document.addEventListener("pointerdown", () => { byMouse = true; });
  document.addEventListener("keydown", () => { byMouse = false; });
  document.addEventListener("change", ({ target }) => { if (byMouse && target.matches("select")) target.blur(); });
}

/** Act on keys from now on: [[title, [{keys: ["ArrowLeft"], show: "←", text, run}]]]; `everywhere`: in fields, too. */
export function startKeyboard(table) {
  groups = table;
  document.addEventListener("keydown", handle);
  leaveChoice();
  const list = ([title, entries]) => h("section", {}, h("h3", {}, title),
    h("dl", {}, entries.map((entry) => [h("dt", {}, entry.show.split(" ").map((key) => h("kbd", {}, key))), h("dd", {}, entry.text)]).flat()));
  fill(byId("help-keys"), groups.map(list));
}
