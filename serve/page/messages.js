/** The view of a message: text, state, figures, buttons. */

import { canProceed } from "./answers.js";
import { button, copyFrom, h, icon, iconButton } from "./dom.js";
import { Markdown } from "./markdown.js";
import { preferences } from "./preferences.js";
import { number, t } from "./strings.js";
import { hideAlternatives, Tokens } from "./tokens.js";

const copied = (clicked, text) => copyFrom(clicked, text, t("copied"));

function userMessage(message, { edit, field }) {
  const node = h("article", { class: "message user", "aria-label": t("you") });
  const show = () => {
    const tools = [
      iconButton("copy", t("copy"), (event) => copied(event.currentTarget, message.content)),
      iconButton("edit", t("edit"), open),
    ];
    node.replaceChildren(h("div", { class: "bubble", dir: "auto" }, message.content), h("div", { class: "tools" }, tools));
  };
  const open = () => {
    const close = () => (show(), document.getElementById("prompt").focus());
    const submit = () => text.value.trim() && edit(message, text.value.trim());
    const text = field({ "aria-label": t("edit") }, submit);
    text.value = message.content;
    text.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !event.isComposing) event.stopPropagation(), close();
    });
    const buttons = [
      button("text-button", close, t("cancel")),
      button("primary", submit, t("saveAndSend")),
    ];
    const hint = h("p", { class: "hint" }, t("editHint"));
    node.replaceChildren(h("div", { class: "editor" }, text, hint, h("div", { class: "buttons" }, buttons)));
    text.focus();
  };
  show();
  return { message, node, refresh: () => {}, edit: open };
}

/** Speed and numbers of tokens: the server's, or of an answer that was cut off those that came. */
function figures({ usage, count, first, seconds, model }) {
  const parts = [], n = usage?.completion ?? count;
  if (model) parts.push(model);
  if (n) parts.push(t(usage ? "written" : "came", { n: number(n) }));
  if (n > 1 && seconds > 0.05) parts.push(t("rate", { n: ((n - 1) / seconds).toFixed(1) }));
  if (usage) parts.push(t("read", { n: number(usage.prompt), cached: number(usage.cached) }));
  if (first !== undefined) parts.push(t("first", { n: first.toFixed(2) }));
  return parts.join(" · ");
}

function failure({ error = {} }) {
  const kind = [error.status, error.type, error.code].filter(Boolean).join(" · ");
  const text = h("p", {}, error.message ?? t("failed")), help = error.code === "context_length_exceeded" && h("p", {}, t("tooLong"));
  return h("div", { class: "failure", role: "alert" }, text, help, kind && h("p", { class: "hint" }, kind));
}

function noteOf({ state, reason, content }) {
  if (state === "stopped" || state === "interrupted") return t(state);
  return state === "done" && (reason === "length" ? t("length") : !content && t("empty"));
}

function assistantMessage(conversation, message, { retry, proceed }) {
  const body = h("div", { class: "text", dir: "auto" }), foot = h("div", { class: "message-foot" });
  const node = h("article", { class: "message assistant", "aria-label": t("assistant") }, body, foot);
  let content = null, footing = null, asTokens = Boolean(preferences.probabilities);
  body.addEventListener("click", ({ target }) => {
    if (target.matches("[data-copy]")) copied(target, target.closest(".code").querySelector("code").textContent);
  });

  const toggle = () => {
    asTokens = !asTokens;
    content = null;
    refresh();
  };
  const tools = (isLast) => [
    message.content && iconButton("copy", t("copy"), (event) => copied(event.currentTarget, message.content)),
    isLast && iconButton("retry", t("regenerate"), retry),
    message.tokens && iconButton("chances", t("probabilities"), toggle, { "aria-pressed": String(asTokens) }),
  ];
  const refresh = () => {
    const kind = asTokens && message.tokens ? Tokens : Markdown;
    if (!(content instanceof kind)) {
      hideAlternatives();
      body.replaceChildren();
      content = new kind(body);
    }
    content.update(kind === Tokens ? message.tokens : message.content);
    const running = message.state === "running", waiting = running && !message.content;
    body.classList.toggle("waiting", waiting);
    node.setAttribute("aria-busy", running);
    const isLast = conversation.messages.at(-1) === message, wanted = [message.state, waiting, isLast, asTokens].join();
    if (wanted === footing) return;
    footing = wanted;
    if (running) return foot.replaceChildren(h("p", { class: "status" }, waiting ? t("thinking") : ""));
    const note = noteOf(message), failed = message.state === "failed";
    const onward = isLast && canProceed(message) && button("retry", proceed, icon("onward"), t("proceed"));
    const again = isLast && failed && button("retry", retry, icon("retry"), t("retry"));
    const line = h("div", { class: "tools" }, tools(isLast), h("span", { class: "figures" }, figures(message)));
    const ways = (onward || again) && h("div", { class: "ways" }, onward, again);
    const parts = [note && h("p", { class: "note" }, note), failed && failure(message), ways, (message.content || !failed) && line];
    foot.replaceChildren(...parts.filter(Boolean));
  };
  refresh();
  return { message, node, refresh };
}

/** A message of a conversation: its node, `refresh()` after it changed, and `edit()` where it can be edited. */
export function messageView(conversation, message, callbacks) {
  return message.role === "user" ? userMessage(message, callbacks) : assistantMessage(conversation, message, callbacks);
}
