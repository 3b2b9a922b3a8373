/**
 * Answers as they are written. They go on while another conversation is shown.
 *
 * An answer's message has, beside the fields that all messages have:
 *   state: "running", "done", "stopped", "failed" or "interrupted" (by a reload);
 *   reason: the API's finish_reason; error: {message, type, code, status} where it failed; model: its name;
 *   tokens: [text, logprob, [[text, logprob], …]] for each token, where probabilities were asked for;
 *   usage: {prompt, cached, completion} in tokens; count: tokens that came, which is all there is where it was cut off;
 *   first and seconds: until the first token, and from it to the last.
 */

import { streamChat } from "./api.js";
import { preferences } from "./preferences.js";
import { changed, changes, conversations, newMessage } from "./store.js";

const running = new Map(); // conversation id -> AbortController

export const isRunning = (id) => running.has(id);
export const stop = (id) => running.get(id)?.abort();

function bodyOf({ system, model, messages }) {
  const said = messages.filter(({ role, content }) => role === "user" || content).map(({ role, content }) => ({ role, content }));
  return {
    model: model ?? undefined,
    messages: system.trim() ? [{ role: "system", content: system }, ...said] : said,
    ...preferences.sampling,
    ...(preferences.probabilities && { logprobs: true, top_logprobs: 5 }),
  };
}

const textOf = ({ token, bytes }) => (bytes?.length ? new TextDecoder().decode(new Uint8Array(bytes)) : token);

/** Adds a chunk of the stream to a message. `decoder` holds the bytes of a character that several tokens share. */
function take(message, chunk, decoder) {
  const choice = chunk.choices?.[0], entries = choice?.logprobs?.content ?? [];
  message.model = chunk.model ?? message.model;
  message.content += choice?.delta?.content ?? "";
  message.reason = choice?.finish_reason ?? message.reason;
  for (const entry of entries) {
    const text = entry.bytes?.length ? decoder.decode(new Uint8Array(entry.bytes), { stream: true }) : entry.token;
    const others = (entry.top_logprobs ?? []).map((each) => [textOf(each), each.logprob]);
    (message.tokens ??= []).push([text, entry.logprob, others]);
  }
  const isToken = choice?.delta?.content !== undefined && !choice.delta.role; // without probabilities a chunk is a token
  message.count += entries.length || Number(isToken);
  if (chunk.usage) {
    const { prompt_tokens: prompt, completion_tokens: completion, prompt_tokens_details: details } = chunk.usage;
    message.usage = { prompt, completion, cached: details?.cached_tokens ?? 0 };
  }
  message.version++;
}

/** Writes on at the last message of a conversation, an answer, until it ends. */
async function write(conversation) {
  const message = conversation.messages.at(-1), before = message.usage?.completion ?? message.count, { seconds } = message;
  const controller = new AbortController(), decoder = new TextDecoder();
  Object.assign(message, { state: "running", reason: null, usage: null, count: before, version: message.version + 1 });
  running.set(conversation.id, controller);
  changed(conversation, { list: true });
  const begun = performance.now();
  let first = null;
  try {
    for await (const chunk of streamChat(bodyOf(conversation), controller.signal)) {
      take(message, chunk, decoder);
      conversation.model ??= message.model;
      if (message.count > before) first ??= performance.now();
      if (first !== null) {
        message.first ??= (first - begun) / 1000;
        message.seconds = seconds + (performance.now() - first) / 1000;
      }
      changed(conversation);
    }
    if (message.usage) message.usage.completion += before;
    message.state = "done";
  } catch (error) {
    message.state = controller.signal.aborted ? "stopped" : "failed";
    const { message: text, type, code, status } = error;
    if (message.state === "failed") message.error = { message: text, type, code, status };
  } finally {
    message.version++;
    running.delete(conversation.id);
    changed(conversation, { list: true });
  }
}

/** Asks for the answer to a conversation that ends with the user, and adds it as it comes. */
export function answer(conversation) {
  conversation.model ??= preferences.model ?? null;
  const message = newMessage("assistant", "", conversation.messages.at(-1).at);
  conversation.messages.push(Object.assign(message, { count: 0, seconds: 0 }));
  return write(conversation);
}

/** Drops the last answer and asks anew. */
export function regenerate(conversation) {
  if (conversation.messages.at(-1).role === "assistant") conversation.messages.pop();
  return answer(conversation);
}

/** Asks for more of the last answer, from its last word on. */
export const proceed = write;

/** Whether an answer has a beginning from which it can go on. */
export function canProceed({ content, state, reason }) {
  return Boolean(content) && (["stopped", "failed", "interrupted"].includes(state) || reason === "length");
}

function interrupt(id) {
  const message = conversations.get(id)?.messages.find(({ state }) => state === "running");
  if (!message) return;
  Object.assign(message, { state: "interrupted", version: message.version + 1 });
  changed(conversations.get(id));
}

changes.addEventListener("leaving", () => [...running.keys()].forEach(interrupt));
