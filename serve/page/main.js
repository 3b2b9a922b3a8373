/** Starts the page: language, conversations, models, and the view that the address names. */

import { keys } from "./api.js";
import { currentTitle, showChat } from "./chat.js";
import { hideAlternatives } from "./tokens.js";
import { toast } from "./dom.js";
import { prefer } from "./preferences.js";
import { openSettings, showModels } from "./settings.js";
import { showList } from "./sidebar.js";
import { changes, load } from "./store.js";
import { t, translate } from "./strings.js";

/** Views by the first part of the address after "#/": (main element, rest of the address) -> function that ends the view. */
const VIEWS = { chat: showChat };

const byId = (id) => document.getElementById(id);
let leave = () => {};

const showTitle = () => (document.title = `${currentTitle()} – camelid`);

function route() {
  const [, name, rest] = location.hash.split("/");
  leave();
  hideAlternatives();
  setSidebar(false);
  leave = (Object.hasOwn(VIEWS, name) ? VIEWS[name] : VIEWS.chat)(byId("view"), rest);
  showList();
  showTitle();
}

function showAgain() {
  translate(document);
  route();
}

function setSidebar(isOpen) {
  document.body.classList.toggle("sidebar-open", isOpen);
  byId("menu").setAttribute("aria-expanded", isOpen);
}

function newChat() {
  if (location.hash === "#/chat") route();
  else location.hash = "#/chat";
}

/** Asks for the API key; null where the user declines. */
function askKey(wasWrong) {
  const dialog = byId("key"), field = byId("key-field");
  byId("key-text").textContent = t(wasWrong ? "keyWrong" : "keyText");
  field.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const given = () => (dialog.returnValue === "ok" ? field.value.trim() : "") || null;
    dialog.addEventListener("close", () => resolve(given()), { once: true });
  });
}

function listen() {
  byId("skip").addEventListener("click", () => byId("prompt").focus());
  byId("menu").addEventListener("click", () => setSidebar(!document.body.classList.contains("sidebar-open")));
  byId("backdrop").addEventListener("click", () => setSidebar(false));
  byId("new").addEventListener("click", newChat);
  byId("open-settings").addEventListener("click", () => openSettings(showAgain));
  byId("close-settings").addEventListener("click", () => byId("settings").close());
  byId("settings").addEventListener("click", ({ target }) => target === byId("settings") && byId("settings").close());
  byId("key-cancel").addEventListener("click", () => byId("key").close());
  byId("model").addEventListener("change", ({ target }) => prefer({ model: target.value || null }));
  byId("model").addEventListener("focus", ({ target }) => target.value || showModels());
  document.addEventListener("scroll", hideAlternatives, true);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") setSidebar(false);
    if (event.ctrlKey && event.shiftKey && event.code === "KeyO") event.preventDefault(), newChat();
  });
  changes.addEventListener("list", () => (showList(), showTitle()));
  changes.addEventListener("failed", ({ detail }) => toast(t("notKept", { why: detail })));
  addEventListener("hashchange", route);
}

keys.ask = askKey;
translate(document);
listen();
await load();
route();
await showModels();
