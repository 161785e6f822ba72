// Training: the stages in their order, and the curves of each over epochs.

const bestColumns = ["P@1", "P@5", "nDCG@5", "PSP@5"];

function stageTable() {
  const columns = bestColumns.filter((name) => data.stages.some(({ validation }) => isNumber(validation[name])));
  const rows = data.stages.map((stage) => ({
    cells: [
      stage.name || "the run",
      stage.method || "",
      stage.epochs ? String(stage.epochs) : "",
      stage.epochs ? String(stage.best_epoch) : "",
      isNumber(stage.seconds) ? duration(stage.seconds) : "",
      ...columns.map((name) => fixed(stage.validation[name])),
    ],
  }));
  const heads = [
    term("stage"),
    "method",
    term("epoch", "epochs"),
    term("best epoch"),
    "time",
    ...columns.map((name) => metricTerm(name)),
  ];
  return table(heads, rows, "stages");
}

/** One figure of a stage: above the loss of training, below the metrics of validation. */
function stageFigure({ name, best_epoch: best, curves }) {
  const panels = [];
  const order = ["step", "train", "val"];  // what is drawn last lies above
  const losses = curves
    .filter((curve) => curve.name === "loss")
    .sort((a, b) => order.indexOf(a.kind) - order.indexOf(b.kind));
  const metrics = curves.filter((curve) => curve.name !== "loss");
  if (losses.length) {
    panels.push({ y: lossScale(losses), series: losses.map(lossSeries) });
  }
  if (metrics.length) {
    const series = metrics.map((curve, i) => ({
      name: curve.kind === "val" ? `${curve.name}, validation` : `${curve.name}, training`,
      points: curve.points,
      color: color(i),
      dash: curve.kind === "val" ? "" : "5 4",
    }));
    panels.push({ y: { name: "validation, %", ...percentScale() }, series });
  }
  const last = Math.max(...curves.flatMap(({ points }) => points.map(([epoch]) => epoch)));
  const x = { name: "epoch", ...niceScale(0, last, 10, true), low: 0, high: last };
  x.ticks = x.ticks.filter((tick) => tick <= last);
  const marks = best && best <= last ? [{ x: best, text: `best epoch: ${best}` }] : [];
  return lineFigure({
    name: name ? `Stage ${name}` : "Training and validation",
    caption: "",
    panels,
    x,
    marks,
    says: (epoch) => `epoch ${round(epoch)}`,
    height: 150,
    isTall: true,
  });
}

function lossScale(losses) {
  const values = losses.flatMap(({ points }) => points.map(([, value]) => value));
  return { name: "training loss", ...niceScale(Math.min(0, ...values), Math.max(...values), 4) };
}

const LOSSES = { train: "loss, training", step: "loss, single steps", val: "loss, validation" };

function lossSeries({ kind, points }) {
  return {
    name: LOSSES[kind] || "loss",
    points,
    color: kind === "step" ? "var(--line)" : "var(--soft)",
    dash: kind === "val" ? "5 4" : "",
    isPlain: kind === "step",
  };
}

function trainingSection() {
  const known = data.stages.filter(
    ({ curves, seconds, validation }) => curves.length || isNumber(seconds) || Object.keys(validation).length,
  );
  if (!known.length) {
    return [];
  }
  const figures = data.stages.filter(({ curves }) => curves.length).map(stageFigure);
  return [
    note(
      "Metrics are those of the ",
      term("best epoch"),
      " on the ",
      term("validation"),
      " points, in percent. ",
      data.stages.length > 1 ? "Stages stand in the order in which they are trained." : "",
    ),
    stageTable(),
    figures.length ? element("div", { class: "charts wide" }, ...figures) : null,
  ];
}
