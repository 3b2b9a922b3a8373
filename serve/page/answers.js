/**
 * Answers as they are written. They go on while another conversation is shown.
 *
 * An answer's message has, beside role and content:
 *   state: "running", "done", "stopped", "failed" or "interrupted" (by a reload);
 *   reason: the API's finish_reason; error: {message, type, code, status} where it failed; model: its name;
 *   tokens: [text, logprob, [[text, logprob], …]] for each token, where probabilities were asked for;
 *   usage: {prompt, cached, completion} in tokens; first and seconds: until the first token, and from it to the last.
 */

import { streamChat } from "./api.js";
import { preferences, sampling } from "./preferences.js";
import { changed } from "./store.js";

const running = new Map(); // conversation id -> AbortController

export const isRunning = (id) => running.has(id);
export const stop = (id) => running.get(id)?.abort();

function bodyOf({ system, messages }) {
  const said = messages.filter(({ role, content }) => role === "user" || content).map(({ role, content }) => ({ role, content }));
  return {
    model: preferences.model ?? undefined,
    messages: system.trim() ? [{ role: "system", content: system }, ...said] : said,
    ...sampling(),
    ...(preferences.probabilities && { logprobs: true, top_logprobs: 5 }),
  };
}

const textOf = ({ token, bytes }) => (bytes?.length ? new TextDecoder().decode(new Uint8Array(bytes)) : token);

/** Adds a chunk of the stream to a message. `decoder` holds the bytes of a character that several tokens share. */
function take(message, chunk, decoder) {
  const choice = chunk.choices?.[0];
  message.model = chunk.model ?? message.model;
  message.content += choice?.delta?.content ?? "";
  message.reason = choice?.finish_reason ?? message.reason;
  for (const entry of choice?.logprobs?.content ?? []) {
    const text = entry.bytes?.length ? decoder.decode(new Uint8Array(entry.bytes), { stream: true }) : entry.token;
    const others = (entry.top_logprobs ?? []).map((each) => [textOf(each), each.logprob]);
    (message.tokens ??= []).push([text, entry.logprob, others]);
  }
  if (chunk.usage) {
    const { prompt_tokens: prompt, completion_tokens: completion, prompt_tokens_details: details } = chunk.usage;
    message.usage = { prompt, completion, cached: details?.cached_tokens ?? 0 };
  }
}

/** Asks for the answer to a conversation that ends with the user, and adds it as it comes. */
export async function answer(conversation) {
  const message = { role: "assistant", content: "", state: "running" };
  const body = bodyOf(conversation), controller = new AbortController(), decoder = new TextDecoder();
  conversation.messages.push(message);
  running.set(conversation.id, controller);
  changed(conversation, { list: true });
  const begun = performance.now();
  let first = null;
  try {
    for await (const chunk of streamChat(body, controller.signal)) {
      take(message, chunk, decoder);
      if (message.content || message.tokens) first ??= performance.now();
      if (first !== null) [message.first, message.seconds] = [(first - begun) / 1000, (performance.now() - first) / 1000];
      changed(conversation);
    }
    message.state = "done";
  } catch (error) {
    message.state = controller.signal.aborted ? "stopped" : "failed";
    const { message: text, type, code, status } = error;
    if (message.state === "failed") message.error = { message: text, type, code, status };
  } finally {
    running.delete(conversation.id);
    changed(conversation, { list: true });
  }
}

/** Drops the last answer and asks anew. */
export function regenerate(conversation) {
  if (conversation.messages.at(-1)?.role === "assistant") conversation.messages.pop();
  return answer(conversation);
}
