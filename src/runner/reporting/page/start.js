// The table stands already; the plots follow one by one, so that the page can be read at once.
document.body.append(tip);
const groups = [...document.querySelectorAll("section.group")].map(section => new Group(section));
const queue = groups.flatMap(group => [deltaPart, curvesPart, parallelPart, frontPart, weightsPart, conflictPart, panelsPart, runsPart].map(part => () => part(group)));
queue.unshift(searchesPart);
queue.push(troublePart);
function next() {
  const part = queue.shift();
  if (!part) { document.documentElement.dataset.ready = "true"; return; }
  part();
  setTimeout(next);
}
requestAnimationFrame(() => setTimeout(next));
addEventListener("beforeprint", () => { while (queue.length) queue.shift()(); });
let before = innerWidth, wait = 0;
addEventListener("resize", () => {
  if (innerWidth === before) return;
  before = innerWidth;
  clearTimeout(wait);
  wait = setTimeout(() => groups.forEach(group => group.redraw()), 120);
});
