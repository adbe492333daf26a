// Class colours: the data set's own, or a set that stays apart for any colour vision (the server picks it).

import { state } from "./state.js";

/** [r, g, b] of each class in the chosen palette. */
export const coloursOf = (store) => (state.palette === "safe" ? store.safeColours : store.classes.map((row) => row.colour));

export const css = ([r, g, b]) => `rgb(${r} ${g} ${b})`;
