// What the scores are worth: thresholds, reliability, confusions; clusters and plots.

const CURVES = [
  ["precision", "precision"],
  ["recall", "recall"],
  ["micro_F1", "micro-F1"],
  ["macro_F1", "macro-F1"],
];

function thresholdSection() {
  const curve = data.threshold_curve;
  if (!curve) {
    return [];
  }
  const known = CURVES.filter(([key]) => curve[key]);
  const series = known.map(([key, name], i) => ({
    name,
    points: curve.threshold.map((value, n) => [value, curve[key][n]]).filter(([, value]) => isNumber(value)),
    color: color(i),
  }));
  const chosen = data.threshold;
  const marks = chosen ? [{ x: chosen.value, text: `chosen: ${round(chosen.value)}` }] : [];
  const told = [];
  if (chosen) {
    told.push(` The run's own, ${round(chosen.value)}, was chosen for ${metricName(chosen.chosen_for || "").replace("f1", "F1")}`);
    told.push(chosen.labels ? `; ${counted(chosen.labels)} labels have a threshold of their own.` : ".");
  }
  const figureOfCurve = lineFigure({
    name: "Metrics by threshold",
    caption: "",
    panels: [{ y: { name: "percent", ...percentScale() }, series }],
    x: { name: "threshold of the probability", ...niceScale(0, 1, 10) },
    marks,
    says: (value) => `threshold ${round(value)}`,
    height: 230,
  });
  return [
    note(
      "A label is given as an answer where its ",
      term("probability"),
      " is at least the ",
      term("threshold"),
      `: a low one finds more, a high one is more often right.${told.join("")}`,
    ),
    element("div", { class: "charts wide" }, figureOfCurve),
  ];
}

// ---- reliability

/** The expected calibration error in percent, as given or of the bins. */
function calibrationError(bins) {
  if (isNumber(data.ece)) {
    return data.ece;
  }
  const all = bins.count.reduce((sum, count) => sum + count, 0);
  const gaps = bins.count.map((count, i) => count * Math.abs(bins.score[i] - bins.right[i]));
  return percentOf(gaps.reduce((sum, gap) => sum + gap, 0), all);
}

function reliabilityFigure(bins) {
  const full = [...bins.count.keys()].filter((i) => bins.count[i]);
  const unit = niceScale(0, 1, 5);
  const panel = {
    y: { name: "share right", ...unit },
    series: [
      { name: "this run", points: full.map((i) => [bins.score[i], bins.right[i]]), color: color(0) },
      { name: "as it should be", points: [[0, 0], [1, 1]], color: "var(--soft)", dash: "4 4" },
    ],
  };
  const counts = new Map(full.map((i) => [bins.score[i], bins.count[i]]));
  return lineFigure({
    name: "Share of right predictions by probability",
    caption: "Below the dashed line the run is too sure of itself, above it too careful.",
    panels: [panel],
    x: { name: "probability", ...unit },
    says: (value) =>
      counts.has(value)
        ? `probability ${round(value)}, ${counted(counts.get(value))} predictions`
        : `probability ${round(value)}`,
    height: 190,
  });
}

/** A power of ten, shortly: 10, 100, 1k, ... */
function thousands(value) {
  if (value >= 1e6) {
    return `${value / 1e6}M`;
  }
  return value >= 1e3 ? `${value / 1e3}k` : String(value);
}

/** How many predictions have which probability; on a log scale, for most have a low one. */
function countFigure(bins) {
  const logs = bins.count.map((count) => (count ? Math.log10(count) + 1 : 0));
  const most = Math.max(Math.ceil(Math.max(...logs)), 1);
  const ticks = Array.from({ length: most + 1 }, (nothing, i) => i);
  const says = (tick) => (tick ? thousands(10 ** (tick - 1)) : "0");
  const edges = Array.from({ length: bins.count.length + 1 }, (nothing, i) => i / bins.count.length);
  return barFigure({
    name: "Predictions by probability",
    caption: "On a logarithmic scale: each line is ten times the one below.",
    series: [{ values: logs, color: color(0) }],
    x: { name: "probability", edges },
    y: { name: "predictions", low: 0, high: most, ticks, says },
    says: (s, i) => `probability ${round(edges[i])} to ${round(edges[i + 1])}: ${counted(bins.count[i])} predictions`,
    height: 190,
  });
}

function reliabilitySection() {
  const bins = data.reliability;
  if (!bins) {
    return [];
  }
  return [
    note(
      "Whether a ",
      term("probability"),
      " can be believed. Its error, ",
      term("ECE", "ECE"),
      ": ",
      element("strong", { id: "ece" }, `${fixed(calibrationError(bins))} %`),
      ".",
    ),
    element("div", { class: "charts" }, reliabilityFigure(bins), countFigure(bins)),
  ];
}

// ---- confusions, clusters, plots

function confusionSection() {
  if (!data.confusions.length) {
    return [];
  }
  const rows = data.confusions.map(([right, wrong, times]) => ({ cells: [right, wrong, String(times)] }));
  return [
    note("Each is a ", term("confusion"), "; the most frequent first."),
    table(["true label", "wrong label, ranked first", "points"], rows, "labels taken for one another", "tall"),
  ];
}

function clusterFigure({ name, clusters, smallest, largest, counts, edges }) {
  return barFigure({
    name,
    caption: `${counted(clusters)} clusters of ${range(smallest, largest)} labels`,
    series: [{ values: counts, color: color(0) }],
    x: { name: "labels in a cluster", edges },
    y: { name: "clusters", ...niceScale(0, Math.max(...counts, 1), 5, true) },
    says: (s, i) => `${round(edges[i])} to ${round(edges[i + 1])} labels: ${counted(counts[i])} clusters`,
  });
}

function clusterSection() {
  if (!data.clusters.length) {
    return [];
  }
  const rows = data.examples.map(({ name, labels, pairs, texts }) => ({
    cells: [name, counted(labels), counted(pairs), texts.join(" · ")],
  }));
  const examples = rows.length
    ? [
        note(
          "The clusters of the most training pairs, each with its labels of the strongest edges; in a tree, " +
            "the most frequent ones.",
        ),
        table(["cluster", "labels", "training pairs", "its first labels"], rows, "clusters", "tall"),
      ]
    : [];
  return [
    note("How many labels the ", term("cluster", "clusters"), " hold."),
    element("div", { class: "charts" }, ...data.clusters.map(clusterFigure)),
    ...examples,
  ];
}

function plotSection() {
  if (!data.plots.length) {
    return [];
  }
  const figures = data.plots.map(({ name, data: picture, alt }) => {
    const image = element("img", { src: `data:image/png;base64,${picture}`, alt });
    return element("figure", {}, element("h3", {}, name), image);
  });
  return [element("div", { class: "charts wide" }, ...figures)];
}
