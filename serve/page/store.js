/**
 * Conversations, kept in IndexedDB.
 *
 * A conversation is {id, title, system, model, messages, created, revision}; model is the name it is asked by, revision
 * names the version that was written last. A message is {id, at, version, role: "user" | "assistant", content}; at is the
 * time of its turn in milliseconds, version counts its changes; an answer has further fields, which `answers.js` lists.
 *
 * All are held in memory and written a moment after a change. What a closing page has not written yet goes into
 * localStorage, the one store that is written at once. Where another tab has written meanwhile, both versions are merged
 * from the one that both began with: messages that either has added or dropped since then are added or dropped.
 */

const UNSAVED = "camelid.unsaved.", DELAY = 300;
const SINGLE = ["title", "system", "model"]; // fields that are merged whole

export const conversations = new Map();
/**
 * Events "list" (the set or a title changed), "conversation" and "elsewhere" (detail: id of the one that changed on this
 * page, or in another tab), "leaving" (the last moment to change one) and "failed" (detail: why nothing is kept).
 */
export const changes = new EventTarget();

const channel = new BroadcastChannel("camelid");
const unsaved = new Map(); // id -> number of the change that is not written yet
const bases = new Map(); // id -> the stored version that this page's one comes from: {revision, title, system, model, ids}
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
  return { id: newId(), title: "", system: "", model: null, messages: [], created: Date.now() };
}

/** A message; an answer is given the time of its question, so that it stays beside it. */
export const newMessage = (role, content, at = Date.now()) => ({ id: newId(), at, version: 0, role, content });

/** The title that was given, or else the beginning of the first message. */
export function titleOf({ title, messages }) {
  return title || [...(messages[0]?.content ?? "").trim().split("\n")[0]].slice(0, 60).join("");
}

const baseOf = (stored) => {
  const fields = Object.fromEntries(["revision", ...SINGLE].map((name) => [name, stored[name]]));
  return { ...fields, ids: stored.messages.map(({ id }) => id) };
};

/** Takes another version of a conversation into this page's one, whose objects stay; `base` is what both come from. */
function merge(mine, theirs, base = { ids: [] }) {
  for (const name of SINGLE) if (mine[name] === base[name]) mine[name] = theirs[name];
  const [here, there] = [mine, theirs].map(({ messages }) => new Map(messages.map((each) => [each.id, each])));
  for (const [id, each] of there) if (each.version > here.get(id)?.version) Object.assign(here.get(id), each);
  const kept = mine.messages.filter(({ id }) => there.has(id) || !base.ids.includes(id));
  const added = theirs.messages.filter(({ id }) => !here.has(id) && !base.ids.includes(id));
  mine.messages = [...kept, ...added].sort((a, b) => a.at - b.at);
}

/** Takes the stored version of a conversation in, where it is not the one that this page has. */
function take(stored) {
  const { id, revision } = stored, mine = conversations.get(id), base = bases.get(id);
  if (mine && revision === base?.revision) return;
  const title = mine && titleOf(mine);
  if (mine) merge(mine, stored, base);
  else conversations.set(id, stored);
  bases.set(id, baseOf(stored));
  tell("elsewhere", id);
  if (titleOf(conversations.get(id)) !== title) tell("list");
}

/** Takes in what closed pages have left in localStorage. */
async function takeUnsaved() {
  const names = Object.keys(localStorage).filter((name) => name.startsWith(UNSAVED));
  for (const { left, base } of names.map((name) => JSON.parse(localStorage.getItem(name)))) {
    if (conversations.has(left.id)) merge(conversations.get(left.id), left, base);
    else conversations.set(left.id, left);
    unsaved.set(left.id, ++changeCount);
    tell("elsewhere", left.id);
    tell("list");
  }
  await write();
  for (const name of names) localStorage.removeItem(name);
}

/** Reads all conversations, those that closed pages left unsaved too. Answers that were cut off become "interrupted". */
export async function load() {
  try {
    const opening = indexedDB.open("camelid", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("conversations", { keyPath: "id" });
    database = await promised(opening);
    for (const each of await promised(table("readonly").getAll())) {
      conversations.set(each.id, each);
      bases.set(each.id, baseOf(each));
    }
  } catch (error) {
    tell("failed", String(error));
  }
  await takeUnsaved();
  const messages = [...conversations.values()].flatMap((each) => each.messages);
  for (const each of messages) if (each.state === "running") each.state = "interrupted"; // or comes anew from its tab
}

async function write() {
  if (!database) return;
  for (const [id, change] of [...unsaved]) {
    try {
      const store = table("readwrite"), stored = await promised(store.get(id)), mine = conversations.get(id);
      if (!mine) continue; // removed meanwhile
      if (stored) take(stored);
      mine.revision = newId();
      const base = baseOf(mine);
      await promised(store.put(mine));
      bases.set(id, base);
      if (unsaved.get(id) === change) unsaved.delete(id);
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
  bases.delete(id);
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
  tell("leaving");
  const leave = (id) => JSON.stringify({ left: conversations.get(id), base: bases.get(id) });
  for (const id of unsaved.keys()) localStorage.setItem(UNSAVED + newId(), leave(id));
});
addEventListener("storage", ({ key, newValue }) => key?.startsWith(UNSAVED) && newValue && takeUnsaved());

channel.onmessage = async ({ data: id }) => {
  if (!database) return;
  const before = conversations.get(id), stored = await promised(table("readonly").get(id));
  if (before && !conversations.has(id)) return; // removed meanwhile
  if (stored) return take(stored);
  if (unsaved.has(id)) return; // removed there, gone on with here
  conversations.delete(id);
  bases.delete(id);
  tell("elsewhere", id);
  tell("list");
};
