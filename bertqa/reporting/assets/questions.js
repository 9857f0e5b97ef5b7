// The question browser.

const q = data.questions, narrow = matchMedia("(max-width: 52rem)"), pageSize = narrow.matches ? 20 : 50;
const MISSES = data.kinds.flatMap(([key], kind) => (key.startsWith("right") ? [] : [kind]));
const fresh = () => ({ kinds: null, flip: null, group: "", order: "file", search: "", inside: false, page: 0, open: null });
let state = fresh(), found = [], haystack = null, paragraphs = null, controls = null;

function change(values) {
  state = { ...state, page: 0, open: null, ...values };
  refresh();
}

// A line of a table that shows its questions.
const choose = (text, filter) => !q ? text : on(h("button", { class: "link", type: "button" }, text), "click", () => {
  change({ ...fresh(), ...filter });
  byId("questions").scrollIntoView();
});

// ---- which questions ----

const right = (run, i) => !MISSES.includes(q.runs[run].kind[i]);
const flips = two ? [
  ["Flipped", (i) => right(0, i) !== right(1, i)],
  [`Only ${runs[0].name} is right`, (i) => right(0, i) && !right(1, i)],
  [`Only ${runs[1].name} is right`, (i) => right(1, i) && !right(0, i)],
  ["Both right", (i) => right(0, i) && right(1, i)],
  ["Both wrong", (i) => !right(0, i) && !right(1, i)]] : [];
const textOf = (i, answer) => (Array.isArray(answer) ? q.contexts[q.context[i]].slice(...answer) : answer || "");
const spansOf = (flat, size = 2) => Array.from({ length: flat.length / size }, (_, k) => flat.slice(size * k, size * (k + 1)));
const golds = (i) => [...new Set([...spansOf(q.gold[i]).map((span) => textOf(i, span)), ...(q.lost[i] || [])])];
// How far the runs were from deciding otherwise: the distance of the odds from the threshold.
const sureness = (i) => Math.max(...q.runs.map(({ odds }, r) =>
  odds[i] == null || runs[r].threshold == null ? 0 : Math.abs(odds[i] - runs[r].threshold)));

const f1 = (i) => Math.min(...q.runs.map((run) => run.f1[i]));
const ORDERS = {
  file: ["In file order"],
  sure: ["Surest first", (i) => -sureness(i)],
  unsure: ["Least sure first", sureness],
  low: ["Lowest F1 first", f1],
  high: ["Highest F1 first", (i) => -f1(i)],
  ...(two && {
    gap: ["Largest difference first", (i) => -Math.abs(q.runs[1].f1[i] - q.runs[0].f1[i])],
    better: [`${runs[1].name} better first`, (i) => q.runs[0].f1[i] - q.runs[1].f1[i]],
    worse: [`${runs[0].name} better first`, (i) => q.runs[1].f1[i] - q.runs[0].f1[i]],
  }),
};

function select() {
  const words = state.search.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length && !haystack)
    haystack = q.id.map((id, i) => [id, q.question[i], q.titles[q.context[i]], ...golds(i), ...q.runs.map((run) => textOf(i, run.answer[i]))]
      .join("\n").toLowerCase());
  if (words.length && state.inside && !paragraphs) paragraphs = q.contexts.map((text) => text.toLowerCase());
  const has = (i, word) => haystack[i].includes(word) || (state.inside && paragraphs[q.context[i]].includes(word));
  const [group, part] = state.group ? state.group.split(":").map(Number) : [];
  found = [...q.id.keys()].filter((i) =>
    (!state.kinds || q.runs.some((run) => state.kinds.includes(run.kind[i]))) &&
    (state.flip == null || flips[state.flip][1](i)) &&
    (!state.group || data.groups[group].of[i] === part) &&
    words.every((word) => has(i, word)));
  const by = ORDERS[state.order][1];
  if (by) found.sort((i, j) => by(i) - by(j)); // equal ones stay in file order
}

// ---- controls and list ----

function browser() {
  if (data.gaps.questions) return gap(data.gaps.questions);
  const count = (test) => q.id.reduce((n, _, i) => n + test(i), 0);
  const chip = (text, n, filter) => [filter, on(
    h("button", { type: "button", "aria-pressed": "false" }, text, h("span", { class: "n" }, whole(n))), "click",
    () => change({ kinds: null, flip: null, ...filter }))];
  const kinds = data.kinds.map(([, text], kind) => [text, kind, count((i) => q.runs.some((run) => run.kind[i] === kind))])
    .filter(([, , n]) => n);
  const chips = [chip("All", q.id.length, {}), ...(two
    ? flips.map(([text, test], flip) => chip(text, count(test), { flip }))
    : [chip("All misses", count((i) => !right(0, i)), { kinds: MISSES }), ...kinds.map(([text, kind, n]) => chip(text, n, { kinds: [kind] }))])];

  const choice = (id, name, options, act) => on(h("select", { id, "aria-label": name }, options), "change", (event) => act(event.target.value));
  const option = (value, text) => h("option", { value }, text);
  const words = "Search questions, answers, titles and ids";
  const search = on(h("input", { type: "search", id: "search", placeholder: "Search questions and answers", "aria-label": words }), "input",
    () => change({ search: search.value }));
  const group = choice("group", "Group", [option("", "Every group"), data.groups.map((each, g) => h("optgroup", { label: each.name },
    each.labels.map((text, at) => option(`${g}:${at}`, `${each.name.toLowerCase()}: ${text}`))))], (value) => change({ group: value }));
  const order = choice("order", "Order", Object.entries(ORDERS).map(([value, [text]]) => option(value, text)), (value) => change({ order: value }));
  const inside = on(h("input", { type: "checkbox", id: "inside" }), "change", () => change({ inside: inside.checked }));
  const clear = on(h("button", { type: "button", id: "clear" }, "Clear filters"), "click", () => change(fresh()));
  const save = on(h("button", { type: "button", id: "save", title: "The list as it is filtered and sorted, a line of JSON for each question" }, "Save list"),
    "click", saveList);
  const kind = choice("kind", "Kind", [option("", "Every kind"), kinds.map(([text, index]) => option(index, text))],
    (value) => change({ kinds: value === "" ? null : [Number(value)] }));

  const turn = (by, text, shown) => on(h("button", { type: "button", "data-turn": by, "aria-label": text }, shown), "click", () => {
    change({ page: state.page + by });
    byId("list").scrollTop = 0;
    byId("list").firstElementChild.scrollIntoView({ block: "nearest" });
  });
  const turns = [turn(-1, "Previous page", "← Previous"), turn(1, "Next page", "Next →")];
  controls = { chips, search, inside, clear, group, order, kind, turns, status: h("span", { role: "status", id: "status" }) };
  const list = on(h("ol", { id: "list" }), "keydown", walk);
  return [h("div", { class: "controls", role: "group", "aria-label": "Filter by kind" }, chips.map((each) => each[1])),
    h("div", { class: "controls" }, search, h("label", {}, inside, "paragraphs too"), two && kind, group, order),
    h("div", { class: "browser" }, h("div", {}, h("div", { class: "pager" }, controls.status, clear, save), list, h("div", { class: "pager" }, controls.turns)),
      h("div", { id: "detail", tabindex: "-1", role: "region", "aria-label": "The chosen question" }))];
}

function refresh() {
  select();
  const same = (one, other) => String(one ?? "") === String(other ?? "");
  for (const [filter, button] of controls.chips)
    button.setAttribute("aria-pressed", same(filter.kinds, state.kinds) && same(filter.flip, state.flip));
  for (const name of ["search", "group", "order"]) if (controls[name].value !== state[name]) controls[name].value = state[name];
  controls.inside.checked = state.inside;
  controls.clear.disabled = !(state.kinds || state.flip != null || state.group || state.search || state.order !== "file");
  controls.kind.value = state.kinds && state.kinds.length === 1 ? state.kinds[0] : "";
  const first = state.page * pageSize, shown = found.slice(first, first + pageSize);
  controls.status.textContent = shown.length
    ? `${whole(first + 1)} to ${whole(first + shown.length)} of ${whole(found.length)} questions` : "No question fits these filters.";
  controls.turns[0].disabled = first === 0;
  controls.turns[1].disabled = first + pageSize >= found.length;
  const detail = byId("detail");
  document.querySelector(".browser").append(detail);
  byId("list").replaceChildren(...shown.map((i) => h("li", {}, on(
    h("button", { type: "button", "aria-expanded": "false", "data-row": i }, quoted(q.question[i]), outcome(i)), "click", () => show(i, true)))));
  if (state.open != null) show(state.open);
  else if (!narrow.matches && shown.length) show(shown[0]);
  else detail.hidden = true;
}

const outcome = (i) => q.runs.map((run, r) => h("small", {}, swatch(run.kind[i]), two && [quoted(runs[r].name), " "], data.kinds[run.kind[i]][1],
  run.answer[i] && [": ", quoted(textOf(i, run.answer[i]))]));

function walk(event) {
  const item = event.target.closest("li"), to = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
  const next = item && to && item[to] && item[to].querySelector("button[data-row]");
  if (!next) return;
  event.preventDefault();
  next.focus();
  show(Number(next.dataset.row));
}

// ---- one question ----

// The page's address with this question open; a lone surrogate has no place in an address.
const linkTo = (i) => `#q=${encodeURIComponent(q.id[i].replace(/[\ud800-\udfff]/gu, "\ufffd"))}`;

// Shows question i beside the list, or under its line where the page is narrow; there a second click closes it.
function show(i, clicked = false) {
  const detail = byId("detail"), list = byId("list"), closing = clicked && narrow.matches && state.open === i && !detail.hidden;
  state.open = closing ? null : i;
  for (const button of list.querySelectorAll("button[data-row]"))
    button.setAttribute("aria-expanded", !closing && Number(button.dataset.row) === i);
  detail.hidden = closing;
  if (closing) return;
  const button = list.querySelector(`button[data-row="${i}"]`);
  (narrow.matches && button ? button.parentElement : document.querySelector(".browser")).append(detail);
  detail.replaceChildren(...describe(i));
  detail.scrollTop = 0;
  const context = detail.querySelector(".context"), mark = context.querySelector("mark");
  if (mark && mark.offsetTop > context.clientHeight * 0.8) context.scrollTop = mark.offsetTop - context.clientHeight / 3;
  if (clicked) history.replaceState(null, "", linkTo(i));
}

// Opens the question that the address names, and says whether there is one.
function openLinked() {
  const wanted = location.hash.startsWith("#q=") ? q.id.findIndex((_, i) => linkTo(i) === location.hash) : -1;
  if (wanted < 0) return false;
  if (!found.includes(wanted)) {
    state = fresh();
    select();
  }
  change({ page: Math.floor(found.indexOf(wanted) / pageSize), open: wanted });
  const arrive = () => byId("detail").scrollIntoView({ block: narrow.matches ? "nearest" : "start", behavior: "instant" });
  arrive();
  // charts get their height after this, and push the question down: go there again
  new ResizeObserver((_, watcher) => (arrive(), requestAnimationFrame(() => watcher.disconnect()))).observe(byId("training"));
  setTimeout(arrive, 300);
  return true;
}

// The list as it is filtered and sorted, as lines of JSON.
function saveList() {
  const lines = found.map((i) => JSON.stringify({ id: q.id[i], title: q.titles[q.context[i]], question: q.question[i], answers: golds(i),
    predictions: Object.fromEntries(q.runs.map((run, r) => [runs[r].name, { answer: run.answer[i] == null ? null : textOf(i, run.answer[i]),
      kind: data.kinds[run.kind[i]][0], f1: run.f1[i], null_odds: run.odds[i] }])) }) + "\n");
  const url = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
  h("a", { href: url, download: `${runs.map((run) => run.name).join("-")}-questions.jsonl` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// A link to the question, which copies its address when it is clicked.
function permalink(i) {
  const link = h("a", { href: linkTo(i), class: "permalink" }, "Link to this question");
  return on(link, "click", (event) => {
    event.preventDefault();
    history.replaceState(null, "", linkTo(i));
    const copied = navigator.clipboard ? navigator.clipboard.writeText(location.href) : Promise.reject();
    copied.then(() => (link.textContent = "Copied"), () => (link.textContent = "It is in the address bar"));
  });
}

// The best span of a run that gave no answer; only for one run, for two it would be a mark too many.
function heldBack(i) {
  const run = q.runs[0], best = spansOf(run.best[i], 3).find(([start, end]) => end > start);
  return !two && run.answer[i] === "" && best ? [...best.slice(0, 2), "held"] : null;
}

// The context with marks: cut at every end of every span, each piece with the classes of the spans around it.
function marked(i) {
  const text = q.contexts[q.context[i]], held = heldBack(i);
  const spans = [...spansOf(q.gold[i]).map((span) => [...span, "gold"]), ...(held ? [held] : []),
    ...q.runs.flatMap((run, r) => (Array.isArray(run.answer[i]) ? [[...run.answer[i], sides[r]]] : []))];
  const cuts = [...new Set([0, text.length, ...spans.flatMap((span) => span.slice(0, 2))])].sort((one, other) => one - other);
  return cuts.slice(1).map((end, k) => {
    const names = new Set(spans.filter((span) => span[0] <= cuts[k] && end <= span[1]).map((span) => span[2]));
    const piece = visible(text.slice(cuts[k], end));
    return names.size ? h("mark", { class: [...names].join(" ") }, piece) : piece;
  });
}

function describe(i) {
  const soft = (text) => h("span", { class: "soft" }, text), accepted = golds(i);
  const rows = [h("dt", {}, "Accepted"), h("dd", {}, accepted.map((text, k) => [k > 0 && soft(" · "), quoted(text)]),
    !accepted.length && soft("no answer"))];
  q.runs.forEach((run, r) => {
    const answer = run.answer[i], threshold = runs[r].threshold;
    rows.push(h("dt", {}, two ? quoted(runs[r].name) : "Predicted"), h("dd", {},
      answer ? quoted(textOf(i, answer)) : soft(answer === "" ? "no answer" : "missing"), " ",
      h("span", { class: "badge" }, swatch(run.kind[i]), data.kinds[run.kind[i]][1]), h("small", { class: "soft" }, `, F1 ${run.f1[i]}`)));
    const best = spansOf(run.best[i], 3).map(([start, end, share]) => h("li", {}, soft(`${fixed(share / 10, 0)} %`),
      end > start ? quoted(textOf(i, [start, end])) : soft("no answer")));
    if (best.length) rows.push(h("dt", {}, two ? "its best" : "Best spans"), h("dd", {}, h("ol", {}, best)));
    if (run.odds[i] != null)
      rows.push(h("dt", {}, "Null odds"), h("dd", {}, fixed(run.odds[i], 2), threshold != null && soft(` (no answer above ${fixed(threshold, 2)})`)));
  });
  rows.push(h("dt", {}, "Id"), h("dd", {}, soft(quoted(q.id[i])), " ", permalink(i)));
  const keys = [["gold", "accepted"], ...(two ? runs.map((run, r) => [sides[r], run.name])
    : [heldBack(i) ? ["held", "best span, held back"] : ["a", "predicted"]])];
  return [h("p", { class: "eyebrow" }, quoted(q.titles[q.context[i]].replaceAll("_", " "))), h("h3", { dir: "auto" }, visible(q.question[i])),
    h("ul", { class: "keys" }, keys.map(([name, text]) => h("li", {}, h("mark", { class: name }, text)))),
    h("div", { class: "context", dir: "auto", tabindex: "0" }, marked(i)), h("dl", { class: "answers" }, rows)];
}
