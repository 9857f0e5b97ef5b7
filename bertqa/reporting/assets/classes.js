// A classifier's sections: its scores, the confusion matrix, and the texts it got wrong.

const rate = (value) => h("td", {}, value == null ? "–" : fixed(value, 1));

function classScores() {
  const table = several && familyTable("Accuracy", "Macro-F1");
  return [table, ...data.classes.map((found, r) => {
    const right = found.matrix.reduce((sum, row, i) => sum + row[i], 0), run = several && h("h3", {}, quoted(runs[r].name));
    return [run, h("p", {}, `${whole(right)} of ${whole(found.total)} texts are classified rightly (${fixed(found.accuracy)} %). `,
      `Macro-F1, the mean over the classes, is ${fixed(found.macro_f1)}.`),
      h("div", { class: "charts" }, classTable(found), matrixTable(found))];
  })];
}

function classTable(found) {
  const rows = found.rows.map((row, i) => h("tr", { class: row.n < 30 ? "few" : null }, h("th", { scope: "row" }, quoted(found.labels[i])),
    h("td", {}, whole(row.n)), rate(row.precision), rate(row.recall), rate(row.f1)));
  return h("div", { class: "scroll" }, h("table", {}, h("caption", {}, "Each class, in percent. Grey lines have fewer than 30 texts, too few to tell."),
    columns(["Class", "Texts", "Precision", "Recall", "F1"]), h("tbody", {}, rows)));
}

function matrixTable(found) {
  const rows = found.matrix.map((row, i) => {
    const total = row.reduce((sum, n) => sum + n, 0);
    return h("tr", {}, h("th", { scope: "row" }, quoted(found.labels[i])), row.map((n, k) => {
      const cell = h("td", { class: k === i ? "cell hit" : "cell" }, whole(n));
      cell.style.setProperty("--share", `${total ? Math.round((80 * n) / total) : 0}%`);
      return cell;
    }));
  });
  return h("div", { class: "scroll" }, h("table", { class: "matrix" },
    h("caption", {}, "Confusion matrix: a line for each right class, a column for each predicted one. Darker: a larger share of its line."),
    columns(["", ...found.labels]), h("tbody", {}, rows)));
}

function classErrors() {
  const [found] = data.classes;
  if (!found.wrong) return h("p", {}, "There is not one.");
  const rows = found.errors.map((error) => h("tr", {}, h("td", { class: "text" }, error.text ? quoted(error.text) : h("span", { class: "soft" }, quoted(error.id))),
    h("td", { class: "text" }, quoted(error.gold)), h("td", { class: "text" }, quoted(error.label)), h("td", {}, fixed(100 * error.probability))));
  const shown = found.errors.length < found.wrong ? `The ${whole(found.errors.length)} surest of ${whole(found.wrong)}` : `All ${whole(found.wrong)}`;
  return h("div", { class: "scroll" }, h("table", { class: "errors" }, h("caption", {}, `${shown} texts that were classified wrongly, the surest first.`),
    columns([["Text", "text"], ["Right", "text"], ["Predicted", "text"], "Sure, %"]), h("tbody", {}, rows)));
}
