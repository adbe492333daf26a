// Short messages at the foot of the page, and the line that says the server is gone.

import { byId, h } from "./dom.js";
import { icon } from "./icons.js";

/** Show a message; `kind` is "", "good" or "bad". Errors stay longer and carry their hint; `action` is a button. */
export function toast(message, { kind = "", hint = "", action = null } = {}) {
  // One word about saving at a time, and nothing twice.
  [...byId("toasts").children].filter((old) => (kind === "good" && old.matches(".good")) || old.firstChild.textContent === message).forEach((old) => old.remove());
  const note = h(`div.toast${kind ? `.${kind}` : ""}`, { role: kind === "bad" ? "alert" : "status" }, h("span", {}, message), hint && h("small", {}, hint));
  if (action) note.append(action);
  note.append(h("button.ghost", { type: "button", "aria-label": "dismiss", onclick: () => note.remove() }, icon("close")));
  byId("toasts").append(note);
  if (document.querySelector("dialog[open]")) { // above the dialog, the last one to be shown
    byId("toasts").hidePopover();
    byId("toasts").showPopover();
  }
  while (byId("toasts").childElementCount > 3) byId("toasts").firstChild.remove();
  setTimeout(() => note.remove(), kind === "bad" ? 9000 : 3500);
}

/** Report an error of any kind; `about` says which image it is about. */
export function report(error, about = "") {
  if (error.name === "AbortError") return;
  if (error.code === "offline") offline();
  // A dialog covers the line that says so.
  if (error.code !== "offline" || about || document.querySelector("dialog[open]")) toast(about ? `${about}: ${error.message}` : error.message, { kind: "bad", hint: error.hint });
}

export const offline = () => { byId("offline").hidden = false; };
export const online = () => { byId("offline").hidden = true; };
