const data = JSON.parse(document.getElementById("data").textContent);
const regions = data.regions;
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const NONE = -1;
const numeral = new Intl.NumberFormat("en");

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function draw(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

const blocks = new Map([...document.querySelectorAll("script[data-name]")].map((b) => [b.dataset.name, b]));

function picture(name) {
  const block = blocks.get(name);
  return `data:${block.dataset.type};base64,${block.textContent}`;
}

const color = (id) => `rgb(${data.classes[id].color.join(",")})`;
const nameOf = (id) => data.classes[id].name;

function classLabel(id, css = "") {
  const swatch = make("i", { className: "swatch" });
  swatch.style.background = color(id);
  return make("span", { className: css }, swatch, nameOf(id));
}

// Marks: region -> note. A browser that keeps nothing costs them on reload, nothing else.
const keyOf = (region) => JSON.stringify([region.image, region.part]);
const marks = new Map();

function trouble() {
  $("trouble").textContent = "This browser does not keep marks when the page is closed: download them before.";
  $("trouble").hidden = false;
}

function recall() {
  try {
    const known = new Set(regions.map(keyOf));
    const kept = JSON.parse(localStorage.getItem(data.key) ?? "[]");
    for (const [key, note] of kept) if (known.has(key)) marks.set(key, String(note));
  } catch { trouble(); }
}

function keep() {
  try { localStorage.setItem(data.key, JSON.stringify([...marks])); } catch { trouble(); }
}

function mark(region, wrong, note = marks.get(keyOf(region)) ?? "") {
  if (wrong) marks.set(keyOf(region), note); else marks.delete(keyOf(region));
  keep();
  showMark(region);
  // A region that leaves the filter under one's hand would be lost: the filter is applied again at the next choice.
  count();
}

function showMark(region) {
  const wrong = marks.has(keyOf(region));
  region.card.classList.toggle("marked", wrong);
  region.toggle.setAttribute("aria-pressed", wrong);
  region.toggle.textContent = wrong ? "Marked wrong" : "Mark as wrong";
  region.said.textContent = marks.get(keyOf(region)) ?? "";
  if (current === region && $("open").open) showOpenMark(region);
}

function download() {
  const list = regions.filter((r) => marks.has(keyOf(r))).map((r) => (
    { round: data.round, image: r.image, part: r.part, note: marks.get(keyOf(r)) }));
  const text = JSON.stringify({ ...data.marks, marks: list }, null, 1) + "\n";
  const link = make("a", { download: "marks.json", href: URL.createObjectURL(new Blob([text], { type: "application/json" })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// Cards
const differs = (r) => r.complete && r.predicted !== NONE && r.answered !== r.predicted;
const summary = (r) => [`Region ${r.order}`, `predicted ${nameOf(r.predicted)}`,
  r.answered === NONE ? "no answer" : `answered ${nameOf(r.answered)}`, `${numeral.format(r.px)} pixels`,
  `${r.clicks} clicks`].join(", ");
const scoreOf = (r) => (r.score === null ? "" : `score ${Number(r.score).toPrecision(3)}`);

function scene(svg, region, box, name) {
  const [x, y, width, height] = box;
  svg.setAttribute("viewBox", box.join(" "));
  const image = draw("image", { x, y, width, height, preserveAspectRatio: "none" });
  if (name) image.setAttribute("href", picture(name));
  svg.replaceChildren(image, draw("path", { d: region.path, class: "halo" }), draw("path", { d: region.path, class: "edge" }));
  return image;
}

function pair(region) {
  const line = make("div", { className: "pair" }, classLabel(region.predicted));
  if (region.complete) {
    line.append(make("span", { className: "arrow", textContent: "→" }), classLabel(region.answered, differs(region) ? "other" : ""));
  } else {
    line.append(make("span", { className: "arrow", textContent: "→" }), make("span", { className: "open", textContent: "missing" }));
  }
  return line;
}

const nearby = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((e) => e.isIntersecting)) {
    const region = entry.target.region;
    region.image_node.setAttribute("href", picture(region.cutout));
    nearby.unobserve(entry.target);
  }
}, { rootMargin: "900px" });

function buildCard(region) {
  const svg = draw("svg", { "aria-hidden": "true", preserveAspectRatio: "xMidYMid meet" });
  region.image_node = scene(svg, region, region.box, "");
  region.look = make("button", { type: "button", className: "look", tabIndex: -1 }, svg,
    make("span", { className: "badge", textContent: `#${region.order}` }));
  region.look.setAttribute("aria-label", `${summary(region)}. Open`);
  region.look.addEventListener("click", () => openRegion(region));
  region.toggle = make("button", { type: "button", className: "mark", tabIndex: -1 });
  region.toggle.addEventListener("click", () => { setCurrent(region); mark(region, !marks.has(keyOf(region))); });
  region.said = make("div", { className: "note" });
  const cost = [scoreOf(region), `${numeral.format(region.px)} px`, `${region.clicks} clicks`].filter(Boolean).join(" · ");
  const about = make("div", { className: "about" }, pair(region), make("div", { className: "mini", textContent: cost }), region.said, region.toggle);
  region.card = make("li", { region }, region.look, about);
  showMark(region);
  nearby.observe(region.card);
}

// Sort and filter
let shown = [];
let current = null;
let descending = false;

const STATES = { all: ["all", () => true], answered: ["answered", (r) => r.complete], missing: ["missing", (r) => !r.complete],
  marked: ["marked wrong", (r) => marks.has(keyOf(r))], differs: ["answer differs from prediction", differs] };
const hasClass = (r, id) => id === "" || r.predicted === Number(id) || r.answered === Number(id);

function valueOf(region, key) {
  const value = region[key];
  if (key === "predicted" || key === "answered") return value === NONE ? null : value;
  return value;
}

function arrange() {
  const key = $("sort").value, sign = descending ? -1 : 1;
  const matches = STATES[$("state").value][1];
  const order = [...regions].sort((a, b) => {
    const [x, y] = [valueOf(a, key), valueOf(b, key)];
    if (x === null || y === null) return (x === null) - (y === null) || a.order - b.order;  // without a value: last
    return sign * (x - y) || a.order - b.order;
  });
  shown = order.filter((r) => hasClass(r, $("class").value) && matches(r));
  const visible = new Set(shown);
  for (const region of regions) region.card.hidden = !visible.has(region);
  $("cards").append(...order.map((r) => r.card));
  $("none").hidden = shown.length > 0;
  setCurrent(visible.has(current) ? current : shown[0] ?? null);
  count();
}

function count() {
  $("shown").textContent = `${numeral.format(shown.length)} of ${numeral.format(regions.length)} shown`;
  $("download").textContent = marks.size ? `Download ${numeral.format(marks.size)} mark${marks.size === 1 ? "" : "s"}` : "Download marks";
  $("download").disabled = marks.size === 0;
  const chosen = $("state").value || "all";
  $("state").replaceChildren(...Object.entries(STATES).map(([value, [label, test]]) => (
    make("option", { value, textContent: `${label} (${numeral.format(regions.filter(test).length)})` }))));
  $("state").value = chosen;
}

function setCurrent(region) {
  for (const [one, index] of [[current, -1], [region, 0]]) {
    if (one) one.look.tabIndex = one.toggle.tabIndex = index;
  }
  current = region;
}

function columns() {
  const top = shown[0].card.offsetTop;
  const found = shown.findIndex((r) => r.card.offsetTop !== top);
  return found < 0 ? shown.length : found;
}

function move(event) {
  if (!current || event.altKey || event.ctrlKey || event.metaKey) return;
  const at = shown.indexOf(current);
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns(), Home: -at, End: shown.length - 1 - at };
  if (event.key in steps) {
    const region = shown[Math.min(Math.max(at + steps[event.key], 0), shown.length - 1)];
    setCurrent(region);
    region.look.focus();
    region.card.scrollIntoView({ block: "nearest" });
  } else if (event.key === "m") mark(current, !marks.has(keyOf(current)));
  else return;
  event.preventDefault();
}

// One region, large
let layer = "";

function shares(list, id) {
  if (list.length < 2) return id === NONE ? [nameOf(NONE)] : [classLabel(id)];
  return list.slice(0, 6).map(([one, share]) => {
    const label = classLabel(one);
    label.append(share < 0.005 ? " < 1 %" : ` ${Math.round(100 * share)} %`);
    return label;
  });
}

function overlay(region) {
  const id = layer === "guess" ? region.predicted : region.answered;
  if (!layer || id === NONE) return [];
  if (!region[layer]) return [draw("path", { d: region.path, class: "over", fill: color(id), "fill-rule": "evenodd" })];
  const [x, y, width, height] = region.box;
  return [draw("image", { x, y, width, height, preserveAspectRatio: "none", class: "over", href: picture(region[layer]) })];
}

function facts(region) {
  const rows = [["Predicted", [classLabel(region.predicted)]], ["Answered", shares(region.answer_shares, region.answered)],
    ["Cost", [`${numeral.format(region.px)} px, ${region.clicks} clicks`]], ["Area", [`${numeral.format(region.area_px)} px`]]];
  if (region.guess_shares.length > 1) rows.splice(1, 0, ["Pixel by pixel", shares(region.guess_shares, region.predicted)]);
  if (!region.complete) rows.find(([term]) => term === "Answered")[1].push(make("span", { className: "warn", textContent: "missing" }));
  if (region.score !== null) rows.push(["Score", [Number(region.score).toPrecision(4)]]);
  for (const [name, value] of Object.entries(region.statistics)) {
    if (value !== null) rows.push([name.replaceAll("_", " "), [Number(value).toPrecision(3)]]);
  }
  $("facts").replaceChildren(...rows.flatMap(([term, parts]) => [make("dt", { textContent: term }), make("dd", {}, ...parts)]));
}

function showRegion(region) {
  setCurrent(region);
  $("title").textContent = `Region ${region.order}`;
  $("place").textContent = region.image;
  scene($("near"), region, region.box, region.cutout);
  const [height, width] = data.images[region.image];
  scene($("far"), region, [0, 0, width, height], `image ${region.image}`);
  const others = regions.filter((r) => r.image === region.image && r !== region);
  $("far").children[0].after(...others.map((r) => draw("path", { d: r.path, class: "rest" })));
  for (const id of ["near", "far"]) $(id).children[0].after(...overlay(region));
  $("near").setAttribute("aria-label", summary(region));
  $("far").setAttribute("aria-label", `Image ${region.image} with the region in it`);
  facts(region);
  const at = shown.indexOf(region);
  $("of").textContent = `${at + 1} of ${shown.length}`;
  $("back").disabled = at <= 0;
  $("next").disabled = at >= shown.length - 1;
  showOpenMark(region);
}

function showOpenMark(region) {
  const wrong = marks.has(keyOf(region));
  $("open").classList.toggle("marked", wrong);
  $("wrong").checked = wrong;
  const note = marks.get(keyOf(region)) ?? "";
  if ($("note").value !== note) $("note").value = note;
}

function openRegion(region) {
  $("open").showModal();
  showRegion(region);
  $("next").focus();
}

function step(by) {
  const region = shown[shown.indexOf(current) + by];
  if (region) showRegion(region);
}

function setLayer(value) {
  layer = value;
  document.querySelector(`input[name=layer][value="${value}"]`).checked = true;
  showRegion(current);
}

function dialogKeys(event) {
  if (event.target === $("note") || event.altKey || event.ctrlKey || event.metaKey) return;
  const onRadio = event.target.type === "radio";
  const layers = ["", "guess", "answer"];
  if (event.key === "ArrowRight" && !onRadio) step(1);
  else if (event.key === "ArrowLeft" && !onRadio) step(-1);
  else if (event.key === "m") mark(current, !marks.has(keyOf(current)));
  else if (event.key === "n") $("note").focus();
  else if (event.key === "v") setLayer(layers[(layers.indexOf(layer) + 1) % layers.length]);
  else return;
  event.preventDefault();
}

function outlines() {
  document.body.classList.toggle("plain", !$("outlines").checked);
}

function classOptions() {
  const found = new Map();
  for (const r of regions) for (const id of new Set([r.predicted, r.answered])) if (id !== NONE) found.set(id, (found.get(id) ?? 0) + 1);
  const ids = [...found.keys()].sort((a, b) => a - b);
  $("class").replaceChildren(make("option", { value: "", textContent: "any" }),
    ...ids.map((id) => make("option", { value: id, textContent: `${nameOf(id)} (${numeral.format(found.get(id))})` })));
}

recall();
regions.forEach(buildCard);
classOptions();
count();
arrange();

for (const id of ["sort", "class", "state"]) $(id).addEventListener("change", arrange);
$("direction").addEventListener("click", () => {
  descending = !descending;
  $("direction").textContent = descending ? "Descending" : "Ascending";
  arrange();
});
$("outlines").addEventListener("change", outlines);
$("cards").addEventListener("keydown", move);
document.addEventListener("keydown", (event) => {
  if (event.key !== "o" || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("textarea, select")) return;
  $("outlines").checked = !$("outlines").checked;
  outlines();
});
$("download").addEventListener("click", download);
$("close").addEventListener("click", () => $("open").close());
$("back").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("wrong").addEventListener("change", () => mark(current, $("wrong").checked));
$("note").addEventListener("input", () => mark(current, true, $("note").value));
$("layers").addEventListener("change", (event) => setLayer(event.target.value));
$("open").addEventListener("keydown", dialogKeys);
$("open").addEventListener("close", () => {
  if (!current) return;
  current.card.scrollIntoView({ block: "nearest" });
  current.look.focus();
});
