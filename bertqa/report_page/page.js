"use strict";
// Draws the page from the JSON in #data. Whatever comes from data becomes a text node, never markup.

const data = JSON.parse(document.getElementById("data").textContent);
const runs = data.runs, two = runs.length === 2, sides = ["a", "b"];
const byId = (id) => document.getElementById(id);

// ---- elements ----

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) if (value != null && value !== false) element.setAttribute(name, value === true ? "" : value);
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return element;
}
const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes = {}, ...children) => fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const on = (element, event, act) => (element.addEventListener(event, act), element);
// Control characters have pictures of their own; one for one, so that offsets stay true.
const visible = (text) => text.replace(/[\0-\x08\x0b-\x1f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0))).replace(/\x7f/g, "\u2421");
const quoted = (text) => h("bdi", {}, visible(text));
const gap = (text) => h("p", { class: "gap" }, text);

const whole = (value) => Math.round(value).toLocaleString("en-US");
const fixed = (value, digits = 1) => (value < 0 ? "−" : "") + Math.abs(value).toFixed(digits);
const signed = (value, digits = 2) => (value > 0 ? "+" : "") + fixed(value, digits);
const compact = (value) => {
  const size = Math.abs(value);
  if (size >= 1e4) return whole(value / 1e3) + "k";
  if (size && size < 1e-3) return value.toExponential(0).replace("-", "−").replace("+", "");
  return (value < 0 ? "−" : "") + String(+size.toPrecision(3));
};
const range = (low, high) => `${fixed(low)} – ${fixed(high)}`;

// ---- charts: drawn at the width they have, so that text keeps its size ----

function ticks(low, high, count) {
  const raw = (high - low) / count, unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * unit).find((m) => m >= raw);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step || 0); // never -0
  return found;
}

function extent(values, margin = 0.05) {
  const low = Math.min(...values), high = Math.max(...values), pad = (high - low || Math.abs(high) || 1) * margin;
  return [low >= 0 ? Math.max(0, low - pad) : low - pad, high + pad];
}

// spec: title, note, x and y ({label, range, format}), series ({name, side, points, as: line | step | dots | bars, dash, faint}),
// rules ({at, label}), diagonal
function chart(spec) {
  const series = spec.series.filter((each) => each.points.length);
  const figure = h("figure", {}, h("h3", {}, spec.title), spec.note && h("figcaption", {}, spec.note));
  if (!series.length) return figure.append(gap(spec.empty || "Nothing was recorded.")), figure;
  const shown = series.filter((each) => each.name);
  if (shown.length > 1) figure.append(h("ul", { class: "legend" }, shown.map((each) => h("li", {}, h("i", { class: `${each.side}${each.dash ? " dash" : ""}` }), each.name))));
  const holder = h("div"), tip = h("div", { class: "tip", "aria-hidden": "true" });
  figure.append(holder, tip);
  const all = series.flatMap((each) => each.points);
  const [x0, x1] = spec.x.range || extent(all.map((point) => point[0]), 0), [y0, y1] = spec.y.range || extent(all.map((point) => point[1]));
  const summary = shown.map((each) => `${each.name}: from ${compact(each.points[0][1])} to ${compact(each.points[each.points.length - 1][1])}`).join("; ");
  const xf = spec.x.format || compact, yf = spec.y.format || compact;

  function draw(width) {
    const height = Math.max(190, Math.min(250, width * 0.52)), left = 44, right = 10, top = spec.y.label ? 26 : 12, bottom = 36;
    const x = (value) => left + ((value - x0) / (x1 - x0 || 1)) * (width - left - right);
    const y = (value) => height - bottom - ((value - y0) / (y1 - y0 || 1)) * (height - top - bottom);
    const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${spec.title}. ${summary}` });
    for (const value of ticks(y0, y1, 4)) svg.append(s("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
      s("text", { x: left - 7, y: y(value) + 4, "text-anchor": "end" }, yf(value)));
    for (const value of ticks(x0, x1, width < 360 ? 4 : 6)) svg.append(s("text", { x: x(value), y: height - bottom + 16, "text-anchor": "middle" }, xf(value)));
    svg.append(s("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }),
      s("text", { x: width - right, y: height - 3, "text-anchor": "end" }, spec.x.label), s("text", { x: 2, y: 11 }, spec.y.label || ""));
    if (spec.diagonal) svg.append(s("path", { class: "diagonal", d: `M${x(x0)} ${y(y0)}L${x(x1)} ${y(y1)}` }));
    for (const each of series) {
      const dots = each.points.map((point) => [x(point[0]), y(point[1])]);
      if (each.as === "bars") {
        const wide = Math.max(1, (x(each.width) - x(0)) - 1);
        for (const [px, py] of dots) if (py < height - bottom) svg.append(s("rect", { class: `bar ${each.side}`, x: px + 0.5, y: py, width: wide, height: height - bottom - py }));
      } else if (each.as !== "dots" && dots.length > 1) {
        const path = dots.map(([px, py], i) => (i === 0 ? "M" : each.as === "step" ? `H${px.toFixed(1)}V` : "L") + (i && each.as === "step" ? py.toFixed(1) : `${px.toFixed(1)} ${py.toFixed(1)}`));
        svg.append(s("path", { class: `line ${each.side}${each.dash ? " dash" : ""}${each.faint ? " faint" : ""}`, d: path.join("") }));
      }
      if (each.as === "dots" || dots.length === 1 || each.knots) dots.forEach(([px, py], i) => svg.append(s("circle", { class: `dot ${each.side}`, cx: px, cy: py, r: each.points[i][3] || 3.5 })));
    }
    for (const [i, rule] of (spec.rules || []).entries()) if (rule.at >= x0 && rule.at <= x1) {
      const late = x(rule.at) > width * 0.6;
      svg.append(s("line", { class: "rule", x1: x(rule.at), x2: x(rule.at), y1: top - 4, y2: height - bottom }),
        s("text", { x: x(rule.at) + (late ? -5 : 5), y: top + 4 + 14 * i, "text-anchor": late ? "end" : "start" }, rule.label));
    }
    const hair = s("line", { class: "hair", y1: top, y2: height - bottom });
    svg.append(hair);
    on(svg, "pointermove", (event) => {
      const at = x0 + ((event.offsetX * (width / svg.clientWidth) - left) / (width - left - right)) * (x1 - x0);
      const inside = (each, point) => (each.as === "bars" ? point[0] + each.width / 2 : point[0]);
      const near = series.filter((each) => each.name && !each.faint).map((each) => [each, each.points.reduce((best, point) => (Math.abs(inside(each, point) - at) < Math.abs(inside(each, best) - at) ? point : best))]);
      const px = x(inside(...near[0]));
      fill(hair, { x1: px, x2: px }, []).style.opacity = 0.6;
      tip.replaceChildren(h("b", {}, `${spec.x.label} ${xf(near[0][1][0])}`), ...near.map(([each, point]) => h("div", {}, `${each.name}: ${(spec.y.tip || yf)(point[1])}${point[2] != null ? ` (${whole(point[2])} questions)` : ""}`)));
      tip.style.opacity = 1;
      tip.style.top = `${holder.offsetTop + 14}px`;
      tip.style.left = `${Math.max(0, Math.min(px + 12, width - tip.offsetWidth))}px`;
    });
    on(svg, "pointerleave", () => { hair.style.opacity = 0; tip.style.opacity = 0; });
    holder.replaceChildren(svg);
  }
  let last = 0;
  new ResizeObserver(([entry]) => {
    const width = Math.round(entry.contentRect.width);
    if (width && width !== last) draw((last = width));
  }).observe(holder);
  return figure;
}

const zip = ([xs, ys]) => xs.map((x, i) => [x, ys[i]]);
const label = (run, text) => (two ? `${text} of ${run.name}` : text);
// Means over a window around each point: unlike a running average, the curve does not lag.
function smooth(points) {
  const sums = [0], reach = Math.round(points.length / 30);
  for (const point of points) sums.push(sums[sums.length - 1] + point[1]);
  return points.map(([x], i) => {
    const from = Math.max(0, i - reach), to = Math.min(points.length, i + reach + 1);
    return [x, (sums[to] - sums[from]) / (to - from)];
  });
}

// ---- head, scores, training, answers ----

function header() {
  const names = runs.map((run) => run.name);
  byId("top").append(h("p", { class: "eyebrow" }, "bertqa report"), h("h1", {}, two ? [quoted(names[0]), " and ", quoted(names[1])] : quoted(names[0])));
  if (data.verdict) byId("top").append(h("p", { class: "verdict", id: "verdict" }, data.verdict.text), h("p", {}, data.verdict.detail),
    h("p", { class: "soft" }, "The interval is a paired bootstrap over questions (95 %). It says nothing about seeds: two runs of one recipe that differ in their seed alone are often 0.3 F1 apart, on small data more than 1."));
  for (const run of runs) byId("top").append(h("p", { class: data.verdict ? "soft" : null }, two && h("b", {}, `${run.name}: `), run.lead));
  if (data.notes.length) byId("top").append(h("ul", { class: "notes" }, data.notes.map((note) => h("li", {}, note))));
  if (!two && data.scores.length) {
    const figure = (name, cell) => h("div", {}, h("dt", {}, name), h("dd", {}, fixed(cell[0]), h("small", {}, range(cell[1], cell[2]))));
    const [all, ...parts] = data.scores;
    byId("top").append(h("dl", { class: "figures" }, figure("F1", all.f1[0]), figure("Exact match", all.exact[0]),
      parts.map((row) => figure(`F1 ${row.label.toLowerCase()}`, row.f1[0]))));
  }
  const links = [["scores", "Scores"], ["training", "Training"], ["answers", "Answer or not"], ["failures", "Failures"], ["questions", "Questions"], ["setup", "Set-up"]];
  document.querySelector("nav").append(h("ul", {}, links.map(([id, text]) => h("li", {}, h("a", { href: `#${id}` }, text)))));
  document.querySelector("footer").append(`Made by bertqa ${data.version} on ${data.made}. One file, nothing fetched.`);
}

function scores() {
  if (!data.scores.length) return gap(data.gaps.scores);
  const cell = ([mean, low, high]) => h("td", {}, fixed(mean, 2), " ", h("small", {}, range(low, high)));
  const gapCell = ([mean, low, high]) => h("td", { class: low > 0 || high < 0 ? "sure" : null }, signed(mean), " ", h("small", {}, `${signed(low, 1)} to ${signed(high, 1)}`));
  const pairs = [["exact", "Exact match"], ["f1", "F1"]];
  const head = two ? ["", "", ...runs.map((run) => run.name), `${runs[1].name} − ${runs[0].name}`] : ["", "Questions", "Exact match", "F1"];
  const rows = data.scores.flatMap((row) => two
    ? pairs.map(([key, name], i) => h("tr", {}, h("th", { scope: "row" }, i ? "" : `${row.label} (${whole(row.n)})`), h("td", { class: "text" }, name), row[key].map(cell), gapCell(row.difference[key])))
    : [h("tr", {}, h("th", { scope: "row" }, row.label), h("td", {}, whole(row.n)), cell(row.exact[0]), cell(row.f1[0]))]);
  return [h("div", { class: "scroll" }, h("table", {}, h("caption", {}, `${runs.some((run) => run.threshold != null) ? "At the tuned no-answer threshold, by" : "By"} SQuAD v2.0's rules; small: 95 % bootstrap intervals over questions.${two ? " Bold: the interval does not hold 0." : ""}`),
    h("thead", {}, h("tr", {}, head.map((text) => h("th", { scope: "col" }, text)))), h("tbody", {}, rows))), h("p", { class: "soft aside" }, data.beside.join(" "))];
}

function training() {
  if (data.gaps.training) return gap(data.gaps.training);
  const of = (name, make) => runs.flatMap((run, i) => make(zip(run.curves[name]), sides[i], run));
  const x = { label: "step", range: extent([0, ...runs.flatMap((run) => [...run.curves.loss[0], ...run.curves.dev_loss[0]])], 0), format: whole };
  const steady = (text) => (points, side, run) => [{ name: label(run, text), side, points }];
  const lossy = (points, side, run) => [{ side, points, faint: true }, { name: label(run, "training, smoothed"), side, points: smooth(points) }];
  const devLoss = (points, side, run) => [{ name: label(run, "dev"), side: two ? side : "b", points, knots: true, dash: true }];
  const dev = runs.flatMap((run, i) => Object.entries(run.curves.dev).map(([name, curve], k) => ({ name: label(run, name), side: sides[two ? i : k], dash: two && k > 0, points: zip(curve), knots: true })));
  const format = (value) => fixed(value, 2);
  return h("div", { class: "charts" },
    chart({ title: "Loss", x, y: { tip: format }, series: [...of("loss", lossy), ...of("dev_loss", devLoss)] }),
    chart({ title: "Score on dev", x, y: { label: "%", tip: format, range: dev.every((each) => each.points.length < 2) ? [0, 100] : null }, empty: "No evaluation yet.", series: dev }),
    chart({ title: "Learning rate", x, y: { format: compact, tip: (value) => value.toExponential(2) }, series: of("lr", steady("learning rate")) }),
    chart({ title: "Throughput", x, y: { label: "windows/s", range: [0, extent(runs.flatMap((run) => [0, ...run.curves.windows_per_s[1]]))[1]] }, series: of("windows_per_s", steady("windows/s")) }));
}

function answers() {
  if (data.gaps.answers) return gap(data.gaps.answers);
  const of = (name, make) => runs.flatMap((run, i) => (typeof run[name] === "string" ? [] : make(run[name], sides[i], run)));
  const why = (name) => runs.map((run) => run[name]).find((value) => typeof value === "string");
  const unit = [0, 1], percent = (value) => whole(100 * value), tip = (value) => fixed(100 * value, 1) + " %";
  const rules = runs.filter((run) => run.threshold != null).map((run) => ({ at: run.threshold, label: two ? `threshold of ${run.name}` : "threshold" }));
  const oddsRange = extent(of("sweep", (sweep) => sweep.threshold), 0.01);
  const curve = (key, text, other, dash) => (pr, side, run) => [{ name: `${label(run, text)}, area ${fixed(pr[key].area)}`, side: two ? side : other, dash, points: zip(pr[key].points) }];
  const level = (key, text, other, dash) => (sweep, side, run) => [{ name: label(run, text), side: two ? side : other, dash, points: sweep.threshold.map((at, i) => [at, sweep[key][i]]) }];
  const histogram = (run) => {
    const spec = { title: label(run, "No-answer odds"), note: "Questions by their null odds: null score minus best span's score. Beyond the threshold, no answer is given." };
    if (typeof run.histogram === "string") return chart({ ...spec, empty: run.histogram, series: [] });
    const { edges, has, none } = run.histogram, bars = (name, counts, side) => ({ name, side, as: "bars", width: edges[1] - edges[0], points: counts.map((n, i) => [edges[i], n]) });
    return chart({ ...spec, x: { label: "null odds", range: [edges[0], edges[edges.length - 1]] }, y: { label: "questions", format: whole, range: [0, 1.05 * Math.max(...has, ...none)] },
      rules: run.threshold == null ? [] : [{ at: run.threshold, label: "threshold" }], series: [bars("with an answer", has, "has"), bars("without an answer", none, "none")] });
  };
  const dots = (found, side, run) => {
    const most = Math.max(...found.points.map((point) => point[2]));
    return [{ name: `${label(run, "share without an answer")}, error ${fixed(100 * found.error)} points`, side, as: "dots", points: found.points.map(([p, share, n]) => [p, share, n, 2.5 + 7 * Math.sqrt(n / most)]) }];
  };
  return h("div", { class: "charts" },
    chart({ title: "Score at every threshold", note: "Where the no-answer threshold could stand, and what it would earn.", empty: why("sweep"), x: { label: "threshold", range: oddsRange }, y: { label: "%", tip: (value) => fixed(value, 2) }, rules,
      series: [...of("sweep", level("f1", "F1", "a")), ...of("sweep", level("exact", "EM", "b", two))] }),
    runs.map(histogram),
    chart({ title: "Precision and recall", note: "Answering the surest questions first; recall counts answerable questions.", empty: why("pr"), x: { label: "recall, %", range: unit, format: percent }, y: { label: "precision, %", range: unit, format: percent, tip },
      series: [...of("pr", curve("f1", "F1", "a")), ...of("pr", curve("exact", "EM", "b", two))] }),
    chart({ title: "Reliability", note: "Questions by their probability of having no answer, against the share that has none. On the diagonal, probabilities mean what they say; a larger dot holds more questions.", empty: why("reliability"),
      x: { label: "no-answer probability, %", range: unit, format: percent }, y: { label: "without an answer, %", range: unit, format: percent, tip }, diagonal: true, series: of("reliability", dots) }));
}

// ---- where it fails ----

const kindColour = (element, kind) => (element.style.setProperty("--kind", `var(--${data.kinds[kind][0]})`), element);

function failures() {
  if (data.gaps.failures) return gap(data.gaps.failures);
  const total = data.questions.id.length, used = data.kinds.map((_, kind) => kind).filter((kind) => runs.some((run) => run.kinds[kind].n));
  const stack = (run) => h("div", {}, two && h("h3", {}, run.name), h("div", { class: "stack", "aria-hidden": "true" }, used.filter((kind) => run.kinds[kind].n).map((kind) => {
    const part = kindColour(h("span", { title: `${data.kinds[kind][1]}: ${whole(run.kinds[kind].n)}` }), kind);
    part.style.flex = `${run.kinds[kind].n} 0 0`;
    return part;
  })));
  const kinds = h("table", {}, h("caption", {}, `What became of the ${whole(total)} questions. “F1 lost” adds up to the points missing to 100. Choose a line to see its questions.`),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Kind"), h("th", { scope: "col", class: "wide" }, ""), runs.map((run) => [h("th", { scope: "col" }, two ? run.name : "Questions"), h("th", { scope: "col" }, "Share"), h("th", { scope: "col" }, "F1 lost")]))),
    h("tbody", {}, used.map((kind) => h("tr", {}, h("th", { scope: "row" }, kindColour(h("span", { class: "swatch" }), kind), choose(data.kinds[kind][1], { kinds: [kind] })),
      h("td", { class: "text soft wide" }, data.kinds[kind][2]), runs.map((run) => [h("td", {}, whole(run.kinds[kind].n)), h("td", {}, `${fixed((100 * run.kinds[kind].n) / total)} %`), h("td", {}, run.kinds[kind].lost ? fixed(run.kinds[kind].lost, 2) : "–")])))));
  return [runs.map(stack), h("div", { class: "scroll" }, kinds), h("div", { class: "groups" }, data.groups.map(groupTable))];
}

function groupTable(group, index) {
  const bar = (row) => h("td", { class: "meter", "aria-hidden": "true" }, row.f1.map((value, i) => {
    const filled = h("span"), whisker = h("i"), low = Math.max(0, value - row.margin[i]);
    filled.style.width = `${value}%`;
    whisker.style.left = `${low}%`;
    whisker.style.width = `${Math.min(100, value + row.margin[i]) - low}%`;
    return h("div", {}, filled, whisker);
  }));
  const head = two ? ["Questions", ...runs.map((run) => `F1 ${run.name}`)] : ["Questions", "EM", "F1"];
  return h("div", { class: "scroll" }, h("table", {}, h("caption", { class: "hidden" }, `Scores by: ${group.name}`),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, group.name), head.map((text) => h("th", { scope: "col" }, text)), h("td", {}))),
    h("tbody", {}, group.rows.map((row, at) => h("tr", { class: row.n < 30 ? "few" : null }, h("th", { scope: "row" }, choose(group.labels[at], { group: `${index}:${at}` })), h("td", {}, whole(row.n)),
      two ? row.f1.map((value) => h("td", {}, fixed(value))) : [h("td", {}, fixed(row.exact[0])), h("td", {}, fixed(row.f1[0]))], bar(row))))));
}

// A line of a table that sets the filters of the question browser.
const choose = (text, filter) => on(h("button", { class: "link", type: "button" }, text), "click", () => {
  state = { ...fresh(), ...filter };
  refresh();
  byId("questions").scrollIntoView();
});

// ---- the questions ----

const q = data.questions, PAGE = matchMedia("(max-width: 52rem)").matches ? 20 : 50;
const fresh = () => ({ kinds: null, flip: null, group: "", order: "file", search: "", page: 0, open: null });
let state = fresh(), found = [], haystack = null, controls = null;
const right = (run, i) => q.runs[run].kind[i] < 2;
const flips = two ? [["Flipped", (i) => right(0, i) !== right(1, i)], [`Only ${runs[0].name} is right`, (i) => right(0, i) && !right(1, i)], [`Only ${runs[1].name} is right`, (i) => right(1, i) && !right(0, i)],
  ["Both right", (i) => right(0, i) && right(1, i)], ["Both wrong", (i) => !right(0, i) && !right(1, i)]] : [];
const textOf = (i, answer) => (Array.isArray(answer) ? q.contexts[q.context[i]].slice(answer[0], answer[1]) : answer || "");
function golds(i) {
  const texts = [], at = q.gold[i];
  for (let k = 0; k < at.length; k += 2) texts.push(textOf(i, [at[k], at[k + 1]]));
  return [...new Set([...texts, ...(q.lost[i] || [])])];
}
// How far a run was from deciding otherwise: its odds' distance from its threshold.
const sureness = (i) => Math.max(...q.runs.map((run, r) => (run.odds[i] == null || runs[r].threshold == null ? 0 : Math.abs(run.odds[i] - runs[r].threshold))));

function select() {
  const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length && !haystack) haystack = q.id.map((id, i) => [id, q.question[i], q.titles[q.context[i]], ...golds(i), ...q.runs.map((run) => textOf(i, run.answer[i]))].join("\n").toLowerCase());
  const [group, part] = state.group ? state.group.split(":").map(Number) : [];
  found = [];
  for (let i = 0; i < q.id.length; i++) {
    if (state.kinds && !q.runs.some((run) => state.kinds.includes(run.kind[i]))) continue;
    if (state.flip != null && !flips[state.flip][1](i)) continue;
    if (state.group && data.groups[group].of[i] !== part) continue;
    if (words.length && !words.every((word) => haystack[i].includes(word))) continue;
    found.push(i);
  }
  if (state.order === "sure") found.sort((i, j) => sureness(j) - sureness(i));
  if (state.order === "unsure") found.sort((i, j) => sureness(i) - sureness(j));
}

function browser() {
  if (data.gaps.questions) return gap(data.gaps.questions);
  const count = (test) => q.id.reduce((n, _, i) => n + (test(i) ? 1 : 0), 0);
  const chip = (text, n, filter) => [filter, on(h("button", { type: "button", "aria-pressed": "false" }, text, h("span", { class: "n" }, whole(n))), "click", () => {
    state = { ...state, kinds: null, flip: null, ...filter, page: 0, open: null };
    refresh();
  })];
  const kinds = data.kinds.map((kind, index) => [kind[1], index, count((i) => q.runs.some((run) => run.kind[i] === index))]).filter(([, , n]) => n);
  const chips = [chip("All", q.id.length, { kinds: null, flip: null })];
  if (two) flips.forEach(([text, test], index) => chips.push(chip(text, count(test), { flip: index })));
  else {
    chips.push(chip("All misses", count((i) => !right(0, i)), { kinds: [2, 3, 4, 5, 6] }));
    kinds.forEach(([text, index, n]) => chips.push(chip(text, n, { kinds: [index] })));
  }
  const set = (name) => (event) => { state = { ...state, [name]: event.target.value, page: 0, open: null }; refresh(); };
  const search = on(h("input", { type: "search", id: "search", placeholder: "Search questions, answers, titles, ids", "aria-label": "Search questions, answers, titles and ids" }), "input", set("search"));
  const group = on(h("select", { id: "group", "aria-label": "Group" }, h("option", { value: "" }, "Every group"), data.groups.map((each, g) => h("optgroup", { label: each.name }, each.labels.map((text, at) => h("option", { value: `${g}:${at}` }, `${each.name.toLowerCase()}: ${text}`))))), "change", set("group"));
  const order = on(h("select", { id: "order", "aria-label": "Order" }, h("option", { value: "file" }, "In file order"), h("option", { value: "sure" }, "Surest first"), h("option", { value: "unsure" }, "Least sure first")), "change", set("order"));
  const kind = on(h("select", { id: "kind", "aria-label": "Kind" }, h("option", { value: "" }, "Every kind"), kinds.map(([text, index]) => h("option", { value: index }, text))), "change", (event) => {
    state = { ...state, kinds: event.target.value === "" ? null : [Number(event.target.value)], page: 0, open: null };
    refresh();
  });
  controls = { chips, search, group, order, kind, status: h("span", { role: "status", id: "status" }) };
  const turn = (text, by) => on(h("button", { type: "button", "data-turn": by, "aria-label": `${text} page` }, by < 0 ? "← " + text : text + " →"), "click", () => {
    state = { ...state, page: state.page + by, open: null };
    refresh();
    byId("list").scrollTop = 0;
    byId("list").firstElementChild.scrollIntoView({ block: "nearest" });
  });
  controls.turns = [turn("Previous", -1), turn("Next", 1)];
  return [h("div", { class: "controls", role: "group", "aria-label": "Filter by kind" }, chips.map((each) => each[1])), h("div", { class: "controls" }, search, two && kind, group, order),
    h("div", { class: "browser" }, h("div", {}, h("div", { class: "pager" }, controls.status), on(h("ol", { id: "list" }), "keydown", walk), h("div", { class: "pager" }, controls.turns)), h("div", { id: "detail", tabindex: "-1", "aria-label": "The chosen question", role: "region" }))];
}

const same = (left, right) => JSON.stringify(left ?? null) === JSON.stringify(right ?? null);
const narrow = matchMedia("(max-width: 52rem)");

function refresh() {
  if (!q) return;
  select();
  for (const [filter, button] of controls.chips) button.setAttribute("aria-pressed", same(filter.kinds, state.kinds) && same(filter.flip, state.flip));
  for (const name of ["search", "group", "order"]) if (controls[name].value !== state[name]) controls[name].value = state[name];
  controls.kind.value = state.kinds && state.kinds.length === 1 ? state.kinds[0] : "";
  const pages = Math.max(1, Math.ceil(found.length / PAGE)), first = state.page * PAGE;
  controls.status.textContent = found.length ? `${whole(first + 1)} to ${whole(Math.min(first + PAGE, found.length))} of ${whole(found.length)} questions` : "No question fits these filters.";
  controls.turns[0].disabled = state.page === 0;
  controls.turns[1].disabled = state.page >= pages - 1;
  const detail = byId("detail");
  document.querySelector(".browser").append(detail);
  byId("list").replaceChildren(...found.slice(first, first + PAGE).map((i) => h("li", {}, on(h("button", { type: "button", "aria-expanded": "false", "data-row": i }, quoted(q.question[i]), line(i)), "click", () => show(i, true)))));
  if (state.open != null) show(state.open);
  else if (!narrow.matches && found.length) show(found[first]);
  else detail.hidden = true;
}

function line(i) {
  const parts = q.runs.map((run, r) => [kindColour(h("span", { class: "swatch" }), run.kind[i]), two && [quoted(runs[r].name), " "], data.kinds[run.kind[i]][1], run.answer[i] ? [": ", quoted(textOf(i, run.answer[i]))] : ""]);
  return parts.map((part) => h("small", {}, part));
}

function walk(event) {
  const item = event.target.closest("li"), to = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
  const next = item && to && item[to] && item[to].querySelector("button[data-row]");
  if (!next) return;
  event.preventDefault();
  next.focus();
  show(Number(next.dataset.row));
}

// Shows question i beside the list, or under its line where the page is narrow; there a second click closes it.
function show(i, toggle = false) {
  const detail = byId("detail"), closing = toggle && narrow.matches && state.open === i && !detail.hidden;
  state.open = closing ? null : i;
  for (const button of byId("list").querySelectorAll("button[data-row]")) button.setAttribute("aria-expanded", String(!closing && Number(button.dataset.row) === i));
  detail.hidden = closing;
  if (closing) return;
  const button = byId("list").querySelector(`button[data-row="${i}"]`);
  if (narrow.matches && button) button.parentElement.append(detail);
  else document.querySelector(".browser").append(detail);
  detail.replaceChildren(...describe(i));
  detail.scrollTop = 0;
  const context = detail.querySelector(".context"), mark = context.querySelector("mark");
  if (mark && mark.offsetTop > context.clientHeight * 0.8) context.scrollTop = mark.offsetTop - context.clientHeight / 3;
  if (toggle) history.replaceState(null, "", `#q=${encodeURIComponent(q.id[i])}`);
}

// The context with marks: cut at every end of every span, each piece with the classes of the spans around it.
function marked(i) {
  const text = q.contexts[q.context[i]], spans = [];
  for (let k = 0; k < q.gold[i].length; k += 2) spans.push([q.gold[i][k], q.gold[i][k + 1], "gold"]);
  q.runs.forEach((run, r) => {
    if (Array.isArray(run.answer[i])) spans.push([...run.answer[i], sides[r]]);
    else if (!two && run.answer[i] === "" && held(run, i)) spans.push([...held(run, i), "held"]);
  });
  const cuts = [...new Set([0, text.length, ...spans.flatMap((each) => each.slice(0, 2))])].sort((left, right) => left - right);
  return cuts.slice(1).map((end, k) => {
    const names = new Set(spans.filter((each) => each[0] <= cuts[k] && end <= each[1]).map((each) => each[2]));
    const piece = visible(text.slice(cuts[k], end));
    return names.size ? h("mark", { class: [...names].join(" ") }, piece) : piece;
  });
}
// The best span of a run that gave no answer.
function held(run, i) {
  for (let k = 0; k < run.best[i].length; k += 3) if (run.best[i][k + 1] > run.best[i][k]) return [run.best[i][k], run.best[i][k + 1]];
  return null;
}

function describe(i) {
  const accepted = golds(i), none = h("span", { class: "soft" }, "no answer");
  const rows = [h("dt", {}, "Accepted"), h("dd", {}, accepted.length ? accepted.map((text, k) => [k ? h("span", { class: "soft" }, " · ") : "", quoted(text)]) : none)];
  q.runs.forEach((run, r) => {
    const answer = run.answer[i], kind = run.kind[i];
    const badge = h("span", { class: "badge" }, kindColour(h("span", { class: "swatch" }), kind), data.kinds[kind][1]);
    rows.push(h("dt", {}, two ? quoted(runs[r].name) : "Predicted"), h("dd", {}, answer ? quoted(textOf(i, answer)) : h("span", { class: "soft" }, answer === "" ? "no answer" : "missing"), " ", badge,
      h("small", { class: "soft" }, `, F1 ${run.f1[i]}`)));
    const best = [];
    for (let k = 0; k < run.best[i].length; k += 3) best.push(h("li", {}, h("span", {}, `${fixed(run.best[i][k + 2] / 10, 0)} %`), run.best[i][k + 1] > run.best[i][k] ? quoted(textOf(i, run.best[i].slice(k, k + 2))) : h("span", { class: "soft" }, "no answer")));
    if (best.length) rows.push(h("dt", {}, two ? "its best" : "Best spans"), h("dd", {}, h("ol", {}, best)));
    if (run.odds[i] != null) rows.push(h("dt", {}, "Null odds"), h("dd", {}, fixed(run.odds[i], 2), runs[r].threshold == null ? "" : h("span", { class: "soft" }, ` (no answer above ${fixed(runs[r].threshold, 2)})`)));
  });
  rows.push(h("dt", {}, "Id"), h("dd", { class: "soft" }, quoted(q.id[i])));
  const keys = [["gold", "accepted"], ...(two ? runs.map((run, r) => [sides[r], run.name]) : [["a", "predicted"]])];
  if (!two && q.runs[0].answer[i] === "" && held(q.runs[0], i)) keys[1] = ["held", "best span, held back"];
  return [h("p", { class: "eyebrow" }, quoted(q.titles[q.context[i]].replaceAll("_", " "))), h("h3", { dir: "auto" }, visible(q.question[i])),
    h("ul", { class: "keys" }, keys.map(([name, text]) => h("li", {}, h("mark", { class: name }, text)))), h("div", { class: "context", dir: "auto", tabindex: "0" }, marked(i)), h("dl", { class: "answers" }, rows)];
}

// ---- what was run ----

function setup() {
  const line = (name, values) => h("tr", { class: two && values[0] !== values[1] ? "differs" : null }, h("th", { scope: "row" }, name), values.map((value) => h("td", {}, visible(value))));
  const table = (caption, parts) => {
    const names = [...new Set(parts.flatMap((part) => Object.keys(part)))];
    const rows = names.map((name) => line(name, parts.map((part) => (part[name] === undefined ? "–" : String(part[name] ?? "none")))));
    return h("div", { class: "scroll" }, h("table", { class: "plain" }, h("caption", { class: "hidden" }, caption), two && h("thead", {}, h("tr", {}, h("th"), runs.map((run) => h("th", { scope: "col" }, run.name)))), h("tbody", {}, rows)));
  };
  return [table("What was run", runs.map((run) => run.facts)), h("details", {}, h("summary", {}, `All settings${two ? "; those that differ are marked" : ""}`), table("Settings", runs.map((run) => run.settings)))];
}

// ---- put together ----

header();
for (const [id, make] of Object.entries({ scores, training, answers, failures, questions: browser, setup })) byId(id).append(...[make()].flat(Infinity));
if (q) {
  const wanted = location.hash.startsWith("#q=") ? q.id.indexOf(decodeURIComponent(location.hash.slice(3))) : -1;
  state = { ...fresh(), ...(two ? { flip: 0 } : { kinds: [2, 3, 4, 5, 6] }) };
  if (wanted >= 0) state = { ...fresh(), page: Math.floor(wanted / PAGE), open: wanted };
  refresh();
  if (wanted >= 0) byId("questions").scrollIntoView();
  narrow.addEventListener("change", refresh);
}
const links = [...document.querySelectorAll("nav a")];
const watcher = new IntersectionObserver((entries) => {
  const here = entries.find((entry) => entry.isIntersecting);
  if (here) for (const link of links) link.hash === `#${here.target.id}` ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current");
}, { rootMargin: "-30% 0px -69% 0px" });
document.querySelectorAll("section").forEach((section) => watcher.observe(section));
document.documentElement.dataset.ready = Math.round(performance.now()); // milliseconds since the page was asked for
