/**
 * Conversations, kept in IndexedDB.
 *
 * A conversation is {id, title, system, messages, created, updated}, a message {role: "user" | "assistant", content}; an
 * answer has further fields, which `answers.js` lists. All are held in memory and written a moment after a change. What
 * a closing page has not written yet goes into localStorage, the one store that is written at once.
 */

const UNSAVED = "camelid.unsaved.", DELAY = 300;

export const conversations = new Map();
/** Events "list" (the set or a title changed), "conversation" (detail: id) and "failed" (detail: why nothing is kept). */
export const changes = new EventTarget();

const channel = new BroadcastChannel("camelid");
const unsaved = new Map(); // id -> number of the change that is not written yet
let changeCount = 0;
let database = null;

const tell = (name, detail) => changes.dispatchEvent(new CustomEvent(name, { detail }));

function promised(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

const table = (mode) => database.transaction("conversations", mode).objectStore("conversations");

/** A name that no other conversation has; `crypto.randomUUID` is missing on pages without https. */
export function newId() {
  return [Date.now(), ...crypto.getRandomValues(new Uint32Array(2))].map((number) => number.toString(36)).join("-");
}

export function newConversation() {
  return { id: newId(), title: "", system: "", messages: [], created: Date.now(), updated: Date.now() };
}

/** The title that was given, or else the beginning of the first message. */
export function titleOf({ title, messages }) {
  return title || [...(messages[0]?.content ?? "").trim().split("\n")[0]].slice(0, 60).join("");
}

/** Reads all conversations, those that the last page left unsaved too. Answers that were cut off become "interrupted". */
export async function load() {
  try {
    const opening = indexedDB.open("camelid", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("conversations", { keyPath: "id" });
    database = await promised(opening);
    for (const each of await promised(table("readonly").getAll())) conversations.set(each.id, each);
  } catch (error) {
    tell("failed", String(error));
  }
  for (const key of Object.keys(localStorage).filter((name) => name.startsWith(UNSAVED))) {
    const left = JSON.parse(localStorage.getItem(key));
    if (left.updated >= (conversations.get(left.id)?.updated ?? 0)) {
      conversations.set(left.id, left);
      unsaved.set(left.id, ++changeCount);
    }
  }
  await write();
  const messages = [...conversations.values()].flatMap((each) => each.messages);
  for (const each of messages) if (each.state === "running") each.state = "interrupted";
}

async function write() {
  if (!database) return;
  for (const [id, change] of [...unsaved]) {
    if (!unsaved.has(id)) continue; // removed meanwhile
    try {
      await promised(table("readwrite").put(conversations.get(id)));
      if (unsaved.get(id) === change) unsaved.delete(id);
      localStorage.removeItem(UNSAVED + id);
      channel.postMessage(id);
    } catch (error) {
      tell("failed", String(error));
    }
  }
}

let timer = null;

/** Writes a conversation soon. */
export function save(conversation) {
  if (!conversations.has(conversation.id)) return;
  conversation.updated = Date.now();
  unsaved.set(conversation.id, ++changeCount);
  timer ??= setTimeout(() => ((timer = null), write()), DELAY);
}

export function add(conversation) {
  conversations.set(conversation.id, conversation);
  save(conversation);
  tell("list");
}

export async function remove(id) {
  conversations.delete(id);
  unsaved.delete(id);
  localStorage.removeItem(UNSAVED + id);
  tell("list");
  if (database) await promised(table("readwrite").delete(id));
  channel.postMessage(id);
}

/** Says that a conversation changed on this page, and saves it. */
export function changed(conversation, { list = false } = {}) {
  save(conversation);
  tell("conversation", conversation.id);
  if (list) tell("list");
}

document.addEventListener("visibilitychange", write);
addEventListener("pagehide", () => {
  for (const id of unsaved.keys()) localStorage.setItem(UNSAVED + id, JSON.stringify(conversations.get(id)));
});

channel.onmessage = async ({ data: id }) => {
  const stored = database && (await promised(table("readonly").get(id)));
  if (unsaved.has(id)) return; // this page has something newer
  if (stored) conversations.set(id, stored);
  else conversations.delete(id);
  tell("elsewhere", id);
  tell("list");
};
