// Puts the page together.

const makers = data.classes
  ? { scores: classScores, training, failures: classErrors, setup }
  : { scores, training, answers, failures, questions: browser, setup };
header();
for (const [id, make] of Object.entries(makers)) if (byId(id)) byId(id).append(...[make()].flat(Infinity).filter(Boolean));
if (q) {
  change(two ? { flip: 0 } : { kinds: MISSES });
  openLinked();
  narrow.addEventListener("change", refresh);
  addEventListener("hashchange", openLinked);
}
const links = [...document.querySelectorAll("nav a")];
const watcher = new IntersectionObserver((entries) => {
  const here = entries.find((entry) => entry.isIntersecting);
  for (const link of here ? links : []) {
    if (link.hash === `#${here.target.id}`) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}, { rootMargin: "-30% 0px -69% 0px" });
document.querySelectorAll("section").forEach((section) => watcher.observe(section));
document.documentElement.dataset.ready = Math.round(performance.now()); // milliseconds since the page was asked for
