/**
 * Markdown as DOM nodes: paragraphs, headings, lists, tables, quotes, code, rules; `inline.js` has what stands in a line.
 *
 * The renderer is made for answers that grow. A block is settled once two others follow it, since no later line can
 * change it then; an update parses from the last settled block on, and keeps the nodes that are equal already.
 */

import { h, morph } from "./dom.js";
import { inline } from "./inline.js";
import { t } from "./strings.js";

const DEPTH = 12; // of quotes and lists; what is beyond stays text
const FENCE = /^[ \t]{0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?=[ \t]|$)/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}>/;
const ITEM = /^([ \t]*)([-*+]|\d{1,9}[.)])([ \t]+|$)/;

const blank = (line) => !/\S/.test(line);
const isNumber = (marker) => marker.length > 1;

/** Columns of white space that a line begins with; a tab counts for four. */
function indentOf(line) {
  let columns = 0;
  for (const mark of line) {
    if (mark !== " " && mark !== "\t") break;
    columns += mark === "\t" ? 4 : 1;
  }
  return columns;
}

/** A line without up to `columns` columns of the white space that it begins with. */
function dedent(line, columns) {
  let at = 0;
  while (columns > 0 && (line[at] === " " || line[at] === "\t")) columns -= line[at++] === "\t" ? 4 : 1;
  return " ".repeat(Math.max(-columns, 0)) + line.slice(at);
}

/** The cells of a table's row, or null where the line has no bar. */
function cellsOf(line) {
  if (!line.includes("|")) return null;
  const cells = line.trim().replace(/^\|/, "").split("|");
  for (let k = cells.length - 2; k >= 0; k--) {
    if (cells[k].endsWith("\\")) cells.splice(k, 2, `${cells[k].slice(0, -1)}|${cells[k + 1]}`);
  }
  if (cells.length > 1 && blank(cells.at(-1))) cells.pop();
  return cells.map((cell) => cell.trim());
}

function isTable(lines, i) {
  const head = i + 1 < lines.length && cellsOf(lines[i]);
  const bounds = head && cellsOf(lines[i + 1]);
  return Boolean(bounds) && bounds.length === head.length && bounds.every((cell) => /^:?-+:?$/.test(cell));
}

/** Whether a block other than a paragraph begins at a line, and ends a paragraph before it. */
function interrupts(lines, i) {
  const line = lines[i], item = ITEM.exec(line);
  if (item && !blank(line.slice(item[0].length)) && (!isNumber(item[2]) || parseInt(item[2]) === 1)) return true;
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || isTable(lines, i);
}

function codeBlock(lines, i, [, marks, info]) {
  const indent = indentOf(lines[i]), body = [];
  const isEnd = (line) => line.trim().length >= marks.length && line.trim() === marks[0].repeat(line.trim().length);
  for (i++; i < lines.length && !isEnd(lines[i]); i++) body.push(dedent(lines[i], indent));
  const language = info.trim().split(/\s/)[0].slice(0, 40);
  const copy = h("button", { type: "button", class: "text-button", "data-copy": true }, t("copy"));
  const pre = h("pre", { tabindex: 0, role: "region", "aria-label": language || t("code") }, h("code", {}, body.join("\n")));
  return [h("div", { class: "code" }, h("div", { class: "code-head" }, h("span", {}, language), copy), pre), i + 1];
}

function heading(line, marks) {
  let text = line.trim().slice(marks.length).trim(), end = text.length;
  while (text[end - 1] === "#") end--;
  if (end === 0 || /\s/.test(text[end - 1])) text = text.slice(0, end).trim();
  return h(`h${marks.length}`, {}, inline(text));
}

function table(lines, i) {
  const sides = cellsOf(lines[i + 1]).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : null));
  const row = (tag, line) => {
    const cells = (cellsOf(line) ?? [line.trim()]).slice(0, sides.length);
    return h("tr", {}, cells.map((cell, k) => h(tag, { class: sides[k] }, inline(cell))));
  };
  const head = h("thead", {}, row("th", lines[i])), body = h("tbody");
  for (i += 2; i < lines.length && !blank(lines[i]) && !interrupts(lines, i); i++) body.append(row("td", lines[i]));
  return [h("div", { class: "table", tabindex: 0, role: "region", "aria-label": t("table") }, h("table", {}, head, body)), i];
}

function quote(lines, i, depth) {
  const inside = [];
  for (; i < lines.length && QUOTE.test(lines[i]); i++) inside.push(lines[i].replace(/^ {0,3}> ?/, ""));
  return [h("blockquote", {}, nodesOf(inside, depth + 1)), i];
}

/** The lines of a list's item that begins at line i, without its indent, and the place of the first line after it. */
function itemLines(lines, i, [whole, space, marker, gap]) {
  const base = indentOf(space), wide = gap.length > 4 || whole.length === lines[i].length;
  const content = base + marker.length + (wide ? 1 : gap.length);
  const inside = [(wide ? gap.slice(1) : "") + lines[i].slice(whole.length)];
  for (i++; i < lines.length; i++) {
    let next = i;
    while (next < lines.length && blank(lines[next])) next++;
    if (next > i) {
      if (next === lines.length || indentOf(lines[next]) < base + 2) return [inside, next];
      while (i < next) inside.push(""), i++;
    }
    if (indentOf(lines[i]) < base + 2 && (ITEM.test(lines[i]) || interrupts(lines, i))) break;
    inside.push(dedent(lines[i], content));
  }
  return [inside, i];
}

function list(lines, i, depth) {
  let item = ITEM.exec(lines[i]), inside;
  const numbered = isNumber(item[2]), base = indentOf(item[1]);
  const node = h(numbered ? "ol" : "ul", { start: numbered && parseInt(item[2]) !== 1 ? parseInt(item[2]) : null });
  while (item && isNumber(item[2]) === numbered && indentOf(item[1]) < base + 2 && !RULE.test(lines[i])) {
    [inside, i] = itemLines(lines, i, item);
    const task = /^\[([ xX])\] /.exec(inside[0]);
    if (task) inside[0] = `${task[1] === " " ? "☐" : "☑"} ${inside[0].slice(4)}`;
    node.append(h("li", { class: task && "task" }, nodesOf(inside, depth + 1)));
    item = i < lines.length ? ITEM.exec(lines[i]) : null;
  }
  return [node, i];
}

function paragraph(lines, i) {
  const inside = [lines[i].trim()];
  for (i++; i < lines.length && !blank(lines[i]) && !interrupts(lines, i); i++) inside.push(lines[i].trim());
  return [h("p", {}, inline(inside.join("\n"))), i];
}

/** The block that begins at line i, and the place of the first line after it. */
function block(lines, i, depth) {
  const line = lines[i];
  let found;
  if ((found = FENCE.exec(line))) return codeBlock(lines, i, found);
  if ((found = HEADING.exec(line))) return [heading(line, found[1]), i + 1];
  if (RULE.test(line)) return [h("hr"), i + 1];
  if (isTable(lines, i)) return table(lines, i);
  if (depth < DEPTH && QUOTE.test(line)) return quote(lines, i, depth);
  if (depth < DEPTH && ITEM.test(line)) return list(lines, i, depth);
  return paragraph(lines, i);
}

function nodesOf(lines, depth) {
  const nodes = [];
  for (let i = 0, node; i < lines.length; ) {
    if (blank(lines[i])) i++;
    else ([node, i] = block(lines, i, depth)), nodes.push(node);
  }
  return nodes;
}

/** A container whose content is Markdown that may grow. */
export class Markdown {
  constructor(container) {
    this.container = container;
    this.text = "";
    this.blocks = []; // {node, end: offset of the text after it}
  }

  /** Shows a text; the cost is that of its last two blocks where it continues the one before. */
  update(source) {
    const text = source.replace(/\r\n?/g, "\n");
    const old = this.blocks.splice(text.startsWith(this.text) ? Math.max(this.blocks.length - 2, 0) : 0);
    this.text = text;
    let end = this.blocks.at(-1)?.end ?? 0;
    const lines = text.slice(end).split("\n");
    for (let i = 0, k = 0; i < lines.length; ) {
      if (blank(lines[i])) {
        end += lines[i++].length + 1;
        continue;
      }
      const [fresh, next] = block(lines, i, 0), before = old[k++]?.node;
      while (i < next && i < lines.length) end += lines[i++].length + 1;
      const node = before ? morph(before, fresh) : this.container.appendChild(fresh);
      this.blocks.push({ node, end });
    }
    while (this.container.childNodes.length > this.blocks.length) this.container.lastChild.remove();
  }
}
