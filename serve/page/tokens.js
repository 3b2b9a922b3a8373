/** The view of an answer's tokens: colour for each one's probability, its alternatives on hover and focus. */

import { h } from "./dom.js";
import { t } from "./strings.js";

const BOUNDS = [0.9, 0.7, 0.5, 0.3, 0.1]; // classes p0 (likely) to p5

const percent = (logprob) => {
  const p = 100 * Math.exp(logprob);
  return `${p >= 99.95 ? "100" : p >= 0.1 ? p.toFixed(1) : "<0.1"}%`;
};
const classOf = (logprob) => BOUNDS.findIndex((bound) => Math.exp(logprob) >= bound);
/** A token's text with white space made visible; empty where a character goes on in the next token. */
const shown = (text) => {
  const lines = text.replaceAll("\n", "⏎").replaceAll("\t", "⇥");
  return lines.replace(/^ +| +$/g, (run) => "␣".repeat(run.length)) || "·";
};

function row(text, logprob, chosen) {
  const bar = h("span", { class: "bar" });
  bar.style.width = `${100 * Math.exp(logprob)}%`; // set by script: the page's policy forbids style attributes alone
  const chance = h("td", { class: "right" }, percent(logprob));
  return h("tr", { class: chosen && "chosen" }, h("td", {}, shown(text)), chance, h("td", { class: "track" }, bar));
}

function showAlternatives(span, [text, logprob, others]) {
  const box = document.getElementById("alternatives");
  const rows = others.map(([other, value]) => row(other, value, other === text));
  if (!others.some(([other]) => other === text)) rows.push(row(text, logprob, true));
  box.replaceChildren(h("table", {}, h("tbody", {}, rows)));
  box.hidden = false;
  const at = span.getClientRects()[0] ?? span.getBoundingClientRect(), { width, height } = box.getBoundingClientRect();
  box.style.left = `${Math.max(8, Math.min(at.left, innerWidth - width - 8))}px`;
  box.style.top = `${at.bottom + height + 12 < innerHeight ? at.bottom + 6 : at.top - height - 6}px`;
}

export function hideAlternatives() {
  document.getElementById("alternatives").hidden = true;
}

/** A list of tokens that may grow. One token is in the tab order; the arrow keys move along. */
export class Tokens {
  constructor(container) {
    this.tokens = [];
    this.list = h("div", { class: "tokens", role: "group", "aria-label": t("tokens") });
    const bounds = [...BOUNDS.map((bound) => `≥ ${100 * bound}%`), `< ${100 * BOUNDS.at(-1)}%`];
    const legend = h("p", { class: "legend" }, t("probability"), bounds.map((text, k) => h("span", { class: `p${k}` }, text)));
    container.append(this.list, legend);
    const over = ({ target }) => target.dataset.k && showAlternatives(target, this.tokens[target.dataset.k]);
    for (const name of ["mouseover", "focusin", "click"]) this.list.addEventListener(name, over);
    this.list.addEventListener("focusout", hideAlternatives);
    this.list.addEventListener("mouseleave", () => {
      if (this.list.contains(document.activeElement)) over({ target: document.activeElement });
      else hideAlternatives();
    });
    this.list.addEventListener("keydown", (event) => this.move(event));
  }

  move(event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") hideAlternatives();
    const next = step && this.list.childNodes[Number(event.target.dataset.k) + step];
    if (!next) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  update(tokens) {
    this.tokens = tokens;
    for (let k = this.list.childNodes.length; k < tokens.length; k++) {
      const [text, logprob] = tokens[k], place = classOf(logprob);
      const label = t("chance", { text: shown(text), chance: percent(logprob) });
      const kind = `p${place < 0 ? BOUNDS.length : place}`;
      const attributes = { class: kind, tabindex: k ? -1 : 0, role: "button", "aria-label": label, "aria-describedby": "alternatives", "data-k": k };
      this.list.append(h("span", attributes, text || "·"));
    }
  }
}
