"use strict";
// Elements, numbers as text, and charts. Whatever comes from data becomes a text node, never markup.

const data = JSON.parse(document.getElementById("data").textContent);
const runs = data.runs, two = runs.length === 2, several = runs.length > 1;
// A colour for each run; with more than eight they come again.
const sides = runs.map((_, i) => "abcdefgh"[i % 8]);
const byId = (id) => document.getElementById(id);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) if (value != null) element.setAttribute(name, value);
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return element;
}
const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const on = (element, event, act) => (element.addEventListener(event, act), element);
const gap = (text) => h("p", { class: "gap" }, text);

// Control characters have pictures of their own; one for one, so that offsets stay true.
const visible = (text) =>
  text.replace(/[\0-\x08\x0b-\x1f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0))).replace(/\x7f/g, "\u2421");
const quoted = (text) => h("bdi", {}, visible(text));

const whole = (value) => Math.round(value).toLocaleString("en-US");
const fixed = (value, digits = 1) => (value < 0 ? "−" : "") + Math.abs(value).toFixed(digits);
const signed = (value, digits = 2) => (value > 0 ? "+" : "") + fixed(value, digits);
const percent = (value) => whole(100 * value);
const compact = (value) => {
  const size = Math.abs(value), sign = value < 0 ? "−" : "";
  if (size >= 1e4) return sign + whole(size / 1e3) + "k";
  // 2.5e−5 and not 3e−5: a tick stands at its value
  if (size && size < 1e-3) return sign + (+size.toPrecision(3)).toExponential().replace("-", "−");
  return sign + String(+size.toPrecision(3));
};

// ---- charts: drawn at the width they have, so that text keeps its size ----

// Whole numbers only where fractions have no meaning: step 1.5 would be shown as 2.
function ticks(low, high, count, isWhole = false) {
  const raw = Math.max((high - low) / count || 1, isWhole ? 1 : 0), unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * unit).find((size) => size >= raw && (!isWhole || size % 1 === 0));
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step || 0); // never -0
  return found;
}

function extent(values, margin = 0.05) {
  const low = Math.min(...values), high = Math.max(...values), pad = (high - low || Math.abs(high) || 1) * margin;
  return [low >= 0 ? Math.max(0, low - pad) : low - pad, high + pad];
}

// A figure. spec: title, note, empty (what to say where there is nothing to draw), diagonal,
//   x, y     {label, range, format, tip}
//   series   [{name, side: its colour, points: [[x, y, questions, radius]], as: "line" | "dots" | "bars", dash, faint, knots,
//              measured: points to show on hovering, where those drawn are smoothed}]
//   rules    [{at, label, side}], vertical lines
function chart(spec) {
  const series = spec.series.filter((each) => each.points.length), named = series.filter((each) => each.name);
  const figure = h("figure", {}, h("h3", {}, spec.title), spec.note && h("figcaption", {}, spec.note));
  if (!series.length) return fill(figure, {}, [gap(spec.empty || "Nothing was recorded.")]);
  if (named.length > 1 || spec.legend)
    figure.append(h("ul", { class: "legend" }, named.map((each) =>
      h("li", {}, h("i", { class: `${each.side}${each.dash ? " dash" : ""}` }), each.name))));
  const holder = h("div"), tip = h("div", { class: "tip", "aria-hidden": "true" });
  figure.append(holder, tip);
  let last = 0;
  new ResizeObserver(([entry]) => {
    const width = Math.round(entry.contentRect.width);
    if (width && width !== last) holder.replaceChildren(draw(spec, series, named, tip, (last = width)));
  }).observe(holder);
  return figure;
}

function draw(spec, series, named, tip, width) {
  const all = series.flatMap((each) => each.points);
  const [x0, x1] = spec.x.range || extent(all.map((point) => point[0]), 0);
  const [y0, y1] = spec.y.range || extent(all.map((point) => point[1]));
  const xText = spec.x.format || compact, yText = spec.y.format || compact;
  const height = Math.max(190, Math.min(250, width * 0.52)), left = 44, right = 10, bottom = 36, top = spec.y.label ? 26 : 12;
  const floor = height - bottom, end = width - right;
  const x = (value) => left + ((value - x0) / (x1 - x0 || 1)) * (end - left);
  const y = (value) => floor - ((value - y0) / (y1 - y0 || 1)) * (floor - top);

  const words = named.map(({ name, points }) => `${name}: from ${yText(points[0][1])} to ${yText(points[points.length - 1][1])}`);
  const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${spec.title}. ${words.join("; ")}` });
  for (const value of ticks(y0, y1, 4, yText === whole))
    svg.append(s("line", { class: "grid", x1: left, x2: end, y1: y(value), y2: y(value) }),
      s("text", { x: left - 7, y: y(value) + 4, "text-anchor": "end" }, yText(value)));
  for (const value of ticks(x0, x1, width < 360 ? 4 : 6, xText === whole))
    svg.append(s("text", { x: x(value), y: floor + 16, "text-anchor": "middle" }, xText(value)));
  svg.append(s("line", { class: "axis", x1: left, x2: end, y1: floor, y2: floor }),
    s("text", { x: end, y: height - 3, "text-anchor": "end" }, spec.x.label), s("text", { x: 2, y: 11 }, spec.y.label || ""));
  if (spec.diagonal) svg.append(s("path", { class: "diagonal", d: `M${x(x0)} ${y(y0)}L${x(x1)} ${y(y1)}` }));
  for (const each of series) svg.append(...shapes(each, x, y, floor));
  const said = []; // where a rule has its label: one beside it goes without, its colour tells
  for (const rule of spec.rules || []) {
    if (rule.at < x0 || rule.at > x1) continue;
    const late = x(rule.at) > width * 0.6, anchor = late ? "end" : "start";
    svg.append(s("line", { class: `rule ${rule.side || ""}`, x1: x(rule.at), x2: x(rule.at), y1: top - 4, y2: floor }));
    if (said.some((at) => Math.abs(at - x(rule.at)) < 75)) continue;
    svg.append(s("text", { x: x(rule.at) + (late ? -5 : 5), y: top + 4, "text-anchor": anchor }, rule.label));
    said.push(x(rule.at));
  }
  const hair = s("line", { class: "hair", y1: top, y2: floor });
  svg.append(hair);
  on(svg, "pointermove", (event) => {
    const scale = width / svg.clientWidth, at = x0 + ((event.offsetX * scale - left) / (end - left)) * (x1 - x0);
    const middle = (each, point) => point[0] + (each.width || 0) / 2;
    // What was measured, not what is drawn through it: a smoothed line has its points in `measured`.
    const nearest = named.map((each) => [each, (each.measured || each.points).reduce((best, point) =>
      Math.abs(middle(each, point) - at) < Math.abs(middle(each, best) - at) ? point : best)]);
    const gapTo = ([each, point]) => Math.abs(x(middle(each, point)) - x(at));
    const closest = nearest.reduce((best, one) => (gapTo(one) < gapTo(best) ? one : best)), px = x(middle(...closest));
    // A line without a point at this place says nothing here.
    const here = nearest.filter(([each, point]) => Math.abs(x(middle(each, point)) - px) < 3);
    fill(hair, { x1: px, x2: px }, []).style.opacity = 0.6;
    tip.replaceChildren(h("b", {}, `${spec.x.label} ${xText(closest[1][0])}`), ...here.map(([each, point]) =>
      h("div", {}, `${each.name}: ${(spec.y.tip || yText)(point[1])}${point[2] == null ? "" : ` (${whole(point[2])} questions)`}`)));
    tip.style.opacity = 1;
    tip.style.top = `${svg.parentElement.offsetTop + 14}px`;
    tip.style.left = `${Math.max(0, Math.min(px + 12, width - tip.offsetWidth))}px`;
  });
  return on(svg, "pointerleave", () => (hair.style.opacity = tip.style.opacity = 0));
}

function shapes(each, x, y, floor) {
  const dots = each.points.map((point) => [x(point[0]), y(point[1])]);
  if (each.as === "bars") {
    const width = Math.max(1, x(each.width) - x(0) - 1);
    return dots.filter(([, py]) => py < floor).map(([px, py]) =>
      s("rect", { class: `bar ${each.side}`, x: px + 0.5, y: py, width, height: floor - py }));
  }
  const found = [];
  if (each.as !== "dots" && dots.length > 1) {
    const names = ["line", each.side, each.dash && "dash", each.faint && "faint"].filter(Boolean).join(" ");
    found.push(s("path", { class: names, d: "M" + dots.map(([px, py]) => `${px.toFixed(1)} ${py.toFixed(1)}`).join("L") }));
  }
  if (each.as === "dots" || dots.length === 1 || each.knots)
    found.push(...dots.map(([px, py], i) => s("circle", { class: `dot ${each.side}`, cx: px, cy: py, r: each.points[i][3] || 3.5 })));
  return found;
}

const zip = ([xs, ys]) => xs.map((x, i) => [x, ys[i]]);
// Means over a window around each point: unlike a running average, the curve does not lag.
function smooth(points) {
  const sums = [0], reach = Math.round(points.length / 30);
  for (const point of points) sums.push(sums[sums.length - 1] + point[1]);
  return points.map(([x], i) => {
    const from = Math.max(0, i - reach), to = Math.min(points.length, i + reach + 1);
    return [x, (sums[to] - sums[from]) / (to - from)];
  });
}
