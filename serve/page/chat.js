/** The view of one conversation: its messages and the field to write in. */

import { answer, isRunning, proceed, regenerate, stop } from "./answers.js";
import { button, h, icon, iconButton, toast } from "./dom.js";
import { messageView } from "./messages.js";
import { add, changed, changes, conversations, newConversation, newMessage, titleOf } from "./store.js";
import { t } from "./strings.js";

const DRAFT = "camelid.draft";
const NEAR = 80; // pixels from the end within which the view follows the answer

/** The conversation that is shown; a new one is stored with its first message. */
export let current = newConversation();

/** A text field that grows with its text. Enter calls `submit`, except in an input method's composition. */
export function growingField(attributes, submit) {
  const field = h("textarea", { rows: 1, ...attributes });
  const grow = () => {
    field.style.height = "auto";
    field.style.height = `${field.scrollHeight}px`;
  };
  field.addEventListener("input", grow);
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    submit();
  });
  requestAnimationFrame(grow);
  return Object.assign(field, { grow });
}

function welcome(fill) {
  const examples = ["example1", "example2", "example3"].map((name) => button("example", () => fill(t(name)), t(name)));
  const image = h("img", { src: "page/favicon.svg", alt: "", width: 56, height: 56 });
  return h("div", { class: "welcome" }, image, h("h1", {}, t("welcome")), h("div", { class: "examples" }, examples));
}

class Chat {
  constructor(main) {
    this.views = [];
    this.thread = h("div", { class: "thread", role: "log", "aria-live": "polite", "aria-label": t("messages") });
    this.scroller = h("div", { class: "scroller", tabindex: -1, onscroll: () => this.scrolled() }, this.thread);
    this.toEnd = iconButton("down", t("toEnd"), () => this.follow(true), { class: "icon-button to-end", hidden: true });
    this.field = growingField({ id: "prompt", placeholder: t("write"), "aria-label": t("write") }, () => this.send());
    this.field.value = sessionStorage.getItem(DRAFT) ?? "";
    this.field.addEventListener("input", () => sessionStorage.setItem(DRAFT, this.field.value));
    this.field.addEventListener("keydown", (event) => {
      if (event.key === "ArrowUp" && !this.field.value) this.editLast(event);
    });
    this.action = h("button", { type: "submit", class: "send" });
    const onsubmit = (event) => (event.preventDefault(), this.act());
    const form = h("form", { class: "composer", onsubmit }, this.field, this.action);
    main.replaceChildren(this.scroller, h("div", { class: "foot" }, this.toEnd, form, h("p", { class: "hint" }, t("hint"))));
    this.render();
    this.follow(true);
    this.focus();
  }

  /** Puts the cursor into the field, except where that brings up a keyboard on the screen. */
  focus() {
    if (matchMedia("(hover: hover)").matches) this.field.focus({ preventScroll: true });
  }

  /** Shows the messages. The nodes of those that stay are kept, so that screen readers tell only the new ones. */
  render() {
    const again = (how) => () => isRunning(current.id) || this.answer(how);
    const callbacks = { edit: this.edit.bind(this), retry: again(regenerate), proceed: again(proceed), field: growingField };
    const known = new Map(this.views.map((view) => [view.message, view]));
    this.views = current.messages.map((each) => known.get(each) ?? messageView(current, each, callbacks));
    const open = current.messages.at(-1)?.role === "user" && !isRunning(current.id);
    const ask = open && button("retry", callbacks.retry, icon("retry"), t("getAnswer"));
    const fill = (text) => ((this.field.value = text), this.field.grow(), this.field.focus());
    const nodes = this.views.length ? this.views.map(({ node }) => node) : [welcome(fill)];
    if (ask) nodes.push(ask);
    nodes.forEach((node, k) => {
      const there = this.thread.childNodes[k] ?? null;
      if (node !== there) this.thread.insertBefore(node, there);
    });
    while (this.thread.childNodes.length > nodes.length) this.thread.lastChild.remove();
    for (const view of this.views) view.refresh();
    this.refresh();
  }

  /** Shows how far the answer has come; rendering takes at most about a quarter of the time. */
  refreshSoon() {
    this.waiting ??= setTimeout(() => requestAnimationFrame(() => {
      const begun = performance.now();
      this.waiting = null;
      this.refresh();
      this.pause = 3 * (performance.now() - begun);
    }), this.pause ?? 0);
  }

  refresh() {
    if (this.views.length !== current.messages.length) return this.render();
    this.views.at(-1)?.refresh();
    const running = isRunning(current.id);
    if (this.action.dataset.running !== String(running)) {
      this.action.dataset.running = running;
      const label = t(running ? "stop" : "send");
      this.action.replaceChildren(icon(running ? "stop" : "send"));
      this.action.setAttribute("aria-label", label);
      this.action.title = label;
    }
    this.follow(false);
  }

  atEnd() {
    return this.scroller.scrollHeight - this.scroller.scrollTop - this.scroller.clientHeight < NEAR;
  }

  scrolled() {
    this.following = this.atEnd();
    this.toEnd.hidden = this.following;
  }

  follow(always) {
    if (always) this.following = true;
    if (this.following) this.scroller.scrollTop = this.scroller.scrollHeight;
    this.toEnd.hidden = this.following || this.atEnd();
  }

  act() {
    if (isRunning(current.id)) stop(current.id);
    else this.send();
  }

  send() {
    const text = this.field.value.trim();
    if (!text || isRunning(current.id)) return;
    this.field.value = "";
    sessionStorage.removeItem(DRAFT);
    this.field.grow();
    const last = current.messages.at(-1);
    if (last?.role === "assistant" && !last.content) current.messages.pop(); // a failure without text
    current.messages.push(newMessage("user", text));
    if (!conversations.has(current.id)) {
      add(current);
      history.replaceState(null, "", `#/chat/${current.id}`);
    }
    this.answer(answer);
  }

  answer(how) {
    how(current);
    this.render();
    this.follow(true);
    this.focus();
  }

  /** Replaces a message and drops what follows it, which the notice can bring back. */
  edit(message, text) {
    if (isRunning(current.id)) return;
    const conversation = current, before = conversation.messages, k = before.indexOf(message);
    conversation.messages = [...before.slice(0, k), newMessage("user", text)];
    this.answer(answer);
    if (before.length <= k + 2) return;
    toast(t("dropped"), t("undo"), () => {
      stop(conversation.id);
      conversation.messages = before;
      changed(conversation, { list: true });
      if (conversation === current) this.render();
    });
  }

  editLast(event) {
    const last = this.views.findLast((view) => view.edit);
    if (!last || isRunning(current.id)) return;
    event.preventDefault();
    last.edit();
  }
}

/** Shows the conversation of a name, or a new one. Returns the function that ends the view. */
export function showChat(main, id) {
  const isDraft = !conversations.has(current.id) && !current.messages.length;
  current = conversations.get(id) ?? (isDraft ? current : newConversation());
  const view = new Chat(main);
  const onChange = ({ detail }) => detail === current.id && view.refreshSoon();
  const onElsewhere = ({ detail }) => {
    if (detail !== current.id) return;
    current = conversations.get(detail) ?? newConversation();
    view.render();
  };
  const onKey = (event) => {
    if (event.key === "Escape" && !event.isComposing && !document.querySelector("dialog[open]")) stop(current.id);
  };
  changes.addEventListener("conversation", onChange);
  changes.addEventListener("elsewhere", onElsewhere);
  document.addEventListener("keydown", onKey);
  return () => {
    changes.removeEventListener("conversation", onChange);
    changes.removeEventListener("elsewhere", onElsewhere);
    document.removeEventListener("keydown", onKey);
  };
}

/** The name of the conversation that is shown. */
export const currentTitle = () => titleOf(current) || t("newChat");
