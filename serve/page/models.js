/** The choice of the model: what is served, adapters in a group under their base. */

import { models } from "./api.js";
import { current } from "./chat.js";
import { h, toast } from "./dom.js";
import { prefer, preferences } from "./preferences.js";
import { changed } from "./store.js";
import { t } from "./strings.js";

let served = [], failure = "", shown = null;

const select = () => document.getElementById("model");
const option = ({ id }) => h("option", { value: id }, id);

/** A base as an option, and the group of its adapters. */
function optionsOf(base) {
  const adapters = served.filter(({ parent }) => parent === base.id);
  return [option(base), adapters.length > 0 && h("optgroup", { label: t("adaptersOf", { name: base.id }) }, adapters.map(option))];
}

/** Shows what is served, with the model that the current conversation is asked by, even where it is gone. */
export function showModels() {
  const names = new Set(served.map(({ id }) => id)), chosen = current.model ?? preferences.model ?? null;
  const state = JSON.stringify([served, failure, chosen, t("noModels")]);
  if (state === shown) return; // new options would close a list that is open
  shown = state;
  const options = served.filter(({ parent }) => !names.has(parent)).flatMap(optionsOf);
  if (!served.length) options.push(h("option", { value: "" }, t("noModels")));
  else if (!names.has(chosen)) options.push(h("option", { value: chosen }, t("notServed", { name: chosen })));
  select().replaceChildren(...options.filter(Boolean));
  select().value = served.length ? chosen : "";
  select().title = failure;
}

/** Asks for what is served. New conversations get another model where theirs is gone, which a notice says. */
export async function loadModels() {
  try {
    [served, failure] = [await models(), ""];
  } catch (error) {
    failure = error.message; // what was served stays to be chosen: the server may come back
  }
  const [first] = served, { model } = preferences;
  if (first && !served.some(({ id }) => id === model)) {
    prefer({ model: first.id });
    if (model) toast(t("modelGone", { name: model, other: first.id }));
  }
  showModels();
}

/** Takes the choice for this conversation and for new ones. */
export function chooseModel() {
  prefer({ model: select().value || null });
  if (!current.messages.length) return showModels();
  current.model = preferences.model;
  changed(current, { list: true });
}

/** Asks again where no list has come yet. */
export const loadMissing = () => served.length || loadModels();
