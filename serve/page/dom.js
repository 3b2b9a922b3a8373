/** DOM nodes without markup: text becomes text nodes, never HTML. */

const SVG = "http://www.w3.org/2000/svg";

const ICONS = {
  menu: "M4 7h16M4 12h16M4 17h16",
  plus: "M12 5v14M5 12h14",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  copy: "M9 9h10v10H9zM5 15V5h10",
  edit: "M5 19l1-4L16 5l3 3L9 18z",
  retry: "M19 12a7 7 0 1 1-2-5l2 2M19 4v5h-5",
  onward: "M5 12h14M13 6l6 6-6 6",
  chances: "M5 19v-6M10 19V9M15 19v-9M20 19V5",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  sliders: "M4 8h9M17 8h3M4 16h3M11 16h9M15 6v4M9 14v4",
  close: "M6 6l12 12M18 6L6 18",
  check: "M5 13l4 4L19 7",
  down: "M12 5v14M6 13l6 6 6-6",
};

/**
 * An element with attributes and children.
 * Attributes named on… are listeners; true is an empty attribute; false, null and undefined are left out.
 * Children are nodes, strings, or arrays of them; null, false and empty texts are left out.
 */
export function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) if (child || child === 0) node.append(child);
  return node;
}

/** A line icon of the table above, hidden from screen readers. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const path = document.createElementNS(SVG, "path");
  const attributes = { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" };
  for (const [key, value] of Object.entries(attributes)) svg.setAttribute(key, value);
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** A button of a class of the style sheet. */
export const button = (kind, onclick, ...children) => h("button", { type: "button", class: kind, onclick }, ...children);

/** A button that shows an icon and says its label. */
export function iconButton(name, label, onclick, attributes = {}) {
  const node = h("button", { type: "button", class: "icon-button", "aria-label": label, title: label, onclick, ...attributes });
  node.append(icon(name));
  return node;
}

function sameAttributes(a, b) {
  if (a.attributes.length !== b.attributes.length) return false;
  return [...a.attributes].every(({ name, value }) => b.getAttribute(name) === value);
}

/**
 * Makes `old` equal to `fresh`, keeping the nodes that are equal already, with their focus and selection.
 * Returns the node that stands there.
 */
export function morph(old, fresh) {
  if (old.nodeName !== fresh.nodeName || (old.nodeType === Node.ELEMENT_NODE && !sameAttributes(old, fresh))) {
    old.replaceWith(fresh);
    return fresh;
  }
  if (old.nodeType === Node.TEXT_NODE) {
    if (fresh.data.startsWith(old.data)) old.appendData(fresh.data.slice(old.length));
    else old.data = fresh.data;
    return old;
  }
  const before = [...old.childNodes], after = [...fresh.childNodes];
  after.forEach((child, k) => (k < before.length ? morph(before[k], child) : old.append(child)));
  for (const child of before.slice(after.length)) child.remove();
  return old;
}

/** Puts text on the clipboard, also on pages without https, where `navigator.clipboard` is missing. */
async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = h("textarea", { class: "hidden", readonly: true });
  field.value = text;
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}

/** Copies a text and says so on the button for a moment; `label` is what a button with text says then. */
export async function copyFrom(clicked, text, label) {
  await copyText(text);
  if (clicked.classList.contains("done")) return;
  const before = [...clicked.childNodes];
  clicked.classList.add("done");
  clicked.replaceChildren(clicked.matches(".icon-button") ? icon("check") : label);
  setTimeout(() => (clicked.classList.remove("done"), clicked.replaceChildren(...before)), 1500);
}

/** Shows a short notice at the foot of the page, with a button where `action` is given. */
export function toast(text, label, action) {
  const place = document.getElementById("toasts");
  const note = h("div", { class: "toast" }, h("span", {}, text));
  if (action) note.append(button("text-button", () => (note.remove(), action()), label));
  place.replaceChildren(note);
  setTimeout(() => note.remove(), 7000);
}
