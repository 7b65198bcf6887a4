"use strict";
// The map of items on a canvas. Colours: Okabe and Ito, told apart with every colour blindness.

const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d00"];
const OTHER = "#b5b5b5";
const HAS = "#d55e00", GETS = "#111111";

class ItemMap {
  constructor(canvas, legend, point, open) {
    Object.assign(this, { canvas, legend, point, open, at: -1, has: new Set(), gets: new Set(), names: ["", ""], by: "" });
    canvas.addEventListener("pointermove", e => this.look(this.nearest(...this.place(e))));
    canvas.addEventListener("click", e => {
      const found = this.nearest(...this.place(e));
      if (found >= 0) this.open(this.data.items[found]);
    });
    canvas.addEventListener("keydown", e => this.key(e));
    window.addEventListener("resize", () => this.draw());
  }

  show(data) {
    this.data = data;
    this.most = Math.max(1, ...data.people);
    this.draw();
  }

  colour(by) {
    this.by = by;
    this.draw();
  }

  // Two groups of ids, and what to call being in them.
  mark(has = [], gets = [], names = ["", ""]) {
    Object.assign(this, { has: new Set(has), gets: new Set(gets), names });
    this.draw();
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  xy(n) {
    const { width, height } = this.size, edge = 18;
    return [edge + this.data.x[n] * (width - 2 * edge), height - edge - this.data.y[n] * (height - 2 * edge)];
  }

  nearest(x, y) {
    let best = -1, least = 24 * 24;
    for (let n = 0; this.data && n < this.data.items.length; n++) {
      const [px, py] = this.xy(n), d = (px - x) ** 2 + (py - y) ** 2;
      if (d < least) [best, least] = [n, d];
    }
    return best;
  }

  look(n) {
    if (n < 0 || n === this.at) return;
    this.at = n;
    const { items, titles, people } = this.data;
    const kind = this.gets.has(items[n]) ? `, ${this.names[1]}` : this.has.has(items[n]) ? `, ${this.names[0]}` : "";
    this.point.textContent = `${titles[n] || items[n]}: ${countOf(people[n], "person has it", "people have it")}${kind}`;
    this.draw();
  }

  key(event) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.key === "Enter" && this.at >= 0) this.open(this.data.items[this.at]);
    if (!step || !this.data || !this.data.items.length) return;
    event.preventDefault();
    if (this.at < 0) return this.look(0);
    const [x, y] = this.xy(this.at);
    let best = -1, least = Infinity;
    for (let n = 0; n < this.data.items.length; n++) {
      const [px, py] = this.xy(n), dx = px - x, dy = py - y;
      const along = dx * step[0] + dy * step[1], aside = Math.abs(dx * step[1]) + Math.abs(dy * step[0]);
      if (along > 1 && along + 2 * aside < least) [best, least] = [n, along + 2 * aside];
    }
    this.look(best);
  }

  tone(n) {
    const column = this.data.columns[this.by];
    if (column) return column.index[n] < 0 ? OTHER : PALETTE[column.index[n]];
    const share = Math.log1p(this.data.people[n]) / Math.log1p(this.most);
    return `hsl(203 ${Math.round(35 + 65 * share)}% ${Math.round(86 - 58 * share)}%)`;
  }

  draw() {
    if (!this.data) return;
    const box = this.canvas.getBoundingClientRect(), sharp = window.devicePixelRatio || 1;
    this.size = { width: box.width, height: box.height };
    this.canvas.width = Math.round(box.width * sharp);
    this.canvas.height = Math.round(box.height * sharp);
    const pen = this.canvas.getContext("2d");
    pen.scale(sharp, sharp);
    const dot = (n, radius, fill, ring) => {
      const [x, y] = this.xy(n);
      pen.beginPath();
      pen.arc(x, y, radius, 0, 2 * Math.PI);
      if (fill) { pen.fillStyle = fill; pen.fill(); }
      if (ring) { pen.strokeStyle = ring; pen.lineWidth = 2.5; pen.stroke(); }
    };
    const size = n => 2 + 4 * Math.log1p(this.data.people[n]) / Math.log1p(this.most);
    // Rare ones last, or the popular ones would cover them.
    for (let n = 0; n < this.data.items.length; n++) dot(n, size(n), this.tone(n), null);
    this.data.items.forEach((id, n) => {
      if (this.has.has(id)) dot(n, size(n) + 2, null, HAS);
      if (this.gets.has(id)) dot(n, size(n) + 3, null, GETS);
    });
    if (this.at >= 0) dot(this.at, size(this.at) + 6, null, "#00558c");
    this.explain();
  }

  explain() {
    const rows = [], column = this.data.columns[this.by];
    if (column) {
      column.values.forEach((value, n) => rows.push([PALETTE[n], value, false]));
      if (column.index.some(n => n < 0)) rows.push([OTHER, "another, or none", false]);
    } else {
      rows.push(["hsl(203 35% 86%)", "hardly anybody has it", false], ["hsl(203 100% 28%)", `${whole(this.most)} people have it`, false]);
    }
    if (this.has.size) rows.push([HAS, this.names[0], true]);
    if (this.gets.size) rows.push([GETS, this.names[1], true]);
    this.legend.replaceChildren(...rows.map(([colour, text, ring]) => {
      const mark = document.createElement("i"), row = document.createElement("li");
      if (ring) mark.className = "ring";
      mark.style[ring ? "borderColor" : "backgroundColor"] = colour;
      row.append(mark, text);
      return row;
    }));
  }
}
