// Every section but the questions: head, scores, training, answer or not, failures, set-up.

const labelled = (run, text) => (two ? `${text} of ${run.name}` : text);
// The head of a table: a text for each column, or a text and a class.
const columns = (texts) => h("thead", {}, h("tr", {}, texts.map((each) => {
  const [text, name] = Array.isArray(each) ? each : [each];
  return h("th", { scope: "col", class: name }, text);
})));
const interval = (low, high) => `${fixed(low)} – ${fixed(high)}`;

function header() {
  const top = byId("top"), names = runs.map((run) => quoted(run.name));
  top.append(h("p", { class: "eyebrow" }, "bertqa report"), h("h1", {}, two ? [names[0], " and ", names[1]] : names));
  if (data.verdict)
    top.append(h("p", { class: "verdict", id: "verdict" }, data.verdict.text), h("p", {}, data.verdict.detail), h("p", { class: "soft" },
      "The interval is a paired bootstrap over questions (95 %). It says nothing about seeds: two runs of one recipe " +
      "that differ in their seed alone are often 0.3 F1 apart, on small data more than 1."));
  for (const run of runs) top.append(h("p", { class: two ? "soft" : null }, two && h("b", {}, quoted(run.name), ": "), run.lead));
  if (data.notes.length) top.append(h("ul", { class: "notes" }, data.notes.map((note) => h("li", {}, note))));
  if (!two && data.scores.length) {
    const [all, ...parts] = data.scores;
    const figures = [["F1", all.f1[0]], ["Exact match", all.exact[0]], ...parts.map((row) => [`F1 ${row.label.toLowerCase()}`, row.f1[0]])];
    top.append(h("dl", { class: "figures" }, figures.map(([name, [mean, low, high]]) =>
      h("div", {}, h("dt", {}, name), h("dd", {}, fixed(mean), h("small", {}, interval(low, high)))))));
  }
  const links = { scores: "Scores", training: "Training", answers: "Answer or not", failures: "Failures", questions: "Questions", setup: "Set-up" };
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
  return [h("div", { class: "scroll" }, h("table", {},
    h("caption", {}, `${rules} SQuAD v2.0's rules; small: 95 % bootstrap intervals over questions.`, two && " Bold: the interval does not hold 0."),
    columns(two ? ["", ...names, `${names[1]} − ${names[0]}`] : ["", "Questions", "Exact match", "F1"]),
    h("tbody", {}, data.scores.map(two ? pair : one)))), h("p", { class: "soft aside" }, data.beside.join(" "))];
}

function training() {
  if (data.gaps.training) return gap(data.gaps.training);
  const steps = runs.flatMap((run) => [...run.curves.loss[0], ...run.curves.dev_loss[0]]);
  const x = { label: "step", range: extent([0, ...steps], 0), format: whole }, format = (value) => fixed(value, 2);
  const each = (name, text) => runs.map((run, i) => ({ name: labelled(run, text), side: sides[i], points: zip(run.curves[name]) }));
  const loss = each("loss", "training, smoothed");
  const faint = loss.map(({ side, points }) => ({ side, points, faint: true }));
  const devLoss = each("dev_loss", "dev").map((line) => ({ ...line, side: two ? line.side : "b", knots: true, dash: true }));
  const dev = runs.flatMap((run, i) => Object.entries(run.curves.dev).map(([name, curve], k) => (
    { name: labelled(run, name), side: sides[two ? i : k], dash: two && k > 0, knots: true, points: zip(curve) })));
  const speed = extent([0, ...runs.flatMap((run) => run.curves.windows_per_s[1])]);
  return h("div", { class: "charts" },
    chart({ title: "Loss", x, y: { tip: format },
      series: [...faint, ...loss.map((line) => ({ ...line, points: smooth(line.points) })), ...devLoss] }),
    chart({ title: "Score on dev", empty: "No evaluation yet.", x, series: dev,
      y: { label: "%", tip: format, range: dev.every((line) => line.points.length < 2) ? [0, 100] : null } }),
    chart({ title: "Learning rate", x, y: { tip: (value) => value.toExponential(2) }, series: each("lr", "learning rate") }),
    chart({ title: "Throughput", x, y: { label: "windows/s", range: speed }, series: each("windows_per_s", "windows/s") }));
}

function answers() {
  if (data.gaps.answers) return gap(data.gaps.answers);
  const why = (name) => runs.map((run) => run[name]).find((found) => typeof found === "string");
  const each = (name, make) => runs.flatMap((run, i) => (typeof run[name] === "string" ? [] : make(run[name], run, sides[i])));
  // F1 and EM of one run in two colours; of two runs in a colour each, EM dashed
  const scored = (name, make) => [["f1", "F1", "a"], ["exact", "EM", "b"]].flatMap(([key, text, colour]) =>
    each(name, (found, run, side) => ({ side: two ? side : colour, dash: two && key === "exact", ...make(found, key, labelled(run, text)) })));
  const unit = [0, 1], tip = (value) => `${fixed(100 * value)} %`;
  const rule = (run, side) => (run.threshold == null ? [] : [{ at: run.threshold, label: "threshold", side }]);

  const sweep = chart({ title: "Score at every threshold", note: "Where the no-answer threshold could stand, and what it would earn.",
    empty: why("sweep"), x: { label: "threshold" }, y: { label: "%", tip: (value) => fixed(value, 2) },
    rules: runs.flatMap((run, i) => rule(run, two && sides[i])),
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
  return h("div", { class: "charts" }, sweep, histograms, curve, reliability);
}

const coloured = (element, kind) => (element.style.setProperty("--kind", `var(--${data.kinds[kind][0]})`), element);
const swatch = (kind) => coloured(h("span", { class: "swatch" }), kind);

function failures() {
  if (data.gaps.failures) return gap(data.gaps.failures);
  const total = data.questions.id.length, used = [...data.kinds.keys()].filter((kind) => runs.some((run) => run.kinds[kind].n));
  const stack = (run) => h("div", {}, two && h("h3", {}, quoted(run.name)), h("div", { class: "stack", "aria-hidden": "true" }, used.map((kind) => {
    const part = coloured(h("span", { title: `${data.kinds[kind][1]}: ${whole(run.kinds[kind].n)}` }), kind);
    part.style.flex = `${run.kinds[kind].n} 0 0`;
    return run.kinds[kind].n > 0 && part;
  })));
  const wide = two ? "wide" : null;
  const cells = ({ n, lost }) => [h("td", {}, whole(n)), h("td", { class: wide }, `${fixed((100 * n) / total)} %`),
    h("td", {}, lost ? fixed(lost, 2) : "–")];
  const rows = used.map((kind) => h("tr", {}, h("th", { scope: "row" }, swatch(kind), choose(data.kinds[kind][1], { kinds: [kind] })),
    h("td", { class: "text soft wide" }, data.kinds[kind][2]), runs.map((run) => cells(run.kinds[kind]))));
  const head = columns(["Kind", ["Meaning", "text wide"], ...runs.flatMap((run) => [two ? run.name : "Questions", ["Share", wide], "F1 lost"])]);
  return [runs.map(stack), h("div", { class: "scroll" }, h("table", { class: "kinds" }, h("caption", {}, `What became of the ${whole(total)} questions. ` +
    "“F1 lost” adds up to the points missing to 100. Choose a line to see its questions."), head, h("tbody", {}, rows))),
    h("div", { class: "groups" }, data.groups.map(groupTable))];
}

function groupTable(group, index) {
  const bar = (value, margin) => {
    const filled = h("span"), whisker = h("i"), low = Math.max(0, value - margin);
    filled.style.width = `${value}%`;
    whisker.style.left = `${low}%`;
    whisker.style.width = `${Math.min(100, value + margin) - low}%`;
    return h("div", {}, filled, whisker);
  };
  const rows = group.rows.map((row, at) => h("tr", { class: row.n < 30 ? "few" : null },
    h("th", { scope: "row" }, choose(group.labels[at], { group: `${index}:${at}` })), h("td", {}, whole(row.n)),
    (two ? row.f1 : [row.exact[0], row.f1[0]]).map((value) => h("td", {}, fixed(value))),
    h("td", { class: "meter", "aria-hidden": "true" }, row.f1.map((value, i) => bar(value, row.margin[i])))));
  const head = columns([group.name, "Questions", ...(two ? runs.map((run) => `F1 ${run.name}`) : ["EM", "F1"])]);
  head.firstChild.append(h("td"));
  return h("div", { class: "scroll" }, h("table", {}, h("caption", { class: "hidden" }, `Scores by: ${group.name}`), head, h("tbody", {}, rows)));
}

function setup() {
  const table = (caption, parts) => {
    const rows = [...new Set(parts.flatMap((part) => Object.keys(part)))].map((name) => {
      const values = parts.map((part) => part[name] ?? "–");
      return h("tr", { class: two && values[0] !== values[1] ? "differs" : null }, h("th", { scope: "row" }, name),
        values.map((value) => h("td", {}, visible(value))));
    });
    return h("div", { class: "scroll" }, h("table", { class: "plain" }, h("caption", { class: "hidden" }, caption),
      two && columns(["", ...runs.map((run) => run.name)]), h("tbody", {}, rows)));
  };
  return [table("What was run", runs.map((run) => run.facts)), h("details", {},
    h("summary", {}, `All settings${two ? "; those that differ are marked" : ""}`), table("Settings", runs.map((run) => run.settings)))];
}
