/** The panel of settings. */

import { forgetKey, hasKey } from "./api.js";
import { current } from "./chat.js";
import { button, h, toast } from "./dom.js";
import { prefer, preferences, SETTINGS } from "./preferences.js";
import { add, changed, conversations } from "./store.js";
import { languages, t } from "./strings.js";
import { download, exported, imported } from "./transfer.js";

const dialog = () => document.getElementById("settings");

function numberField({ name, min, max, step }) {
  const bounds = { type: "number", min, max, step, value: preferences.sampling[name] };
  const field = h("input", { id: `set-${name}`, ...bounds, placeholder: t("ofModel"), "aria-describedby": `help-${name}` });
  const message = h("small", { id: `help-${name}` }, t(`${name}Help`));
  field.addEventListener("input", () => {
    const isValid = field.checkValidity();
    message.textContent = isValid ? t(`${name}Help`) : field.validationMessage;
    field.setAttribute("aria-invalid", !isValid);
    if (!isValid) return;
    const { [name]: _, ...others } = preferences.sampling;
    prefer({ sampling: field.value === "" ? others : { ...others, [name]: field.valueAsNumber } });
  });
  return h("div", { class: "field" }, h("label", { for: field.id }, t(name)), field, message);
}

const inlineField = (...children) => h("div", { class: "field inline" }, children);

function choice(name, label, options, onchange) {
  const select = h("select", { id: `set-${name}`, onchange: () => onchange(select.value || undefined) });
  for (const [value, text] of options) select.append(h("option", { value, selected: (preferences[name] ?? "") === value }, text));
  return inlineField(h("label", { for: select.id }, label), select);
}

function section(title, ...content) {
  return h("section", {}, h("h3", {}, title), content);
}

function systemField() {
  const field = h("textarea", { id: "set-system", rows: 4, placeholder: t("systemNone") });
  field.value = current.system;
  field.addEventListener("input", () => ((current.system = field.value), changed(current)));
  return h("div", { class: "field" }, h("label", { for: field.id }, t("system")), field, h("small", {}, t("systemHelp")));
}

function display(again) {
  const check = h("input", { type: "checkbox", id: "set-probabilities", checked: Boolean(preferences.probabilities) });
  check.addEventListener("change", () => prefer({ probabilities: check.checked }));
  const theme = (value) => {
    prefer({ theme: value });
    if (value) document.documentElement.dataset.theme = value;
    else delete document.documentElement.dataset.theme;
  };
  return [
    inlineField(h("label", { for: check.id }, t("showProbabilities"), h("small", {}, t("probabilitiesHelp"))), check),
    choice("language", t("language"), [["", t("ofBrowser")], ...languages], (value) => (prefer({ language: value }), again())),
    choice("theme", t("theme"), [["", t("ofBrowser")], ["light", t("light")], ["dark", t("dark")]], theme),
  ];
}

async function importFile(file) {
  try {
    const found = imported(await file.text());
    found.forEach(add);
    toast(t("imported", { n: found.length }));
    dialog().close();
    if (found.length) location.hash = `#/chat/${found[0].id}`;
  } catch (error) {
    dialog().querySelector(".import-error").textContent = `${file.name}: ${error.message}`;
  }
}

function files() {
  const nameOf = (format) => `camelid-${format}-${new Date().toISOString().slice(0, 10)}.json`;
  const save = (which, format) => download(exported(which, format), nameOf(format));
  const hidden = { class: "hidden", tabindex: -1, "aria-label": t("import") };
  const input = h("input", { type: "file", accept: ".json,.jsonl", id: "import-file", ...hidden });
  input.addEventListener("change", () => input.files[0] && importFile(input.files[0]).then(() => (input.value = "")));
  const row = (label, which) => {
    const buttons = ["sharegpt", "openai"].map((format) => button("secondary", () => save(which(), format), t(format)));
    return inlineField(h("span", {}, label), h("span", { class: "pair" }, buttons));
  };
  const forget = button("secondary", () => (forgetKey(), forget.parentNode.remove()), t("forget"));
  return [
    row(t("exportThis"), () => [current]),
    row(t("exportAll"), () => [...conversations.values()]),
    inlineField(h("span", {}, t("importHelp")), button("secondary", () => input.click(), t("import")), input),
    h("p", { class: "import-error", role: "alert" }),
    hasKey() && inlineField(h("span", {}, t("keyKept")), forget),
  ];
}

/** Opens the panel; `again` shows the whole page anew, after a change of language. */
export function openSettings(again) {
  const panel = dialog();
  const fill = () =>
    panel.querySelector(".panel").replaceChildren(
      section(t("thisChat"), systemField()),
      section(t("sampling"), h("div", { class: "grid" }, SETTINGS.map(numberField)), button("text-button", reset, t("reset"))),
      section(t("display"), display(() => (again(), fill()))),
      section(t("files"), files()),
    );
  const reset = () => (prefer({ sampling: {} }), fill());
  fill();
  panel.showModal();
}
