// Charts: drawn anew at the width that they have, so that letters keep their size on a phone.

// ---- scales

/** The least of 1, 2, 5, 10, 20, ... that cuts a span into at most `most` parts. */
function niceStep(span, most) {
  const least = span / most;
  const power = 10 ** Math.floor(Math.log10(least));
  const factor = [1, 2, 5, 10].find((candidate) => candidate * power >= least * (1 - 1e-9));
  return factor * power;
}

/** Round values low to high out to steps of 1, 2 or 5: {low, high, ticks}. */
function niceScale(low, high, most = 5, isWhole = false) {
  if (!(high > low)) {
    return niceScale(Math.min(low, 0), Math.max(low, 0) || 1, most, isWhole);
  }
  const step = Math.max(niceStep(high - low, most), isWhole ? 1 : 0);
  const first = Math.floor(low / step + 1e-9);
  const last = Math.ceil(high / step - 1e-9);
  const ticks = [];
  for (let i = first; i <= last; i += 1) {
    ticks.push(Number((i * step).toPrecision(12)));
  }
  return { low: ticks[0], high: ticks.at(-1), ticks };
}

const percentScale = () => niceScale(...PERCENT, 5);

// ---- figures of SVG

const FONT = 12;  // pixels
const LEFT = 52;
const RIGHT = 14;
const TOP = 10;
const BELOW = 40;

/** A figure with a title; draw(svg, width) is called at every new width. */
function figure(name, caption, height, draw, ...more) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", caption ? `${name}. ${caption}` : name);
  const place = element("div", { class: "canvas" }, svg);
  let known = 0;
  const redraw = () => {
    const width = Math.floor(place.clientWidth);
    if (width === known || width < 80) {
      return;
    }
    known = width;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", String(height));
    svg.replaceChildren();
    draw(svg, width);
  };
  new ResizeObserver(redraw).observe(place);
  const head = element("h3", {}, name);
  const below = caption ? element("figcaption", {}, caption) : null;
  return element("figure", {}, head, place, ...more, below);
}

/** Axes of a panel between `top` and `bottom` with ticks; returns what places values in it. */
function axes(svg, width, top, bottom, { x, y }) {
  const right = width - RIGHT;
  const placeX = (value) => LEFT + ((right - LEFT) * (value - x.low)) / (x.high - x.low);
  const placeY = (value) => bottom - ((bottom - top) * (value - y.low)) / (y.high - y.low);
  for (const tick of y.ticks) {
    const at = placeY(tick);
    drawn(svg, "path", { d: `M${LEFT} ${at}H${right}`, class: "grid" });
    drawn(svg, "text", { x: LEFT - 6, y: at + 4, "text-anchor": "end" }, y.says ? y.says(tick) : round(tick));
  }
  const middle = (top + bottom) / 2;
  const turned = `translate(12 ${middle}) rotate(-90)`;
  drawn(svg, "text", { transform: turned, "text-anchor": "middle" }, y.name);
  drawn(svg, "path", { d: `M${LEFT} ${top}V${bottom}H${right}`, class: "axis" });
  return { placeX, placeY, right };
}

/** Ticks and name of the x axis; ticks that would stand in each other are left out. */
function axisBelow(svg, width, bottom, x, placeX) {
  let free = -Infinity;
  for (const tick of x.ticks) {
    const text = x.says ? x.says(tick) : round(tick);
    const half = (text.length * FONT * 0.55) / 2;
    const at = Math.min(Math.max(placeX(tick), half), width - half - 1);
    if (at - half > free) {
      drawn(svg, "path", { d: `M${placeX(tick)} ${bottom}v4`, class: "axis" });
      drawn(svg, "text", { x: at, y: bottom + 17, "text-anchor": "middle" }, text);
      free = at + half + 4;
    }
  }
  const middle = (LEFT + width - RIGHT) / 2;
  drawn(svg, "text", { x: middle, y: bottom + 34, "text-anchor": "middle" }, x.name);
}

/** Round numbers for the d of a path. */
const linePath = (points) =>
  points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

/**
 * Lines over one x axis, in one panel or in several below each other.
 *
 * panels: {y: {name, low, high, ticks}, series: [{name, points: [[x, y], ...], color, dash, isPlain}]}
 * x: {name, low, high, ticks, says}.  marks: [{x, text}], lines through all panels.
 * says(x): what is told of an x beside the values there.
 */
function lineFigure({ name, caption, panels, x, marks = [], says, height = 210, isTall = false }) {
  const panelHeight = isTall ? height : height / panels.length;
  const whole = TOP + panelHeight * panels.length + (panels.length - 1) * 14 + BELOW;
  const draw = (svg, width) => {
    let top = TOP;
    const bottomOfAll = whole - BELOW;
    let place = null;
    for (const { y, series } of panels) {
      const { placeX, placeY } = axes(svg, width, top, top + panelHeight, { x, y });
      place = placeX;
      for (const { points, color: stroke, dash, isPlain } of series) {
        const at = points.map(([px, py]) => [placeX(px), placeY(py)]);
        drawn(svg, "path", { d: linePath(at), class: "line", stroke, "stroke-dasharray": dash || "" });
        if (points.length <= 40 && !isPlain) {
          at.forEach(([cx, cy]) => drawn(svg, "circle", { cx, cy, r: 3, fill: stroke }));
        }
      }
      top += panelHeight + 14;
    }
    for (const mark of marks) {
      const at = place(mark.x);
      drawn(svg, "path", { d: `M${at} ${TOP}V${bottomOfAll}`, class: "mark" });
      const isRight = at > width / 2;
      const anchor = { "text-anchor": isRight ? "end" : "start" };
      drawn(svg, "text", { x: at + (isRight ? -5 : 5), y: TOP + 11, ...anchor, class: "marked" }, mark.text);
    }
    axisBelow(svg, width, bottomOfAll, x, place);
    hoverBands(svg, width, bottomOfAll, panels, place, says);
  };
  return figure(name, caption, whole, draw, legendOf(panels));
}

function legendOf(panels) {
  const series = panels.flatMap((panel) => panel.series);
  if (series.length < 2) {
    return null;
  }
  return legend(series.map((line) => line.name), series.map((line) => line.color));
}

/** The value of a line at an x, or at the nearest one where the line is of single steps. */
function valueAt({ points, isPlain }, x) {
  const distance = ([px]) => Math.abs(px - x);
  const nearest = points.reduce((best, point) => (distance(point) < distance(best) ? point : best));
  return isPlain || nearest[0] === x ? nearest[1] : null;
}

/** Invisible bands, one for each x: what one points at tells all values there. */
function hoverBands(svg, width, bottom, panels, place, says) {
  const all = panels.flatMap((panel) => panel.series).filter(({ points }) => points.length);
  const wide = all.filter(({ isPlain }) => !isPlain);
  const known = (wide.length ? wide : all).flatMap(({ points }) => points.map(([px]) => px));
  const xs = [...new Set(known)].sort((a, b) => a - b);
  xs.forEach((value, i) => {
    const at = place(value);
    const from = i ? (place(xs[i - 1]) + at) / 2 : LEFT;
    const to = i + 1 < xs.length ? (at + place(xs[i + 1])) / 2 : width - RIGHT;
    const told = all.map((line) => [line.name, valueAt(line, value)]);
    const lines = [says(value), ...told.filter(([, y]) => y !== null).map(([name, y]) => `${name}: ${round(y)}`)];
    const band = drawn(svg, "g", { class: "band", "data-tip": lines.join("\n") });
    drawn(band, "rect", { x: from, y: TOP, width: Math.max(to - from, 1), height: bottom - TOP });
    drawn(band, "path", { d: `M${at} ${TOP}V${bottom}` });
  });
}

/** The x axis of bars, counted in groups: a text for each, or nice values between their edges. */
function groupScale({ name, labels, edges }) {
  const groups = labels ? labels.length : edges.length - 1;
  const scale = { name, low: 0, high: groups };
  if (labels) {
    scale.ticks = labels.map((label, i) => i + 0.5);
    scale.says = (tick) => labels[Math.floor(tick)];
    return scale;
  }
  const first = edges[0];
  const span = edges.at(-1) - first;
  const values = niceScale(first, edges.at(-1), 6).ticks;
  const inside = values.filter((value) => value >= first && value <= first + span);
  scale.ticks = inside.map((value) => (groups * (value - first)) / span);
  scale.says = (tick) => round(first + (tick * span) / groups);
  return scale;
}

/**
 * Bars that stand beside each other in groups.
 *
 * series: [{values: [...], color}], a value for each group; null has no bar.
 * x: {name, labels}, a text for each group, or {name, edges} of bins of equal width.
 * says(series, group): what a bar tells.
 */
function barFigure({ name, caption, series, x, y, says, height = 170 }) {
  const whole = TOP + height + BELOW;
  const scale = groupScale(x);
  const draw = (svg, width) => {
    const bottom = TOP + height;
    const { placeX, placeY } = axes(svg, width, TOP, bottom, { x: scale, y });
    const step = placeX(1) - placeX(0);
    const gap = Math.min(4, step * 0.2);
    const wide = (step - gap) / series.length;
    series.forEach(({ values, color: fill }, s) => {
      values.forEach((value, i) => {
        const from = placeX(i) + gap / 2 + s * wide;
        const at = placeY(value || 0);
        const bar = drawn(svg, "g", { class: "bar", "data-tip": says(s, i) });
        drawn(bar, "rect", { x: from, y: TOP, width: wide, height, fill: "transparent" });
        const size = { width: Math.max(wide - 1, 0.5), height: Math.max(bottom - at, 0) };
        drawn(bar, "rect", { x: from, y: at, ...size, fill });
      });
    });
    axisBelow(svg, width, bottom, scale, placeX);
  };
  return figure(name, caption, whole, draw);
}

// ---- rows with a track, of HTML: names wrap and are never cut off

/** Ticks below a list of tracks. */
function trackAxis(scale, says) {
  const track = element("div", { class: "track ticks" });
  for (const tick of scale.ticks) {
    const mark = element("span", {}, says(tick));
    mark.style.left = `${percentOf(tick - scale.low, scale.high - scale.low)}%`;
    track.append(mark);
  }
  return element("div", { class: "row", "aria-hidden": "true" }, element("span"), track, element("span"));
}

/** Horizontal bars: rows of {name, value, kind, says}, a value each on a scale from 0. */
function barList(rows, scale, label) {
  const list = rows.map(({ name, value, kind, says }) => {
    const bar = element("span", { class: "fill" });
    bar.style.width = `${percentOf(value, scale.high)}%`;
    return element(
      "li",
      { class: `row ${kind || ""}`, "data-tip": says },
      element("span", { class: "name" }, name),
      element("div", { class: "track" }, bar),
      element("span", { class: "value" }, fixed(value)),
    );
  });
  const axis = trackAxis(scale, round);
  return element("div", { class: "bars" }, element("ul", { "aria-label": label }, ...list), axis);
}

/** Differences with their intervals: rows of {name, value, low, high, isClear}. */
function forest(rows, scale, label) {
  const place = (value) => percentOf(value - scale.low, scale.high - scale.low);
  const list = rows.map(({ name, value, low, high, isClear }) => {
    const zero = element("span", { class: "zero" });
    const interval = element("span", { class: "interval" });
    const dot = element("span", { class: "dot" });
    zero.style.left = `${place(0)}%`;
    interval.style.left = `${place(low)}%`;
    interval.style.width = `${place(high) - place(low)}%`;
    dot.style.left = `${place(value)}%`;
    const says = `${name}: ${signed(value)} (${signed(low)} to ${signed(high)})${isClear ? ", clear" : ""}`;
    const sign = value < 0 ? "worse" : "better";
    return element(
      "li",
      { class: `row ${isClear ? sign : "unclear"}`, "data-tip": says },
      element("span", { class: "name" }, name),
      element("div", { class: "track" }, zero, interval, dot),
      element("span", { class: "value" }, signed(value)),
    );
  });
  const axis = trackAxis(scale, (tick) => (tick > 0 ? `+${round(tick)}` : round(tick).replace("-", "−")));
  return element("div", { class: "bars forest" }, element("ul", { "aria-label": label }, ...list), axis);
}
