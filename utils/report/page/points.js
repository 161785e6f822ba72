// The points: their texts, labels and predictions, with filters, and as a CSV file to take away.

const FEW = 8;  // true labels that are shown at once
const points = data.points;
const labelText = (id) => data.labels[id];
const hasOwnIds = points.some((point) => point.own_id !== undefined);

/** The first predictions [label, score, right] of a point, of each run. */
const topsOf = (point) => (runs.length ? point.top : [point.top]);
const hitsOf = (point) => topsOf(point).map((top) => top.filter(([, , right]) => right).length);

function tag(id, right, ...more) {
  const text = `${right ? "✓ " : "✗ "}${labelText(id)}`;
  return element("li", {}, element("span", { class: `tag ${right ? "right" : "wrong"}` }, text), ...more);
}

function scored([id, score, right]) {
  return tag(id, right, element("span", { class: "score" }, ` ${round(score)}`));
}

// ---- a point as a row

function trueLabels(point) {
  const items = point.true.map((id) => element("li", {}, element("span", { class: "tag" }, labelText(id))));
  if (point.hidden) {
    items.push(element("li", {}, `and ${point.hidden} more`));
  }
  const list = element("div", {}, element("ul", { class: "flat" }, ...items.slice(0, FEW)));
  if (items.length > FEW) {
    const more = items.length - FEW + Math.max(point.hidden - 1, 0);
    const rest = element("ul", { class: "flat" }, ...items.slice(FEW));
    list.append(element("details", {}, element("summary", {}, `${more} more`), rest));
  }
  return list;
}

/** What each member says of a point. */
function viewsOf(point) {
  const heads = [
    term("member"),
    "its own first labels",
    ...point.top.map(([id]) => `→ ${labelText(id)}`),
  ];
  const rows = point.views.map(([own, shares], m) => {
    const list = element("ul", { class: "flat" }, ...own.map(([id, right]) => tag(id, right)));
    return { cells: [data.members[m].name, list, ...shares.map(round)] };
  });
  return table(heads, rows, `members on point ${point.id}`, "views");
}

function viewsBox(point) {
  const box = element(
    "details",
    {},
    element("summary", {}, "what each member says"),
    note("Numbers: what a member adds to the score of each fused label."),
  );
  const draw = () => box.append(viewsOf(point));
  box.addEventListener("toggle", draw, { once: true });
  return box;
}

function pointRow(point) {
  const lists = topsOf(point).map((top, i) => {
    const list = element("ol", {}, ...top.map(scored));
    return element("td", { "data-name": runs[i] || "predictions" }, list);
  });
  if (point.views) {
    lists[0].append(viewsBox(point));
  }
  const hits = runs.length ? hitsOf(point).join(" · ") : `${hitsOf(point)[0]} of ${point.top.length}`;
  const ownId = hasOwnIds ? [element("td", { "data-name": "id" }, point.own_id)] : [];
  return element(
    "tr",
    {},
    element("td", { class: "num", "data-name": "point" }, String(point.id)),
    ...ownId,
    element("td", { class: "text", "data-name": "text" }, point.text + (point.more ? " …" : "")),
    element("td", { "data-name": "true labels" }, trueLabels(point)),
    ...lists,
    element("td", { class: "num", "data-name": "right" }, hits),
  );
}

// ---- columns and filters

function pointColumns() {
  const firstScore = (i) => (point) => {
    const top = topsOf(point)[i];
    return top.length ? top[0][1] : null;
  };
  const names = runs.length ? runs : ["first 5 predictions"];
  const gained = (point) => hitsOf(point).at(-1) - hitsOf(point)[0];
  const right = runs.length
    ? { key: gained, hint: " (last run less the first)" }
    : { key: (point) => hitsOf(point)[0], hint: " (of the first 5)" };
  const ownId = hasOwnIds ? [{ name: "id", key: (point) => point.own_id.toLowerCase() }] : [];
  return [
    { name: "number", key: (point) => point.id, isRight: true },
    ...ownId,
    { name: "text", key: (point) => point.text.toLowerCase() },
    { name: "true labels", key: (point) => point.true.length + point.hidden, hint: " (by how many)", downFirst: true },
    ...names.map((name, i) => ({ name, key: firstScore(i), hint: " (by the first score)", downFirst: true })),
    { name: "right", ...right, downFirst: true, isRight: true },
  ];
}

function pointFilters() {
  const isRare = (point) => point.true.some((id) => data.label_counts[id] <= RARE);
  const rare = {
    name: "rare labels",
    says: `Points with a true label of at most ${RARE} training points.`,
    holds: isRare,
  };
  if (runs.length) {
    const change = (point) => hitsOf(point).at(-1) - hitsOf(point)[0];
    return [
      { name: "gained", says: "The last run has more right than the first.", holds: (point) => change(point) > 0 },
      { name: "lost", says: "The last run has fewer right than the first.", holds: (point) => change(point) < 0 },
      rare,
    ];
  }
  return [
    {
      name: "only misses",
      says: "Points that have none of their true labels among the first 5 predictions.",
      holds: (point) => point.true.length > 0 && hitsOf(point)[0] === 0,
    },
    {
      name: "first wrong",
      says: "Points whose first prediction is wrong.",
      holds: (point) => !point.top.length || !point.top[0][2],
    },
    rare,
  ];
}

// ---- the CSV file

const quoted = (value) => `"${String(value).replaceAll('"', '""')}"`;

/** A line for each prediction, and one without a rank for each true label that is not predicted. */
function csvLines(point) {
  const lines = [];
  topsOf(point).forEach((top, i) => {
    const line = (rank, id, score, right) => {
      const ownId = hasOwnIds ? [quoted(point.own_id)] : [];
      const cells = [point.id, ...ownId, quoted(point.text), rank, id, quoted(labelText(id)), score, right];
      lines.push((runs.length ? [quoted(runs[i]), ...cells] : cells).join(","));
    };
    top.forEach(([id, score, right], rank) => line(rank + 1, id, score, right));
    const predicted = new Set(top.map(([id]) => id));
    point.true.filter((id) => !predicted.has(id)).forEach((id) => line("", id, "", 1));
  });
  return lines;
}

function csvOf(chosen) {
  const ownId = hasOwnIds ? ["id"] : [];
  const head = ["point", ...ownId, "text", "rank", "label", "label_text", "score", "is_true"];
  const lines = [(runs.length ? ["run", ...head] : head).join(","), ...chosen.flatMap(csvLines)];
  return `${lines.join("\r\n")}\r\n`;
}

function csvButton(pointTable) {
  const says =
    "The points found: a line for each of their first 5 predictions, and one without a rank for each true " +
    "label that is not among them.";
  const button = element("button", { id: "csv", type: "button", "data-tip": says }, "Save as CSV");
  button.addEventListener("click", () => {
    const file = new Blob([csvOf(pointTable.rows)], { type: "text/csv" });
    const link = element("a", { href: URL.createObjectURL(file), download: "predictions.csv" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  return button;
}

function pointSection() {
  const foundTexts = new Map();
  for (const point of points) {
    const ids = [...point.true, ...topsOf(point).flat().map(([id]) => id)];
    const ownId = hasOwnIds ? [point.own_id] : [];
    foundTexts.set(point, [point.text, ...ownId, ...ids.map(labelText)].join("\n").toLowerCase());
  }
  const pointTable = new PagedTable({
    rows: points,
    columns: pointColumns(),
    filters: pointFilters(),
    found: (point) => foundTexts.get(point),
    draw: pointRow,
    prefix: "",
    what: "points",
    placeholder: hasOwnIds ? "texts, ids and labels" : "texts and labels",
  });
  const told = [];
  if (points.length < data.num_points) {
    told.push(`${counted(points.length)} of ${counted(data.num_points)} points, evenly spaced.`);
  }
  if (runs.length) {
    told.push("Points whose true labels do not stand at the same ranks in the first 5 predictions of every run.");
  }
  told.push("Right predictions carry a ✓, wrong ones a ✗; the number behind each is its score");
  const score = data.score_is ? `: ${data.score_is}.` : ".";
  return [note(told.join(" ") + score), ...pointTable.nodes(csvButton(pointTable))];
}
