// Compared runs: their metrics, and how far each is from the first.

function metricTable({ columns, rows }) {
  const lines = rows.map(({ name, values }, i) => ({
    cells: [name, ...values.map((value) => fixed(value))],
    kind: i === 0 ? "own" : "",
  }));
  return table(["run", ...columns.map(metricTerm)], lines, "metrics of the runs");
}

/** A forest plot for each metric, all on one scale. */
function forests({ columns, rows }) {
  const compared = rows.filter(({ differences }) => differences);
  const ends = compared.flatMap(({ differences }) => differences.flatMap(([, low, high]) => [low, high]));
  const scale = niceScale(Math.min(0, ...ends), Math.max(0, ...ends), 6);
  const figures = columns.map((metric, c) => {
    const lines = compared.map(({ name, differences }) => {
      const [value, low, high, isClear] = differences[c];
      return { name, value, low, high, isClear };
    });
    const label = `differences in ${metric} to ${rows[0].name}`;
    return element("figure", {}, element("h3", {}, metricTerm(metric)), forest(lines, scale, label));
  });
  return element("div", { class: "charts wide" }, ...figures);
}

function differenceTable({ columns, rows }) {
  const cell = ([value, low, high, isClear]) =>
    element(
      "span",
      { class: "numeric" },
      element("span", { class: isClear ? "clear" : "" }, signed(value)),
      element("span", { class: "range" }, `${signed(low)} to ${signed(high)}`),
    );
  const lines = rows
    .filter(({ differences }) => differences)
    .map(({ name, differences }) => ({ cells: [`${name} − ${rows[0].name}`, ...differences.map(cell)] }));
  return table(["difference", ...columns.map(metricTerm)], lines, "differences to the first run");
}

function comparisonSection() {
  if (!data.comparison) {
    return [];
  }
  const first = data.comparison.rows[0].name;
  return [
    note("In percent. ", term("filter pairs", "Filter pairs"), " are not counted."),
    metricTable(data.comparison),
    element("h3", {}, `Difference to ${first}`),
    note(
      `Each dot is a run's metric less that of ${first}, its line the 95 % `,
      term("interval"),
      "; faint where 0 lies in it. All metrics are on one scale, in percent points.",
    ),
    forests(data.comparison),
    element("details", {}, element("summary", {}, "the differences as numbers"), differenceTable(data.comparison)),
  ];
}
