// What the words of the page mean: shown at the words, and as a list at the page's end.

const TERMS = {
  point: "One row of the data: a text with its true labels.",
  "P@k": "Precision at k: how many of the first k predicted labels are right, in percent, on average over the points.",
  "R@k": "Recall at k: how many of a point's true labels stand among its first k predictions, in percent, on average.",
  "nDCG@k": "Normalized discounted cumulative gain: like P@k, but a right label counts more the higher it stands; 100 is the best order there can be.",
  "PSP@k": "Propensity-scored precision: P@k in which a right rare label counts more than a right frequent one, as a percentage of the best that can be reached.",
  "PSnDCG@k": "nDCG@k with the weights of PSP@k.",
  "MRR@k": "Mean reciprocal rank: 1 divided by the rank of the first right label, 0 beyond rank k; in percent, on average.",
  propensity: "How likely a true label was noted down when the data was made. Rare labels are forgotten more often; 1 / propensity is their weight in PSP@k (Jain et al., 2016).",
  "filter pairs": "Pairs of a point and a label that are the same item, so that the answer would be trivial. They are removed from the predictions before anything is counted.",
  precision: "Of what was predicted, how much is right.",
  recall: "Of what is true, how much was predicted.",
  F1: "Harmonic mean of precision and recall. Micro: over all pairs of points and labels together; macro: the mean over labels, rare ones counting as much as frequent ones; example: the mean over points.",
  AP: "Average precision of a label: the area under its curve of precision over recall.",
  threshold: "The least probability at which a label is given as an answer, chosen on points that the model was not trained on.",
  "coverage error": "How many of the first labels one must take, on average, to have all true labels of a point.",
  answered: "Share of points that get a label at the threshold.",
  probability: "A score that has been calibrated: of the predictions with probability 0.7, about 70 % should be right.",
  ECE: "Expected calibration error: how far probabilities are from the share of right predictions, on average over the predictions; 0 is best.",
  "head, torso, tail": "Labels with many, some and few training points. Most labels are tail, and most mistakes are made there.",
  "training points": "Points of the training data that have the label.",
  group: "Labels ordered by training points and cut into ten parts of nearly equal numbers of labels; group 1 has the rarest.",
  member: "One of the models of a fusion. Each proposes labels, and all score what the others proposed.",
  fusion: "A small model that reads what all members say of a label and answers how likely it is right.",
  stage: "One part of the training of a run: a model that is trained before those that start from it.",
  "best epoch": "The epoch whose model is kept: the one with the best metric on the validation points.",
  epoch: "One pass over all training points.",
  loss: "What training makes smaller.",
  validation: "Points that were held out of training, to choose by.",
  interval: "95 % of the differences that one would measure on other points of the same kind lie in it: a paired bootstrap over the points. Where it does not hold 0 the difference is clear.",
  cluster: "Labels that a tree or graph keeps together: a text is first sent to clusters, then to their labels.",
  confusion: "A point that ranks a wrong label first and does not have the true one among its first 5.",
  "other system": "Measured with its released package on the same data, the same split and the same filter pairs.",
};

/** A word that says what it means when one points at it; `shown` is how it stands here. */
function term(name, shown = name) {
  const says = TERMS[name];
  if (!says) {
    return element("span", {}, shown);
  }
  return element("span", { class: "term", tabindex: "0", "data-tip": says }, shown);
}

const SPELLED = {
  average_precision: ["AP", "AP"],
  training_points: ["training points", "training points"],
  micro_F1: ["F1", "micro-F1"],
  macro_F1: ["F1", "macro-F1"],
  example_F1: ["F1", "example-F1"],
  answered: ["answered", "answered"],
};

/** A metric such as PSP@5 or micro_F1, which says what it is. */
function metricTerm(name) {
  if (SPELLED[name]) {
    return term(...SPELLED[name]);
  }
  const family = name.split("@")[0];
  if (name.includes("@")) {
    return family === "recall" ? term("recall", name) : term(`${family}@k`, name);
  }
  const shown = name.replaceAll("_", "-");
  const last = shown.split("-").at(-1);
  return term(TERMS[last] ? last : shown, shown);
}

const metricName = (name) => (SPELLED[name] ? SPELLED[name][1] : name.replaceAll("_", "-"));
