/**
 * Inline Markdown: code, emphasis, links, line breaks; TeX stays as it is written.
 *
 * Three passes, each linear in the text: `scan` splits it into strings and marks and pairs the brackets of links,
 * `pairEmphasis` pairs the marks of emphasis, `build` makes the nodes. HTML in the text stays text.
 */

import { h } from "./dom.js";

const PROTOCOLS = new Set(["http:", "https:", "mailto:"]);
const DEPTH = 24; // of open emphasis; what is beyond stays text
const SPECIAL = /[\\`*_~[\]!<$\n]|https?:\/\//g;
const TARGET = /\([ \n]?(?:<([^<>\n]{0,2000})>|((?:[^\s()\\]|\\.|\([^\s()]{0,500}\)){0,2000}))(?:[ \n]("[^"]{0,500}"|'[^']{0,500}'))?[ \n]?\)/y;
const BARE = /https?:\/\/[^\s<>"`，。！？；：、）】」』”’《》]{1,2000}/y;
const AUTOLINK = /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/y;
const TEX = /\$\$[^$]{1,2000}\$\$|\$(?![\s$])[^$\n]{0,500}(?<![\s$\\])\$(?!\d)|\\\((?:[^\\\n]|\\[^)\n]){1,500}?\\\)|\\\[(?:[^\\]|\\[^\]]){1,500}?\\\]/y;
const BREAK = /<br ?\/?>/iy;
const TAGS = { "*": ["em", "strong"], _: ["em", "strong"], "~": [null, "del"] };

/** The address, if it is one that a link may have: absolute, with http, https or mailto. Otherwise null. */
export function safeUrl(text) {
  try {
    const url = new URL(text);
    return PROTOCOLS.has(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

const link = (url, ...children) => h("a", { href: url, target: "_blank", rel: "noopener noreferrer" }, ...children);

function match(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text);
}

/** For each run of backticks the place of the next run of the same length, found in one pass from the end. */
function fences(text) {
  const closing = new Map(), next = new Map();
  const runs = [...text.matchAll(/`+/g)].reverse();
  for (const { 0: { length }, index } of runs) {
    closing.set(index, next.get(length));
    next.set(length, index);
  }
  return closing;
}

class Scanner {
  constructor(text) {
    this.text = text;
    this.items = []; // strings, nodes, {run…} of emphasis, {open, url} and {close} of links
    this.brackets = []; // the open ones: {place in items, image}
    this.at = 0;
  }

  scan() {
    const { text } = this;
    while (this.at < text.length) {
      const found = match(SPECIAL, text, this.at);
      const end = found ? found.index : text.length;
      this.items.push(text.slice(this.at, end));
      this.at = end;
      if (found) this.special(found[0]);
    }
    return this.items;
  }

  add(item, length) {
    this.items.push(item);
    this.at += length;
  }

  special(mark) {
    const { text, at } = this;
    const next = text[at + 1] ?? "";
    let found;
    if ((mark === "$" || mark === "\\") && (found = match(TEX, text, at))) this.add(h("span", { class: "tex" }, found[0]), found[0].length);
    else if (mark === "\\" && next === "\n") this.add(h("br"), 2);
    else if (mark === "\\" && /[!-/:-@[-`{-~]/.test(next)) this.add(next, 2);
    else if (mark === "`") this.code();
    else if (mark in TAGS) this.run(mark);
    else if (mark === "!" && next === "[") this.bracket("![", true);
    else if (mark === "[") this.bracket("[", false);
    else if (mark === "]") this.close();
    else if (mark === "\n") this.add(h("br"), 1);
    else if (mark === "<" && (found = match(BREAK, text, at))) this.add(h("br"), found[0].length);
    else if (mark === "<" && (found = match(AUTOLINK, text, at))) this.autolink(found);
    else if (mark.length > 1 && !this.brackets.length && !/\w/.test(text[at - 1] ?? "")) this.bare();
    else this.add(mark, mark.length);
  }

  code() {
    const { text, at } = this;
    this.closing ??= fences(text);
    const length = match(/`+/y, text, at)[0].length;
    const end = this.closing.get(at);
    if (end === undefined) return this.add("`".repeat(length), length);
    let inside = text.slice(at + length, end).replaceAll("\n", " ");
    if (inside.startsWith(" ") && inside.endsWith(" ") && inside.trim()) inside = inside.slice(1, -1);
    this.add(h("code", {}, inside), end + length - at);
  }

  run(mark) {
    const { text, at } = this;
    let end = at;
    while (text[end] === mark) end++;
    const before = text[at - 1] ?? " ", after = text[end] ?? " ";
    // Looser than CommonMark beside punctuation, where Chinese has no spaces: **重点：**后文
    let canOpen = /\S/.test(after), canClose = /\S/.test(before);
    if (mark === "_") [canOpen, canClose] = [canOpen && !/[\p{L}\p{N}]/u.test(before), canClose && !/[\p{L}\p{N}]/u.test(after)];
    if (mark === "~" && end - at !== 2) canOpen = canClose = false;
    this.add({ run: mark, left: end - at, canOpen, canClose, opens: [], closes: [] }, end - at);
  }

  bracket(source, image) {
    this.brackets.push({ place: this.items.length, image });
    this.add(source, source.length);
  }

  close() {
    const opening = this.brackets.pop();
    const target = opening && match(TARGET, this.text, this.at + 1);
    const url = target && safeUrl((target[1] ?? target[2]).replace(/\\([!-/:-@[-`{-~])/g, "$1"));
    if (!url) return this.add("]", 1);
    const open = { open: true, url };
    this.items[opening.place] = open;
    if (!opening.image) this.brackets = []; // no link holds another
    this.add({ close: open }, 1 + target[0].length);
  }

  autolink([whole, address]) {
    const url = safeUrl(address);
    this.add(url ? link(url, address) : whole, whole.length);
  }

  bare() {
    const found = match(BARE, this.text, this.at);
    const shown = found?.[0].length < 2000 && found[0].replace(/[.,:;!?'*_~)\]]{1,20}$/, "");
    const url = shown && safeUrl(shown);
    if (url) this.add(link(url, shown), shown.length);
    else this.add("http", 4);
  }
}

/** Pairs the marks of emphasis; pairs never cross the bounds of a link. */
function pairEmphasis(items) {
  let open = [];
  const outside = [];
  items.forEach((item) => {
    if (item.open) outside.push(open), (open = []);
    else if (item.close) open = outside.pop();
    else if (item.run) {
      const tags = TAGS[item.run];
      while (item.canClose && item.left) {
        const k = open.findLastIndex((each) => each.run === item.run);
        if (k < 0) break;
        const count = Math.min(open[k].left, item.left, 2);
        const tag = tags[count - 1];
        if (!tag) break;
        open[k].opens.unshift(tag);
        item.closes.push(tag);
        open[k].left -= count;
        item.left -= count;
        open.length = open[k].left ? k + 1 : k;
      }
      if (item.canOpen && item.left && open.length < DEPTH) open.push(item);
    }
  });
}

function build(items) {
  const root = document.createDocumentFragment();
  let place = root, text = "", links = 0;
  const flush = () => (text && place.append(text), (text = ""));
  const enter = (node) => (flush(), place.append(node), (place = node));
  const leave = () => (flush(), (place = place.parentNode));
  for (const item of items) {
    if (typeof item === "string") text += item;
    else if (item instanceof Node) flush(), place.append(item);
    else if (item.run) {
      item.closes.forEach(leave);
      text += item.run.repeat(item.left);
      for (const tag of item.opens) enter(h(tag));
    } else if (item.open) links++ || enter(link(item.url));
    else if (item.close) --links || leave();
  }
  flush();
  return root;
}

/**
 * The nodes of a line or of the lines of a paragraph, as a fragment.
 * Images become links: the page loads nothing from elsewhere.
 */
export function inline(text) {
  const items = new Scanner(text).scan();
  pairEmphasis(items);
  return build(items);
}
