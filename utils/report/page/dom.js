"use strict";
// Elements, numbers as text, and the tooltip. Texts of the data become text nodes, never markup.

const data = JSON.parse(document.getElementById("payload").textContent);
const runs = data.runs;  // names of compared runs; [] in the report of one
const SVG = "http://www.w3.org/2000/svg";
const PERCENT = [0, 100];

const byId = (id) => document.getElementById(id);
const isNumber = (value) => typeof value === "number";

/** Make an element with attributes, and with children that are nodes or texts; null is left out. */
function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** Add an element of SVG to another. */
function drawn(parent, name, attributes = {}, text = "") {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) {
    node.setAttribute(key, value);
  }
  node.textContent = text;
  parent.append(node);
  return node;
}

/** Fill a section of the page; one without content is removed. */
function fill(id, ...nodes) {
  const content = nodes.filter((node) => node !== null);
  if (content.length) {
    byId(id).append(...content);
  } else {
    byId(id).remove();
  }
}

const note = (...children) => element("p", { class: "note" }, ...children);

// ---- numbers

const fixed = (value, digits = 2) => (isNumber(value) ? value.toFixed(digits) : "");
const round = (value) => (isNumber(value) ? String(Number(value.toPrecision(4))) : "");
const counted = (value) => (isNumber(value) ? value.toLocaleString("en-US") : "");
const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(2);
const percentOf = (part, whole) => (whole ? (100 * part) / whole : 0);

/** Seconds as people say them: 4.2 s, 3 min 10 s, 2 h 5 min; never broken over two lines. */
function duration(seconds) {
  const joined = (...parts) => parts.join("\u00a0");
  if (seconds < 60) {
    return joined(round(seconds), "s");
  }
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) {
    return joined(minutes, "min", Math.floor(seconds % 60), "s");
  }
  return joined(Math.floor(minutes / 60), "h", minutes % 60, "min");
}

/** A range of counts: 3–5, or 3 alone. */
const range = (first, last) => (first === last ? counted(last) : `${counted(first)}–${counted(last)}`);

/** A color of the palette, the same for the same place everywhere. */
const color = (place) => `var(--s${place % 6})`;

/** What the colors of some series are of. */
function legend(names, colors = names.map((name, i) => color(i))) {
  const items = names.map((name, i) => {
    const patch = element("span");
    patch.style.background = colors[i];
    return element("li", {}, patch, name);
  });
  return element("ul", { class: "legend" }, ...items);
}

// ---- tooltips: any element with data-tip, by mouse, touch and keyboard

const tip = byId("tip");

function showTip(target, x, y) {
  tip.textContent = target.getAttribute("data-tip");
  tip.hidden = false;
  const gap = 12;
  const left = Math.min(x + gap, innerWidth - tip.offsetWidth - gap);
  const isBelow = y + gap + tip.offsetHeight < innerHeight;
  tip.style.left = `${Math.max(left, gap / 2)}px`;
  tip.style.top = `${isBelow ? y + gap : Math.max(y - gap - tip.offsetHeight, 0)}px`;
}

function hideTip() {
  tip.hidden = true;
}

const tipped = (event) => (event.target instanceof Element ? event.target.closest("[data-tip]") : null);

document.addEventListener("pointerover", (event) => {
  const target = tipped(event);
  if (target) {
    showTip(target, event.clientX, event.clientY);
  } else {
    hideTip();
  }
});
document.addEventListener("pointermove", (event) => {
  const target = tipped(event);
  if (target) {
    showTip(target, event.clientX, event.clientY);
  }
});
document.addEventListener("focusin", (event) => {
  const target = tipped(event);
  if (target) {
    const box = target.getBoundingClientRect();
    showTip(target, box.left, box.bottom);
  }
});
document.addEventListener("focusout", hideTip);
document.addEventListener("scroll", hideTip, { passive: true });
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") {
    hideTip();
  }
});
