"use strict";
// Every id and title goes in as a text node: nothing of the log is ever read as HTML.

const $ = id => document.getElementById(id);
const KINDS = {
  people: "What people have together",
  text: "Texts",
  source: "What people chose where the model learned",
  learned: "What the model learned of both",
  popularity: "Popularity",
};
const FIRST = 20; // of what a user has
const number = (value, digits = 3) => value === null ? "–"
  : value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const whole = value => number(value, 0);
const countOf = (n, one, many) => `${whole(n)} ${n === 1 ? one : many}`;
let map, about = {}, turn = 0, searches = 0;

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.filter(child => child !== null && child !== ""));
  return node;
}

async function get(path, query = {}) {
  const answer = await fetch(`/api/${path}?${new URLSearchParams(query)}`);
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error);
  return body;
}

const userLink = user => el("a", { href: `#/user/${encodeURIComponent(user)}` }, `User ${user}`);
const itemLink = one => el("a", { href: `#/item/${encodeURIComponent(one.item)}` }, one.title || one.item);
const people = one => el("span", { class: "count" }, ` ${countOf(one.people, "person", "people")}`);
const has = one => el("span", { class: "count" }, ` has ${whole(one.n_own)}`);

function table(caption, head, rows) {
  const kind = value => /^(–|-?[\d.,]+( MB)?)$/.test(value) ? { class: "n" } : {};
  const cell = (value, place) => place === 0 ? el("th", { scope: "row" }, value) : el("td", kind(value), value);
  return el("div", { class: "scroll", role: "region", "aria-label": caption, tabindex: "0" }, el("table", {},
    el("caption", {}, caption),
    el("thead", {}, el("tr", {}, ...head.map((text, n) => el("th", { scope: "col", ...kind(rows[0][n]) }, text)))),
    el("tbody", {}, ...rows.map(row => el("tr", {}, ...row.map(cell))))));
}

function part(level, title, ...children) {
  return el("section", {}, el(level, {}, title), ...children);
}

function items(rows) {
  return rows.length ? el("ul", { class: "plain" }, ...rows.map(one => el("li", {}, itemLink(one), people(one))))
    : el("p", { class: "soft" }, "None.");
}

// The views

function overview() {
  const tiles = [["users", about.n_users], ["items", about.n_items], ["interactions", about.n_interactions],
    ["items with a title", about.n_titles], ["items nobody has", about.n_cold_items],
    ["users with one item at most", about.n_cold_users]];
  const cold = el("details", {}, el("summary", {}, "Cold items and users"));
  cold.addEventListener("toggle", () => fill(cold, async () => {
    const found = await get("cold");
    const users = found.users.map(one => el("li", {}, userLink(one.user), has(one)));
    return el("div", { class: "columns even" },
      part("h3", `Items that two people at most have (${found.items.length} shown)`, items(found.items)),
      part("h3", `Users with one item at most (${found.users.length} shown)`,
        users.length ? el("ul", { class: "plain" }, ...users) : el("p", { class: "soft" }, "None.")));
  }), { once: true });
  return ["Overview",
    el("ul", { class: "tiles" }, ...tiles.map(([name, n]) => el("li", {}, el("strong", {}, whole(n)), name))),
    about.example === null ? null : el("p", {}, "For example: ", userLink(about.example), "."),
    measured(),
    part("h3", "The data", ...about.findings.map(one => el("p", { class: one.good ? "ok" : "note" },
      el("strong", {}, one.good ? "Good: " : "Note: "), `${one.subject}: ${one.found}; ${one.needed}. ${one.effect}.`))),
    cold, cost()];
}

function measured() {
  const names = Object.keys(about.metrics).filter(name => /^(ndcg|recall|hit|coverage)@/.test(name));
  if (!names.length) return el("p", { class: "soft" }, "Nothing was held out, so nothing was measured.");
  const row = (label, metrics) => [label, ...names.map(name => name in metrics ? number(metrics[name], 4) : "–")];
  return el("div", {}, table("Measured on held-out interactions", ["", ...names],
    [row("by popularity", about.popularity_metrics), row(about.retrain, about.metrics)]), certainty());
}

function certainty() {
  const found = about.to_popularity;
  if (!found || Object.values(found).includes(null)) return null;
  const percent = value => `${value < 0 ? "" : "+"}${number(100 * value, 1)}`;
  const verdict = found.low > 0 ? "better" : found.high < 0 ? "worse" : "no clear difference";
  return el("p", { id: "certainty" }, `To popularity: ${found.metric} ${percent(found.relative)} % `
    + `[${percent(found.relative_low)}, ${percent(found.relative_high)}], 95 % interval over ${whole(found.n_users)} users: ${verdict}.`);
}

function cost() {
  const rows = Object.entries(about.seconds).map(([name, value]) => [`seconds: ${name}`, number(value, 1)]);
  for (const [name, value] of Object.entries(about.parameters)) rows.push([`parameters: ${name.replaceAll("_", " ")}`, whole(value)]);
  if (about.peak_memory_bytes) rows.push(["peak memory", `${whole(Math.round(about.peak_memory_bytes / 1e6))} MB`]);
  return rows.length ? table("What it cost", ["", about.device || ""], rows) : null;
}

async function userView(id) {
  const found = await get("user", { id });
  const popular = new Set(found.popular.map(one => one.item));
  const fresh = found.list.filter(one => !popular.has(one.item)).length;
  map.mark(found.own.map(one => one.item), found.list.map(one => one.item), ["the user has it", "recommended"]);
  const rows = found.list.map(one => {
    const why = el("details", {}, el("summary", {}, "The numbers", el("span", { class: "unseen" }, ` for ${one.title || one.item}`)));
    why.addEventListener("toggle", () => fill(why, async () => reasons(await get("why", { user: found.id, item: one.item }))), { once: true });
    return el("li", {}, itemLink(one), people(one), " ",
      popular.has(one.item) ? null : el("span", { class: "badge" }, "not by popularity"),
      el("p", { class: "small words" }, "Working out why"), why);
  });
  const ranked = list => el("ol", { class: "list" }, ...list.map(one => el("li", {}, itemLink(one), people(one))));
  const others = [part("h3", "By popularity alone", ranked(found.popular))];
  if (found.beside) others.push(part("h3", `By ${about.beside}`, ranked(found.beside)));
  const lists = [part("h3", "Recommended", el("ol", { class: "list" }, ...rows)), el("div", {}, ...others),
    part("h3", "Has", el("p", { class: "soft small" }, found.ordered_by === "time" ? "The latest first." : "The most popular first."), items(found.own.slice(0, FIRST)),
      found.own.length > FIRST ? el("details", {}, el("summary", {}, `${found.own.length - FIRST} more`), items(found.own.slice(FIRST))) : null,
      found.n_own > found.own.length ? el("p", { class: "soft" }, `and ${whole(found.n_own - found.own.length)} more`) : null)];
  let told = `${fresh} of the ${found.list.length} are not what popularity alone would give. `;
  if (found.beside) {
    const other = new Set(found.beside.map(one => one.item));
    told += `${found.list.filter(one => !other.has(one.item)).length} are not on the list by ${about.beside}.`;
  }
  get("words", { id }).then(told => rows.forEach((row, n) => { row.querySelector(".words").textContent = told.rows[n].join(" "); }),
    error => rows.forEach(row => { row.querySelector(".words").textContent = error.message; }));
  return [`User ${found.id}`,
    el("p", { id: "changed" }, `Has ${countOf(found.n_own, "item", "items")}. What the model changed: ${told}`),
    found.n_own <= 1 ? el("p", { class: "note" }, "Hardly anything is known of this user: the list is near popularity.") : null,
    el("div", { class: "columns" }, ...lists)];
}

function reasons(found) {
  const parts = found.parts.map(one => [one, one.value - one.usual]);
  const most = Math.max(1e-9, ...parts.map(([, lift]) => Math.abs(lift)));
  const rows = parts.map(([one, lift]) => {
    const fillOf = el("i", lift < 0 ? { class: "less" } : {}), bar = el("div", { class: "bar", "aria-hidden": "true" }, fillOf);
    fillOf.style.width = `${50 * Math.abs(lift) / most}%`;
    fillOf.style[lift < 0 ? "right" : "left"] = "50%";
    return [KINDS[one.kind] + (one.name === one.kind ? "" : ` (${one.name})`), number(one.value), number(lift), bar];
  });
  rows.push(["Score", number(found.score), "", ""]);
  const own = found.own.map(one => [itemLink(one), number(one.share), String(one.people), one.similarity === null ? "–" : number(one.similarity, 2)]);
  const sum = key => number(found.parts.reduce((total, one) => total + one[key], 0));
  if (found.n_own > own.length) own.push([`The other ${whole(found.n_own - own.length)}`, sum("others"), "", ""]);
  if (own.length) own.push(["None of them: popularity, less what everybody gets", sum("rest"), "", ""]);
  const bent = found.parts.filter(one => !one.exact).map(one => one.name);
  return el("div", {},
    table("Its score is the sum of", ["Part", "Value", "Above the usual", ""], rows),
    own.length ? table("What the user has, and how much of the score it adds", ["Item", "Adds", "People with both", "Texts alike"], own) : null,
    bent.length ? el("p", { class: "small" }, `The split of ${bent.join(" and ")} among the items is an estimate; the sums are exact.`) : null,
    found.paths.length ? el("div", {}, el("p", { class: "small" }, "Paths to it through other people:"),
      el("ul", { class: "small" }, ...found.paths.map(path => el("li", {}, itemLink(path.own), " → ", userLink(path.user), " → ", found.title || found.item)))) : null);
}

async function itemView(id) {
  const found = await get("item", { id });
  map.mark([found.item], found.similar.map(one => one.item), ["this item", "similar"]);
  const texts = Object.entries(found.texts).map(([name, value]) => `${name}: ${value}`).join("; ");
  return [found.title || `Item ${found.item}`,
    el("p", {}, `${found.title && found.title !== found.item ? `Item ${found.item}. ` : ""}${countOf(found.people, "person has it", "people have it")}` +
      (found.people ? `, place ${whole(found.place)} of ${whole(found.n_items)}.` : "."), texts ? ` ${texts}.` : ""),
    found.people ? null : el("p", { class: "note" }, "Nobody has it yet: only its text tells the model what it is."),
    el("div", { class: "columns even" },
      part("h3", "Similar items", el("ol", { class: "list" }, ...found.similar.map(one =>
        el("li", {}, itemLink(one), people(one), el("span", { class: "count" }, `, likeness ${number(one.score, 2)}`))))),
      part("h3", "People who have it", found.users.length
        ? el("ul", { class: "plain" }, ...found.users.map(one => el("li", {}, userLink(one.user), has(one))))
        : el("p", { class: "soft" }, "None."),
        found.people > found.users.length ? el("p", { class: "soft small" }, `and ${whole(found.people - found.users.length)} more`) : null))];
}

// What moves

async function fill(details, make) {
  const wait = el("p", { class: "soft" }, "Working");
  details.append(wait);
  try { wait.replaceWith(await make()); } catch (error) { wait.replaceWith(failed(error)); }
}

const failed = error => el("p", { class: "error", role: "alert" }, error.message);

async function route(first = false) {
  if (location.hash === "#content") return;
  const mine = ++turn, view = $("view");
  const [, kind, raw] = /^#\/(user|item)\/(.*)$/.exec(location.hash) || [];
  view.setAttribute("aria-busy", "true");
  if (!first) $("status").textContent = "Working";
  let made;
  try {
    const id = raw === undefined ? "" : decodeURIComponent(raw);
    made = kind === "user" ? await userView(id) : kind === "item" ? await itemView(id) : (map.mark(), overview());
  } catch (error) {
    made = ["Not found", failed(error)];
  }
  if (mine !== turn) return;
  const [title, ...children] = made;
  view.replaceChildren(el("h2", { id: "heading", tabindex: "-1" }, title), ...children.filter(Boolean));
  view.setAttribute("aria-busy", "false");
  document.title = `${title} – ${about.name} – gnnrec`;
  $("results").hidden = true;
  $("status").textContent = first ? "" : `${title} is shown.`;
  if (!first) { $("heading").focus(); window.scrollTo(0, 0); }
}

async function search() {
  const kind = new FormData($("search")).get("kind");
  const mine = ++searches;
  try {
    const found = await get("search", { kind, q: $("q").value });
    if (mine !== searches) return;
    $("results").hidden = !found.n;
    $("results").firstElementChild.replaceChildren(...found.rows.map(one => kind === "user"
      ? el("li", {}, userLink(one.user), has(one))
      : el("li", {}, itemLink(one), one.title ? el("span", { class: "count" }, ` ${one.item},`) : null, people(one))));
    if (!found.n) {
      const other = kind === "user" ? "item" : "user", there = await get("search", { kind: other, q: $("q").value });
      if (mine === searches) $("status").textContent = `0 found among ${kind}s, ${whole(there.n)} among ${other}s`;
      return;
    }
    $("status").textContent = found.n > found.rows.length ? `${whole(found.n)} found, the first ${found.rows.length} are shown`
      : `${whole(found.n)} found`;
  } catch (error) {
    $("status").textContent = error.message;
  }
}

async function start() {
  map = new ItemMap($("canvas"), $("legend"), $("map-point"), id => { location.hash = `#/item/${encodeURIComponent(id)}`; });
  about = await get("about");
  $("name").textContent = about.name;
  $("about").textContent = `${about.encoder} from ${about.source}, ${about.retrain}`;
  let waiting;
  $("q").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(search, 200); });
  document.querySelectorAll("[name=kind]").forEach(one => one.addEventListener("change", search));
  $("search").addEventListener("submit", event => { event.preventDefault(); clearTimeout(waiting); search(); });
  $("colour").append(el("option", { value: "" }, "popularity"), ...about.columns.map(name => el("option", { value: name }, name)));
  $("colour").addEventListener("change", () => map.colour($("colour").value));
  window.addEventListener("hashchange", () => route());
  await route(true);
  const points = await get("map");
  const some = points.n > points.items.length ? ` ${whole(points.items.length)} of ${whole(points.n)} items: half of these the most popular ones, half drawn at random.` : "";
  $("map-about").textContent = `Near items are alike to the model.${some}`;
  map.show(points);
}

start().catch(error => { $("view").replaceChildren(el("h2", { id: "heading" }, "It did not start"), failed(error)); });
