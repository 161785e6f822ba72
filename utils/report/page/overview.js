// The first screen: four figures, and the systems beside each other. Then all metrics, and members.

const RANKED = ["P@1", "P@5", "R@100", "PSP@5"];

/** A metric, or where the data has too few labels for its k the same at the largest k there is. */
function available(name) {
  if (name in data.metrics) {
    return name;
  }
  const family = name.split("@")[0];
  const ks = Object.keys(data.metrics)
    .filter((key) => key.startsWith(`${family}@`))
    .map((key) => Number(key.split("@")[1]));
  return ks.length ? `${family}@${Math.max(...ks)}` : null;
}

function bigMetrics() {
  const wanted = "micro_F1" in data.metrics ? [...RANKED.slice(0, 3), "micro_F1"] : RANKED;
  return [...new Set(wanted.map(available).filter(Boolean))];
}

/** The best of some systems {name, metrics} in a metric; null where none has it. */
function bestOf(systems, metric) {
  const known = systems.filter(({ metrics }) => isNumber(metrics[metric]));
  return known.reduce(
    (best, system) => (best && best.metrics[metric] >= system.metrics[metric] ? best : system),
    null,
  );
}

const others = Object.entries(data.peers).map(([name, metrics]) => ({ name, metrics }));

function distance(metric, value) {
  const isPeer = others.length > 0;
  const best = bestOf(isPeer ? others : data.members, metric);
  if (!best) {
    const why = isPeer ? "not measured of other systems" : "";
    return element("p", { class: "distance" }, why);
  }
  const difference = value - best.metrics[metric];
  const says = `${best.name}: ${fixed(best.metrics[metric])}`;
  const kind = difference < 0 ? "worse" : "better";
  return element(
    "p",
    { class: "distance", "data-tip": says },
    element("strong", { class: kind }, signed(difference)),
    ` to ${isPeer ? "the best other system" : "its best member"}, ${best.name}`,
  );
}

function tile(metric) {
  const value = data.metrics[metric];
  return element(
    "div",
    { class: "tile" },
    element("h3", {}, metricTerm(metric)),
    element("p", { class: "figure" }, fixed(value), element("small", {}, " %")),
    distance(metric, value),
  );
}

function systemBars(metric) {
  const own = { name: "this run", metrics: data.metrics, kind: "own" };
  const members = data.members.map((member) => ({ ...member, name: `member ${member.name}`, kind: "member" }));
  const systems = [own, ...others, ...members].filter(({ metrics }) => isNumber(metrics[metric]));
  const rows = systems
    .map(({ name, metrics, kind }) => ({ name, value: metrics[metric], kind }))
    .sort((a, b) => b.value - a.value)
    .map((row) => ({ ...row, says: `${row.name}: ${fixed(row.value)} % ${metricName(metric)}` }));
  return barList(rows, percentScale(), `${metricName(metric)} of the systems, in percent`);
}

function systems() {
  const place = element("div");
  const compared = [...others, ...data.members];
  const metrics = ["P@1", "P@3", "P@5", "PSP@1", "PSP@5", "R@100"].filter(
    (metric) => isNumber(data.metrics[metric]) && bestOf(compared, metric),
  );
  if (!metrics.length) {
    return null;
  }
  const buttons = choices(metrics, "metric of the bars", (metric) => {
    place.replaceChildren(systemBars(metric));
  });
  const heading = element("h3", {}, "Beside ", others.length ? term("other system", "other systems") : "its members");
  return element("div", { class: "systems" }, heading, buttons, place, note(data.peers_source));
}

function overview() {
  const big = bigMetrics();
  if (!big.length) {
    return [];
  }
  return [element("div", { class: "tiles" }, ...big.map(tile)), systems()];
}

// ---- all metrics

/** A row for each family of metrics, a column for each k. */
function metricsByK() {
  const families = new Map();
  const ks = new Set();
  for (const [key, value] of Object.entries(data.metrics)) {
    const [family, k] = key.split("@");
    if (k !== undefined) {
      ks.add(Number(k));
      families.set(family, { ...families.get(family), [k]: value });
    }
  }
  if (!families.size) {
    return null;
  }
  const sorted = [...ks].sort((a, b) => a - b);
  const rows = [...families].map(([family, values]) => ({
    cells: [term(`${family}@k`, family), ...sorted.map((k) => fixed(values[k]))],
  }));
  return table(["percent at k", ...sorted.map(String)], rows, "metrics by k");
}

function peerTable() {
  if (!others.length) {
    return null;
  }
  const columns = [...new Set(others.flatMap(({ metrics }) => Object.keys(metrics)))];
  const line = (name, metrics, kind) => ({ cells: [name, ...columns.map((c) => fixed(metrics[c]))], kind });
  const rows = [line("this run", data.metrics, "own"), ...others.map(({ name, metrics }) => line(name, metrics))];
  return table(["system", ...columns.map(metricTerm)], rows, "metrics of other systems");
}

const COVERAGE = "coverage_error";  // the one metric that is no percentage

function coverage() {
  const value = data.metrics[COVERAGE];
  return isNumber(value) ? note(term("coverage error", "Coverage error"), `: ${round(value)} labels.`) : null;
}

/** Metrics without a k: those at the run's threshold. */
function thresholdMetrics() {
  const known = Object.entries(data.metrics).filter(
    ([name, value]) => !name.includes("@") && name !== COVERAGE && isNumber(value),
  );
  if (!known.length) {
    return null;
  }
  const rows = known.map(([name, value]) => ({ cells: [metricTerm(name), fixed(value)] }));
  return element(
    "div",
    {},
    element("h3", {}, "At the ", term("threshold")),
    table(["metric", "percent"], rows, "metrics at the threshold", "narrow"),
  );
}

function allMetrics() {
  const peers = peerTable();
  const heading = peers ? element("h3", {}, "Beside other systems") : null;
  const content = [metricsByK(), coverage(), thresholdMetrics(), heading, peers].filter(Boolean);
  if (!content.length) {
    return [];
  }
  const filtered = note("In percent. ", term("filter pairs", "Filter pairs"), " are not counted.");
  return [filtered, ...content];
}

// ---- members of a fusion

function memberSection() {
  if (!data.members.length) {
    return [];
  }
  const wanted = ["P@1", "P@3", "P@5", "nDCG@5", "PSP@1", "PSP@5", "R@10", "R@100"];
  const columns = wanted.filter((name) => isNumber(data.members_fused[name]));
  const line = (name, metrics, kind) => ({ cells: [name, ...columns.map((c) => fixed(metrics[c]))], kind });
  const rows = [
    line("the fusion", data.members_fused, "own"),
    ...data.members.map(({ name, metrics }) => line(name, metrics)),
  ];
  const bars = element("div");
  const shown = columns.filter((name) => ["P@1", "P@5", "PSP@5", "R@100"].includes(name));
  const buttons = choices(shown, "metric of the members", (metric) => {
    const drawnRows = [{ name: "the fusion", metrics: data.members_fused, kind: "own" }, ...data.members].map(
      ({ name, metrics, kind }) => ({
        name,
        value: metrics[metric],
        kind: kind || "member",
        says: `${name}: ${fixed(metrics[metric])} % ${metric}`,
      }),
    );
    bars.replaceChildren(barList(drawnRows, percentScale(), `${metric} of the members, in percent`));
  });
  const sample =
    data.members_points < data.num_points
      ? ` On the ${counted(data.members_points)} points of the table below, evenly spaced over the split.`
      : "";
  return [
    note("What each ", term("member"), " says alone, beside what the ", term("fusion"), ` makes of them, in percent.${sample}`),
    buttons,
    bars,
    table(["model", ...columns.map(metricTerm)], rows, "metrics of the members"),
  ];
}
