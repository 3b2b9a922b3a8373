/** The list of conversations. */

import { current } from "./chat.js";
import { isRunning, stop } from "./answers.js";
import { h, iconButton, toast } from "./dom.js";
import { add, changed, conversations, remove, titleOf } from "./store.js";
import { t } from "./strings.js";

function rename(item, conversation) {
  const field = h("input", { value: titleOf(conversation), "aria-label": t("rename"), maxlength: 200 });
  let ended = false;
  const end = (keep) => {
    if (ended) return;
    ended = true; // removing the field makes it lose the focus, which ends it too
    field.remove();
    if (keep && field.value.trim()) conversation.title = field.value.trim();
    changed(conversation, { list: true });
  };
  field.addEventListener("blur", () => end(true));
  field.addEventListener("keydown", (event) => {
    if (event.isComposing || event.keyCode === 229) return;
    if (event.key !== "Enter" && event.key !== "Escape") return;
    event.stopPropagation();
    end(event.key === "Enter");
    document.querySelector(`#conversations [href$="${conversation.id}"]`)?.focus();
  });
  item.replaceChildren(field);
  field.select();
}

function discard(conversation) {
  stop(conversation.id);
  remove(conversation.id);
  if (conversation.id === current.id) location.hash = "#/chat";
  toast(t("deleted", { title: titleOf(conversation) }), t("undo"), () => {
    add(conversation);
    location.hash = `#/chat/${conversation.id}`;
  });
}

function itemOf(conversation) {
  const shown = conversation.id === current.id, title = titleOf(conversation) || t("newChat");
  const item = h("li", { class: isRunning(conversation.id) ? "running" : null });
  item.append(
    h("a", { href: `#/chat/${conversation.id}`, "aria-current": shown && "page", title }, title),
    iconButton("edit", t("renameOf", { title }), () => rename(item, conversation)),
    iconButton("trash", t("deleteOf", { title }), () => discard(conversation)),
  );
  return item;
}

/** Shows all conversations, the newest first. A focus among them stays at its place. */
export function showList() {
  const list = document.getElementById("conversations");
  if (list.querySelector("input")) return; // a title is being typed
  const sorted = [...conversations.values()].sort((a, b) => b.created - a.created);
  const place = [...list.children].findIndex((item) => item.contains(document.activeElement));
  list.replaceChildren(...sorted.map(itemOf));
  if (place >= 0) (list.querySelectorAll("a")[Math.min(place, sorted.length - 1)] ?? document.getElementById("new")).focus();
}
