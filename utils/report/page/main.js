// The page itself: header, sections, how the run was made, terms, contents.

function header() {
  document.title = data.title;
  byId("title").textContent = data.title;
  for (const [name, value] of Object.entries(data.facts)) {
    const shown = Number.isInteger(value) ? counted(value) : String(value);
    byId("facts").append(element("li", {}, `${name} `, element("strong", {}, shown)));
  }
}

function madeValue(name, value) {
  if (name === "seconds of training") {
    return `${round(value)} (${duration(value)})`;
  }
  return isNumber(value) && !Number.isInteger(value) ? round(value) : String(value);
}

function madeSection() {
  const facts = Object.entries(data.made).map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, madeValue(name, value))),
  );
  const content = facts.length ? [element("dl", {}, ...facts)] : [];
  for (const [name, text] of Object.entries(data.configs)) {
    const config = element("pre", { tabindex: "0" }, text);
    content.push(element("details", {}, element("summary", {}, `the config, ${name}`), config));
  }
  return content;
}

function termSection() {
  const list = Object.entries(TERMS).map(([name, says]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, says)),
  );
  return [element("dl", { class: "terms" }, ...list)];
}

function contents() {
  const items = [...document.querySelectorAll("main > section")].map((section) => {
    const name = section.querySelector("h2").getAttribute("data-short");
    return element("li", {}, element("a", { href: `#${section.id}` }, name));
  });
  const box = document.querySelector("#contents > details");
  box.querySelector("ol").append(...items);
  const isWide = matchMedia("(min-width: 68rem)");
  const follow = () => {
    box.open = isWide.matches;
  };
  isWide.addEventListener("change", follow);
  follow();
}

header();
fill("overview", ...overview());
fill("comparison", ...comparisonSection());
fill("metrics", ...allMetrics());
fill("members", ...memberSection());
fill("training", ...trainingSection());
fill("frequency", ...frequencySection());
fill("labels", ...labelSection());
fill("thresholds", ...thresholdSection());
fill("reliability", ...reliabilitySection());
fill("confusions", ...confusionSection());
fill("clusters", ...clusterSection());
fill("plots", ...plotSection());
fill("points", ...pointSection());
fill("made", ...madeSection());
fill("terms", ...termSection());
contents();
