/** Starts the page: language, conversations, models, and the conversation that the address names. */

import { stop } from "./answers.js";
import { keys } from "./api.js";
import { current, currentTitle, showChat } from "./chat.js";
import { toast } from "./dom.js";
import { chooseModel, loadMissing, loadModels, showModels } from "./models.js";
import { openSettings } from "./settings.js";
import { showList } from "./sidebar.js";
import { changes, conversations, load } from "./store.js";
import { t, translate } from "./strings.js";
import { hideAlternatives } from "./tokens.js";

const byId = (id) => document.getElementById(id);
let leave = () => {};

/** Shows what stands around the conversation and changes with it. */
function showFrame() {
  showList();
  showModels();
  document.title = `${currentTitle()} – camelid`;
}

function route() {
  leave();
  hideAlternatives();
  setSidebar(false);
  leave = showChat(byId("view"), location.hash.split("/")[2]);
  showFrame();
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
  byId("model").addEventListener("change", chooseModel);
  byId("model").addEventListener("focus", loadMissing);
  document.addEventListener("visibilitychange", () => document.hidden || loadModels());
  document.addEventListener("scroll", hideAlternatives, true);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") setSidebar(false);
    if (event.ctrlKey && event.shiftKey && event.code === "KeyO") event.preventDefault(), newChat();
  });
  changes.addEventListener("list", showFrame);
  changes.addEventListener("list", () => current.messages.at(-1)?.state === "done" && loadMissing());
  changes.addEventListener("elsewhere", ({ detail }) => conversations.has(detail) || stop(detail));
  changes.addEventListener("elsewhere", showModels);
  changes.addEventListener("failed", ({ detail }) => toast(t("notKept", { why: detail })));
  addEventListener("hashchange", route);
}

keys.ask = askKey;
translate(document);
listen();
await load();
route();
await loadModels();
