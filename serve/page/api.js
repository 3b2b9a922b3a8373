/** The server's API: requests, errors, and the events of a stream. */

import { t } from "./strings.js";

const KEY = "camelid.key";

/** An error with the fields of the API's error object; `type` is "connection" where the server was not reached. */
export class ApiError extends Error {
  constructor(message, fields = {}) {
    super(message);
    Object.assign(this, fields);
  }

  static of({ message, type, code }, status) {
    return new ApiError(message || t("failed"), { type, code, status });
  }
}

/** How a key is asked for: an async function that the page sets; null is a refusal. */
export const keys = { ask: async () => null };
let asking = null;

export const forgetKey = () => sessionStorage.removeItem(KEY);
export const hasKey = () => sessionStorage.getItem(KEY) !== null;

async function errorOf(response) {
  const text = await response.text();
  try {
    const body = JSON.parse(text);
    if (body.error?.message) return ApiError.of(body.error, response.status);
  } catch {
    // not JSON: a proxy's page, say
  }
  return new ApiError(t("status", { status: `${response.status} ${response.statusText}`.trim() }));
}

/** A response with status 2xx. Asks for a key at 401, and again where the key is wrong. */
async function call(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
    let response;
    try {
      response = await fetch(new URL(path, document.baseURI), { ...options, headers });
    } catch (error) {
      throw error.name === "AbortError" ? error : new ApiError(t("unreachable"), { type: "connection" });
    }
    if (response.ok) return response;
    const error = await errorOf(response);
    if (response.status !== 401) throw error;
    if (key === sessionStorage.getItem(KEY)) {
      asking ??= keys.ask(key !== null).finally(() => (asking = null));
      const given = await asking;
      if (!given) throw error;
      sessionStorage.setItem(KEY, given);
    }
  }
}

/** The models and adapters: [{id, parent}], parent being the base model's name where the entry is an adapter. */
export async function models() {
  const { data } = await (await call("v1/models")).json();
  return data.map(({ id, parent }) => ({ id, parent: parent ?? null }));
}

/** The data of each server-sent event of a response. */
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "", data = [];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
      else if (!line && data.length) yield data.splice(0).join("\n");
    }
  }
}

/** The chunks of a chat completion. Raises ApiError, also where the stream breaks off before its end. */
export async function* streamChat(body, signal) {
  const response = await call("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  try {
    for await (const data of eventsOf(response)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw ApiError.of(chunk.error);
      yield chunk;
    }
  } catch (error) {
    if (error instanceof ApiError || error.name === "AbortError") throw error;
  }
  throw new ApiError(t("broken"), { type: "connection" });
}
