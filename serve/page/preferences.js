/** What the user prefers, kept in localStorage: model, sampling settings, probabilities, language, theme. */

const KEY = "camelid.preferences";
const UINT32 = 2 ** 32 - 1;

/** The sampling settings with their bounds; `step` 1 means whole numbers. */
export const SETTINGS = [
  { name: "temperature", min: 0, max: 100, step: "any" },
  { name: "top_p", min: 0.001, max: 1, step: "any" },
  { name: "top_k", min: 0, max: 1000000, step: 1 },
  { name: "min_p", min: 0, max: 1, step: "any" },
  { name: "repetition_penalty", min: 0.001, max: 1000, step: "any" },
  { name: "max_tokens", min: 1, max: 10000000, step: 1 },
  { name: "seed", min: 0, max: UINT32, step: 1 },
];

/** {model, probabilities, language, theme, sampling: {name: number}}; what is missing is left to the server or the browser. */
export const preferences = { sampling: {}, ...JSON.parse(localStorage.getItem(KEY) ?? "{}") };

export function prefer(changes) {
  Object.assign(preferences, changes);
  localStorage.setItem(KEY, JSON.stringify(preferences));
}
