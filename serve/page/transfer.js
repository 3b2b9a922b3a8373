/** Conversations as files: ShareGPT's and OpenAI's JSON, out and in. */

import { h } from "./dom.js";
import { newConversation, newMessage } from "./store.js";
import { t } from "./strings.js";

const ROLES = { system: "system", user: "user", human: "user", assistant: "assistant", gpt: "assistant" };
const SHAREGPT = { system: "system", user: "human", assistant: "gpt" };

function turnsOf({ system, messages }) {
  const said = messages.filter(({ content }) => content).map(({ role, content }) => ({ role, content }));
  return system.trim() ? [{ role: "system", content: system }, ...said] : said;
}

/** The text of a file with conversations; format is "sharegpt" or "openai". */
export function exported(conversations, format) {
  const sharegpt = ({ role, content }) => ({ from: SHAREGPT[role], value: content });
  const recordOf = (turns) => (format === "openai" ? { messages: turns } : { conversations: turns.map(sharegpt) });
  const records = conversations.map(turnsOf).filter((turns) => turns.length).map(recordOf);
  return JSON.stringify(records, null, 2);
}

function contentOf(value) {
  if (typeof value === "string") return value;
  const isText = (part) => part?.type === "text" && typeof part.text === "string";
  return Array.isArray(value) && value.every(isText) ? value.map((part) => part.text).join("") : null;
}

function conversationOf(record, number) {
  const turns = record?.messages ?? record?.conversations;
  if (!Array.isArray(turns) || !turns.length) throw new Error(t("noTurns", { number }));
  const conversation = newConversation();
  conversation.created -= number; // the first of a file stands first in the list
  turns.forEach((turn, k) => {
    const given = turn?.role ?? turn?.from, role = Object.hasOwn(ROLES, given) ? ROLES[given] : null;
    const content = contentOf(turn?.content ?? turn?.value);
    const place = { number, turn: k + 1 };
    if (!role || (role === "system" && k > 0)) throw new Error(t("badRole", { ...place, role: JSON.stringify(given) ?? "–" }));
    if (content === null) throw new Error(t("badContent", place));
    if (role === "system") conversation.system = content;
    else conversation.messages.push(newMessage(role, content));
  });
  return conversation;
}

/**
 * The conversations of a file: a JSON array, one record, or a record on each line.
 * Raises Error that says which record is wrong.
 */
export function imported(text) {
  let records;
  try {
    records = JSON.parse(text);
  } catch {
    const lines = text.split("\n").filter((line) => line.trim());
    records = lines.map((line, k) => {
      try {
        return JSON.parse(line);
      } catch {
        throw new Error(t("badJson", { line: k + 1 }));
      }
    });
  }
  return (Array.isArray(records) ? records : [records]).map((record, k) => conversationOf(record, k + 1));
}

/** Offers a text as a file. */
export function download(text, name) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}
