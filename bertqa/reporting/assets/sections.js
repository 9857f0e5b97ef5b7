// Every section but the questions: head, scores, training, answer or not, failures, set-up.

const labelled = (run, text) => (several ? `${text} of ${run.name}` : text);
// The head of a table: a text for each column, or a text and a class.
const columns = (texts) => h("thead", {}, h("tr", {}, texts.map((each) => {
  const [text, name] = Array.isArray(each) ? each : [each];
  return h("th", { scope: "col", class: name }, text);
})));
const interval = (low, high) => `${fixed(low)} – ${fixed(high)}`;

function header() {
  const top = byId("top"), names = runs.map((run) => quoted(run.name));
  const title = names.flatMap((name, i) => [i === 0 ? null : i === names.length - 1 ? " and " : ", ", name]);
  top.append(h("p", { class: "eyebrow" }, "bertqa report"), fill(h("h1"), {}, names.length > 3 ? [`${names.length} runs`] : title));
  if (data.verdict)
    top.append(h("p", { class: "verdict", id: "verdict" }, data.verdict.text), h("p", {}, data.verdict.detail), h("p", { class: "soft" },
      "The interval is a paired bootstrap over questions (95 %). It says nothing about seeds: two runs of one recipe " +
      "that differ in their seed alone are often 0.3 F1 apart, on small data more than 1."));
  for (const run of runs) top.append(h("p", { class: several ? "soft" : null }, several && h("b", {}, quoted(run.name), ": "), run.lead));
  if (data.notes.length) top.append(h("ul", { class: "notes" }, data.notes.map((note) => h("li", {}, note))));
  if (!several && data.scores.length) {
    const [all, ...parts] = data.scores;
    const figures = [["F1", all.f1[0]], ["Exact match", all.exact[0]], ...parts.map((row) => [`F1 ${row.label.toLowerCase()}`, row.f1[0]])];
    top.append(h("dl", { class: "figures" }, figures.map(([name, [mean, low, high]]) =>
      h("div", {}, h("dt", {}, name), h("dd", {}, fixed(mean), h("small", {}, interval(low, high)))))));
  }
  const links = { scores: "Scores", training: "Training", answers: "Answer or not", failures: "Failures", questions: "Questions", setup: "Set-up" };
  if (data.classes) {
    for (const id of ["answers", "questions"]) {
      delete links[id];
      byId(id).remove();
    }
    if (several) {
      delete links.failures;
      byId("failures").remove();
    }
  }
  document.querySelector("nav").append(h("ul", {}, Object.entries(links).map(([id, text]) => h("li", {}, h("a", { href: `#${id}` }, text)))));
  document.querySelector("footer").append(`Made by bertqa ${data.version} on ${data.made}. One file, nothing fetched.`);
}

function scores() {
  if (data.gaps.scores) return gap(data.gaps.scores);
  const cell = ([mean, low, high]) => h("td", {}, fixed(mean, 2), " ", h("small", {}, interval(low, high)));
  const difference = ([mean, low, high]) => h("td", { class: low > 0 || high < 0 ? "sure" : null }, signed(mean), " ",
    h("small", {}, `${signed(low, 1)} to ${signed(high, 1)}`));
  const one = (row) => h("tr", {}, h("th", { scope: "row" }, row.label), h("td", {}, whole(row.n)), cell(row.exact[0]), cell(row.f1[0]));
  const pair = (row) => [h("tr", { class: "part" }, h("th", { scope: "rowgroup", colspan: 4 }, `${row.label} (${whole(row.n)})`)),
    ...[["exact", "EM"], ["f1", "F1"]].map(([key, name]) =>
      h("tr", {}, h("th", { scope: "row" }, name), row[key].map(cell), difference(row.difference[key])))];
  const names = runs.map((run) => run.name);
  const rules = runs.some((run) => run.threshold != null) ? "At the tuned no-answer threshold, by" : "By";
  const caption = `${rules} SQuAD v2.0's rules; small: 95 % bootstrap intervals over questions.`;
  const beside = h("p", { class: "soft aside" }, data.beside.join(" "));
  if (runs.length > 2) return [familyTable(), manyTable(names, caption, cell), beside];
  return [two && familyTable(), h("div", { class: "scroll" }, h("table", {},
    h("caption", {}, caption, two && " Bold: the interval does not hold 0."),
    columns(two ? ["", ...names, `${names[1]} − ${names[0]}`] : ["", "Questions", "Exact match", "F1"]),
    h("tbody", {}, data.scores.map(two ? pair : one)))), beside];
}

// A line for each run, for three and more.
function manyTable(names, caption, cell) {
  const parts = data.scores.map((row) => row.label.toLowerCase());
  const head = columns(["Run", ...parts.flatMap((part, i) => (i ? [`F1 ${part}`] : ["Exact match", "F1"]))]);
  const rows = names.map((name, r) => h("tr", {}, h("th", { scope: "row" }, h("i", { class: `key ${sides[r]}` }), quoted(name)),
    data.scores.map((row, i) => [i === 0 && cell(row.exact[r]), cell(row.f1[r])])));
  return h("div", { class: "scroll" }, h("table", {}, h("caption", {}, caption), head, h("tbody", {}, rows)));
}

// Mean and deviation of each recipe over its runs.
function familyTable(first = "Exact match", second = "F1") {
  if (!data.families.some((family) => family.runs.length > 1)) return null;
  const cell = ([mean, deviation, low, high]) => h("td", {}, deviation == null ? fixed(mean, 2) : `${fixed(mean, 2)} ± ${fixed(deviation, 2)}`, " ",
    deviation != null && h("small", {}, interval(low, high)));
  const rows = data.families.map((family) => h("tr", {}, h("th", { scope: "row" }, visible(family.name)),
    h("td", {}, whole(family.runs.length)), cell(family.exact), cell(family.f1)));
  return h("div", { class: "scroll families" }, h("table", {},
    h("caption", {}, "Mean ± standard deviation over the runs of a recipe, which differ in their seeds; small: lowest and highest. " +
      "A difference smaller than these deviations says nothing."),
    columns(["Recipe", "Runs", first, second]), h("tbody", {}, rows)));
}

function training() {
  if (data.gaps.training) return gap(data.gaps.training);
  const steps = runs.flatMap((run) => [...run.curves.loss[0], ...run.curves.dev_loss[0]]);
  const x = { label: "step", range: extent([0, ...steps], 0), format: whole }, format = (value) => fixed(value, 2);
  const each = (name, text) => runs.map((run, i) => ({ name: labelled(run, text), side: sides[i], points: zip(run.curves[name]) }));
  const loss = each("loss", several ? "training" : "training, smoothed");
  const faint = loss.map(({ side, points }) => ({ side, points, faint: true }));
  const devLoss = each("dev_loss", "dev").map((line) => ({ ...line, side: several ? line.side : "b", knots: true, dash: true }));
  const dev = runs.flatMap((run, i) => Object.entries(run.curves.dev).map(([name, curve], k) => (
    { name: labelled(run, name), side: several ? sides[i] : "ab"[k], dash: several && k > 0, knots: true, points: zip(curve) })));
  const speed = extent([0, ...runs.flatMap((run) => run.curves.windows_per_s[1])]);
  return h("div", { class: "charts" },
    chart({ title: "Loss", x, y: { tip: format },
      series: [...faint, ...loss.map((line) => ({ ...line, points: smooth(line.points), measured: line.points })), ...devLoss] }),
    chart({ title: "Score on dev", empty: "No evaluation yet.", x, series: dev,
      y: { label: "%", tip: format, range: dev.every((line) => line.points.length < 2) ? [0, 100] : null } }),
    chart({ title: "Learning rate", x, y: { tip: (value) => value.toExponential(2) }, series: each("lr", "learning rate") }),
    chart({ title: "Gradient norm", note: "Of all weights together, before clipping.", x, y: { tip: (value) => value.toPrecision(3) },
      series: each("grad_norm", "gradient norm") }),
    chart({ title: "Throughput", x, y: { label: "windows/s", range: speed }, series: each("windows_per_s", "windows/s") }));
}

function answers() {
  if (data.gaps.answers) return gap(data.gaps.answers);
  const why = (name) => runs.map((run) => run[name]).find((found) => typeof found === "string");
  const each = (name, make) => runs.flatMap((run, i) => (typeof run[name] === "string" ? [] : make(run[name], run, sides[i])));
  // F1 and EM of one run in two colours; of two runs in a colour each, EM dashed
  const scored = (name, make) => [["f1", "F1", "a"], ["exact", "EM", "b"]].flatMap(([key, text, colour]) =>
    each(name, (found, run, side) => ({ side: several ? side : colour, dash: several && key === "exact", ...make(found, key, labelled(run, text)) })));
  const unit = [0, 1], tip = (value) => `${fixed(100 * value)} %`;
  const rule = (run, side) => (run.threshold == null ? [] : [{ at: run.threshold, label: "threshold", side }]);

  const sweep = chart({ title: "Score at every threshold", note: "Where the no-answer threshold could stand, and what it would earn.",
    empty: why("sweep"), x: { label: "threshold" }, y: { label: "%", tip: (value) => fixed(value, 2) },
    rules: runs.flatMap((run, i) => rule(run, several && sides[i])),
    series: scored("sweep", (found, key, name) => ({ name, points: zip([found.threshold, found[key]]) })) });
  const histograms = runs.map((run) => {
    const spec = { title: labelled(run, "No-answer odds"), series: [],
      note: "Questions by their null odds: null score minus best span's score. Beyond the threshold, no answer is given." };
    if (typeof run.histogram === "string") return chart({ ...spec, empty: run.histogram });
    const { edges, has, none } = run.histogram;
    const bars = (name, side, counts) => ({ name, side, as: "bars", width: edges[1] - edges[0], points: zip([edges, counts]).slice(0, -1) });
    return chart({ ...spec, rules: rule(run), x: { label: "null odds", range: [edges[0], edges[edges.length - 1]] },
      y: { label: "questions", format: whole, range: [0, 1.05 * Math.max(...has, ...none)] },
      series: [bars("with an answer", "has", has), bars("without an answer", "none", none)] });
  });
  const curve = chart({ title: "Precision and recall", note: "Answering the surest questions first; recall counts answerable questions.",
    empty: why("pr"), x: { label: "recall, %", range: unit, format: percent },
    y: { label: "precision, %", range: unit, format: percent, tip },
    series: scored("pr", (found, key, name) => ({ name: `${name}, area ${fixed(found[key].area)}`, points: zip(found[key].points) })) });
  const dots = (found, run, side) => {
    const most = Math.max(...found.points.map((point) => point[2]));
    return { name: `${labelled(run, "share without an answer")}, error ${fixed(100 * found.error)} points`, side, as: "dots",
      points: found.points.map(([p, share, n]) => [p, share, n, 2.5 + 7 * Math.sqrt(n / most)]) };
  };
  const reliability = chart({ title: "Reliability", legend: true, diagonal: true, empty: why("reliability"),
    note: "Questions by their probability of having no answer, against the share that has none. On the diagonal, probabilities " +
      "mean what they say; a larger dot holds more questions.",
    x: { label: "no-answer probability, %", range: unit, format: percent },
    y: { label: "without an answer, %", range: unit, format: percent, tip }, series: each("reliability", dots) });
  const risk = chart({ title: "Risk and coverage", legend: true, empty: why("risk"),
    note: "Share of wrong answers if only the surest are given. The later it rises, the more the confidence is worth.",
    x: { label: "questions answered, %", range: unit, format: percent },
    y: { label: "wrong, %", range: unit, format: percent, tip },
    series: each("risk", (found, run, side) => ({ side, points: zip(found.points),
      name: labelled(run, `not an exact match; confidence off by ${fixed(100 * found.error)} points`) })) });
  return h("div", { class: "charts" }, sweep, histograms, curve, reliability, risk);
}

const coloured = (element, kind) => (element.style.setProperty("--kind", `var(--${data.kinds[kind][0]})`), element);
const swatch = (kind) => coloured(h("span", { class: "swatch" }), kind);

function failures() {
  if (data.gaps.failures) return gap(data.gaps.failures);
  const total = data.total, used = [...data.kinds.keys()].filter((kind) => runs.some((run) => run.kinds[kind].n));
  const stack = (run) => h("div", {}, several && h("h3", {}, quoted(run.name)), h("div", { class: "stack", "aria-hidden": "true" }, used.map((kind) => {
    const part = coloured(h("span", { title: `${data.kinds[kind][1]}: ${whole(run.kinds[kind].n)}` }), kind);
    part.style.flex = `${run.kinds[kind].n} 0 0`;
    return run.kinds[kind].n > 0 && part;
  })));
  const wide = several ? "wide" : null;
  const cells = ({ n, lost }) => [h("td", {}, whole(n)), h("td", { class: wide }, `${fixed((100 * n) / total)} %`),
    h("td", {}, lost ? fixed(lost, 2) : "–")];
  const rows = used.map((kind) => h("tr", {}, h("th", { scope: "row" }, swatch(kind), choose(data.kinds[kind][1], { kinds: [kind] })),
    h("td", { class: "text soft wide" }, data.kinds[kind][2]), runs.map((run) => cells(run.kinds[kind]))));
  const head = columns(["Kind", ["Meaning", "text wide"], ...runs.flatMap((run) => [several ? run.name : "Questions", ["Share", wide], "F1 lost"])]);
  return [runs.map(stack), h("div", { class: "scroll" }, h("table", { class: "kinds" }, h("caption", {}, `What became of the ${whole(total)} questions. ` +
    "“F1 lost” adds up to the points missing to 100. Choose a line to see its questions."), head, h("tbody", {}, rows))),
    h("p", { class: "soft aside" }, "Below: bars are F1 from 0 to 100, the thin line through a bar's end its 95 % interval. " +
      "Grey lines have fewer than 30 questions, too few to tell."),
    h("div", { class: "groups" }, data.groups.map(groupTable))];
}

function groupTable(group, index) {
  const bar = (value, margin, i) => {
    const filled = h("span"), whisker = h("i"), low = Math.max(0, value - margin);
    filled.style.width = `${value}%`;
    filled.className = sides[i];
    whisker.style.left = `${low}%`;
    whisker.style.width = `${Math.min(100, value + margin) - low}%`;
    return h("div", {}, filled, whisker);
  };
  const rows = group.rows.map((row, at) => h("tr", { class: row.n < 30 ? "few" : null },
    h("th", { scope: "row" }, choose(group.labels[at], { group: `${index}:${at}` })), h("td", {}, whole(row.n)),
    (several ? row.f1 : [row.exact[0], row.f1[0]]).map((value) => h("td", {}, fixed(value))),
    h("td", { class: "meter", "aria-hidden": "true" }, row.f1.map((value, i) => bar(value, row.margin[i], i)))));
  const head = columns([group.name, "Questions", ...(several ? runs.map((run) => `F1 ${run.name}`) : ["EM", "F1"])]);
  head.firstChild.append(h("td"));
  return h("div", { class: "scroll" }, h("table", {}, h("caption", { class: "hidden" }, `Scores by: ${group.name}`), head, h("tbody", {}, rows)));
}

function setup() {
  const table = (caption, parts) => {
    const rows = [...new Set(parts.flatMap((part) => Object.keys(part)))].map((name) => {
      const values = parts.map((part) => part[name] ?? "–");
      return h("tr", { class: values.some((value) => value !== values[0]) ? "differs" : null }, h("th", { scope: "row" }, name),
        values.map((value) => h("td", {}, visible(value))));
    });
    return h("div", { class: "scroll" }, h("table", { class: "plain" }, h("caption", { class: "hidden" }, caption),
      several && columns(["", ...runs.map((run) => run.name)]), h("tbody", {}, rows)));
  };
  return [table("What was run", runs.map((run) => run.facts)), h("details", {},
    h("summary", {}, `All settings${several ? "; those that differ are marked" : ""}`), table("Settings", runs.map((run) => run.settings)))];
}
