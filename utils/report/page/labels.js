// Labels: by how often they are seen in training, and one by one.

const RARE = 3;  // training points at most: a rare label

/** Metrics of groups of labels as columns: [key, groups of one run]. */
function groupColumns(tables) {
  const keys = Object.keys(tables[0]).filter((key) => key.includes("@"));
  return keys.flatMap((key) => tables.map((groups) => ({ key, groups })));
}

function groupTable(tables, names, label) {
  const first = tables[0];
  const columns = groupColumns(tables);
  const heads = columns.map(({ key, groups }) =>
    groups.run ? element("span", {}, metricTerm(key), ` ${groups.run}`) : metricTerm(key),
  );
  const rows = names.map((name, i) => ({
    cells: [
      name,
      range(first.fewest[i], first.most[i]),
      counted(first.labels[i]),
      counted(first.pairs[i]),
      ...columns.map(({ key, groups }) => fixed(groups[key][i])),
    ],
  }));
  return table([term("group"), term("training points"), "labels", "true pairs", ...heads], rows, label);
}

function groupCharts(tables) {
  const first = tables[0];
  const keys = Object.keys(first).filter((key) => key.includes("@"));
  const shares = keys.filter((key) => key.startsWith("P@") && Number(key.slice(2)) <= 10);
  const recalls = keys.filter((key) => key.startsWith("recall@"));
  const most = Math.max(...shares.flatMap((key) => tables.flatMap((groups) => groups[key])), 0);
  const shareScale = { name: "percent points", ...niceScale(0, most || 1, 5) };
  const recallScale = { name: "percent", ...percentScale() };
  const chart = (key, y, caption) =>
    barFigure({
      name: key,
      caption,
      series: tables.map((groups, i) => ({ values: groups[key], color: color(i) })),
      x: { name: "group, rare to frequent", labels: first.labels.map((count, i) => String(i + 1)) },
      y,
      says: (s, i) =>
        `${tables[s].run ? `${tables[s].run}\n` : ""}group ${i + 1}: ${range(first.fewest[i], first.most[i])} training points` +
        `\n${key}: ${tables[s][key][i] === null ? "no true pairs" : round(tables[s][key][i])}`,
    });
  return element(
    "div",
    { class: "charts" },
    ...shares.map((key) => chart(key, shareScale, "what a group adds")),
    ...recalls.map((key) => chart(key, recallScale, "of the group's true labels")),
  );
}

function frequencySection() {
  const content = [];
  if (data.groups) {
    const { names, says } = data.groups;
    content.push(element("h3", {}, term("head, torso, tail", "Head, torso and tail")), note(says || ""));
    content.push(groupTable([data.groups], names, "metrics of head, torso and tail"));
  }
  if (data.deciles.length) {
    const names = data.deciles[0].labels.map((count, i) => String(i + 1));
    content.push(
      note(
        "Labels by ",
        term("training points"),
        ", cut into ",
        term("group", "groups"),
        " of nearly equal numbers of labels, the rarest first. P@k is the part of P@k that comes from a group: " +
          "the groups add up to it. Recall@k is of the group's own true labels.",
      ),
      runs.length ? legend(runs) : "",
      groupCharts(data.deciles),
      groupTable(data.deciles, names, "metrics by label frequency"),
    );
  }
  return content;
}

// ---- label by label

const LABEL_HEADS = {
  text: "label",
  training_points: "training points",
  points: "points",
  predicted: "predicted",
  precision: "precision",
  recall: "recall",
  F1: "F1",
  average_precision: "AP",
};
const LABEL_SAYS = {
  training_points: TERMS["training points"],
  points: "Points of this split that have the label.",
  predicted: "Points of this split that are given the label.",
  precision: TERMS.precision,
  recall: TERMS.recall,
  F1: "Harmonic mean of precision and recall.",
  average_precision: TERMS.AP,
};

function labelColumn(name, place) {
  const isText = name === "text";
  return {
    name: LABEL_HEADS[name] || name.replaceAll("_", " "),
    key: (row) => (isText ? row[place].toLowerCase() : row[place]),
    downFirst: !isText,
    isRight: !isText,
    says: LABEL_SAYS[name],
  };
}

function labelSection() {
  const given = data.label_table;
  if (!given || !given.rows.length) {
    return [];
  }
  const textPlace = given.columns.indexOf("text");
  const places = given.columns.map((name, place) => place).filter((place) => place && place !== textPlace);
  const shares = new Set(["precision", "recall", "F1", "average_precision"]);
  const cell = (row, place) => {
    const isShare = shares.has(given.columns[place]);
    return element("td", { class: "num" }, isShare ? fixed(row[place], 1) : counted(row[place]));
  };
  const trained = given.columns.indexOf("training_points");
  const right = given.columns.indexOf("recall");
  const isDecided = given.rows.some((row) => isNumber(row[right]));
  const filters = [];
  if (trained >= 0) {
    const holds = (row) => row[trained] <= RARE;
    filters.push({ name: "rare labels", says: `Labels of at most ${RARE} training points.`, holds });
  }
  if (isDecided) {
    const had = given.columns.indexOf("points");
    const holds = (row) => row[had] > 0 && !row[right];
    const says = "Labels that points of this split have, and that none of these is given.";
    filters.push({ name: "never right", says, holds });
  }
  const shown = [textPlace, ...places];
  const pointPlace = shown.indexOf(given.columns.indexOf("points"));
  const labelTable = new PagedTable({
    rows: given.rows,
    columns: shown.map((place) => labelColumn(given.columns[place], place)),
    first: { column: Math.max(pointPlace, 0), isDown: pointPlace > 0 },
    filters,
    found: (row) => row[textPlace].toLowerCase(),
    draw: (row) =>
      element(
        "tr",
        {},
        element("th", { scope: "row" }, row[textPlace]),
        ...places.map((place) => cell(row, place)),
      ),
    prefix: "label-",
    what: "labels",
    placeholder: "labels",
  });
  const hidden = given.hidden
    ? ` The ${counted(given.rows.length)} labels of the most points; labels.csv in the run folder has ${counted(given.hidden)} more.`
    : "";
  const told = isDecided
    ? [term("precision", "Precision"), ", ", term("recall"), " and ", term("F1"), " of each label at the ", term("threshold"), ", and its "]
    : ["The run has no ", term("threshold"), " to decide by; of each label its "];
  return [
    note(...told, term("AP"), `, in percent.${hidden}`),
    ...labelTable.nodes(),
  ];
}
