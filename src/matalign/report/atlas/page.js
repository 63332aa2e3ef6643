"use strict";

// ---- data: JSON in the page; arrays are base64 of deflated little-endian numbers ------------------------------------

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const TYPES = { uint8: Uint8Array, int8: Int8Array, uint16: Uint16Array, uint32: Uint32Array, float32: Float32Array };

async function decoded({ type, data: text }) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  const inflated = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new TYPES[type](await new Response(inflated).arrayBuffer());
}

const arrays = {};
const across = {}; // columns of each array
for (const [name, array] of Object.entries(data.arrays)) {
  arrays[name] = await decoded(array);
  across[name] = array.shape[1] ?? 1;
  delete array.data; // its text is not needed twice
}
const [ids, formulas] = ["ids", "formulas"].map((name) => new TextDecoder().decode(arrays[name]).split("\n"));
const MODALITIES = ["crystals", "protocols", "micrographs"].filter((name) => arrays[`${name}/xy`]);
const ONE = { crystals: "crystal", protocols: "protocol", micrographs: "micrograph" };
const SHAPES = { crystals: "disc", protocols: "diamond", micrographs: "square" };
const LAST = 65535; // of a coordinate
const CLASS = "class", MODALITY = "modality";
const dark = matchMedia("(prefers-color-scheme: dark)");
const still = matchMedia("(prefers-reduced-motion: reduce)");
const layers = Object.fromEntries(MODALITIES.map((name) => [name, layer(name)]));

// A layer: the points of one modality, and a grid of cells by which the point under the pointer is found.
function layer(name) {
  const xy = arrays[`${name}/xy`], of = arrays[`${name}/of`], n = of.length;
  const side = Math.max(1, Math.min(512, Math.ceil(Math.sqrt(n / 2))));
  const cell = new Uint32Array(n), first = new Uint32Array(side * side + 1);
  for (let i = 0; i < n; i++) {
    cell[i] = Math.floor((xy[2 * i] * side) / (LAST + 1)) * side + Math.floor((xy[2 * i + 1] * side) / (LAST + 1));
    first[cell[i] + 1]++;
  }
  for (let c = 0; c < side * side; c++) first[c + 1] += first[c];
  const next = first.slice(), members = new Uint32Array(n);
  for (let i = 0; i < n; i++) members[next[cell[i]]++] = i;
  return { name, xy, of, n, side, first, members, colour: new Uint8Array(n), shown: name === "crystals" };
}

// ---- text -----------------------------------------------------------------------------------------------------------

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

// Ba(OH)2 with its numbers as subscripts.
function typeset(formula) {
  const parts = formula.split(/(\d+(?:\.\d+)?)/);
  return element("span", {}, ...parts.map((part, i) => (i % 2 ? element("sub", {}, part) : part)));
}

function number(value, digits = 3) {
  if (Number.isNaN(value)) return "–";
  const shown = Math.abs(value) >= 100 ? value.toFixed(0) : value.toPrecision(digits);
  return String(Number(shown)).replace("-", "−");
}
const counted = (n) => n.toLocaleString("en").replaceAll(",", " ");
const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;

// Symbol -> count; null where the text is no formula.
function composition(formula) {
  let at = 0;
  function group(end) {
    const counts = {};
    while (at < formula.length && formula[at] !== end) {
      let inner;
      if (formula[at] === "(") {
        at++;
        inner = group(")");
        if (!inner || formula[at++] !== ")") return null;
      } else {
        const symbol = /^[A-Z][a-z]?/.exec(formula.slice(at))?.[0];
        if (!symbol) return null;
        at += symbol.length;
        inner = { [symbol]: 1 };
      }
      const times = /^\d*\.?\d*/.exec(formula.slice(at))[0];
      at += times.length;
      for (const [symbol, n] of Object.entries(inner)) counts[symbol] = (counts[symbol] ?? 0) + n * Number(times || 1);
    }
    return counts;
  }
  const counts = group(undefined);
  return counts && at === formula.length && at > 0 ? counts : null;
}

// The same for formulas of one composition, whatever the order of their elements.
function canonical(formula) {
  const counts = composition(formula);
  if (!counts) return null;
  const total = Object.values(counts).reduce((a, b) => a + b, 0);
  return Object.keys(counts).sort().map((symbol) => symbol + (counts[symbol] / total).toFixed(4)).join(" ");
}

// ---- colours --------------------------------------------------------------------------------------------------------

// Cividis (Nuñez, Anderton & Renslow, PLoS ONE 2018): made for the colour-blind, its lightness rises with the value.
const CIVIDIS = ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"];
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
const mixed = (a, b, t) => a.map((v, i) => Math.round(v + (b[i] - v) * t));
const LEVELS = 64; // of a property's colours

function gradient(t) {
  // the ends that vanish in the background are left out
  const low = dark.matches ? 0.18 : 0, high = dark.matches ? 1 : 0.94;
  const at = (low + (high - low) * t) * (CIVIDIS.length - 1), left = Math.min(Math.floor(at), CIVIDIS.length - 2);
  return mixed(rgb(CIVIDIS[left]), rgb(CIVIDIS[left + 1]), at - left);
}

const state = {
  colour: CLASS, // or MODALITY, or the name of a property
  only: null, // row of the class that alone keeps its colour
  palette: [], // [r, g, b] by a point's colour
  back: [], // palette entries that are drawn below the others
  range: [0, 1],
  view: { x: LAST / 2, y: LAST / 2, scale: 1 }, // middle of the window on the map; CSS pixels per step
  selected: null, // {name, row}
  hovered: null,
  pointed: null, // the neighbour of the list that has the focus
};

function recolour() {
  const none = rgb(css("--none"));
  if (state.colour === CLASS) {
    state.palette = data.classes.map((each) => rgb(dark.matches ? each.dark : each.light));
    state.back = state.palette.map((_, row) => state.only !== null && row !== state.only);
    state.palette = state.palette.map((colour, row) => (state.back[row] ? none : colour));
    for (const each of Object.values(layers)) for (let i = 0; i < each.n; i++) each.colour[i] = arrays.class[each.of[i]];
  } else if (state.colour === MODALITY) {
    state.palette = MODALITIES.map((name) => rgb(css(`--${name}`)));
    state.back = state.palette.map(() => false);
    for (const each of Object.values(layers)) each.colour.fill(MODALITIES.indexOf(each.name));
  } else {
    const values = arrays[`property/${state.colour}`], scaled = scale();
    const known = Array.from(values).filter((v) => !Number.isNaN(v)).sort((a, b) => a - b);
    // the outermost hundredths share the colour of the ends
    state.range = [0.01, 0.99].map((q) => known[Math.round(q * (known.length - 1))]);
    const [low, high] = state.range.map(scaled);
    state.palette = [...Array.from({ length: LEVELS }, (_, i) => gradient(i / (LEVELS - 1))), none];
    state.back = state.palette.map((_, i) => i === LEVELS);
    for (const each of Object.values(layers)) {
      for (let i = 0; i < each.n; i++) {
        const t = (scaled(values[each.of[i]]) - low) / (high - low || 1);
        each.colour[i] = Number.isNaN(t) ? LEVELS : Math.max(0, Math.min(LEVELS - 1, Math.round(t * (LEVELS - 1))));
      }
    }
  }
  legend();
  redraw();
}

function scale() {
  const property = data.properties.find((each) => each.name === state.colour);
  return property.log ? (v) => Math.log10(Math.max(v, 1)) : (v) => v;
}

// ---- drawing --------------------------------------------------------------------------------------------------------

// Points are set pixel by pixel into an image: as fast without a GPU as with one, and the same picture everywhere.
const map = byId("map"), canvas = byId("points"), overlay = byId("overlay");
const paper = canvas.getContext("2d", { alpha: false }), lines = overlay.getContext("2d");
const screen = { width: 0, height: 0, ratio: 1, image: null, pixels: null };

function resize() {
  const ratio = Math.min(devicePixelRatio || 1, 2);
  const width = Math.max(1, Math.round(map.clientWidth * ratio)), height = Math.max(1, Math.round(map.clientHeight * ratio));
  const before = fitted();
  const whole = !screen.image || Math.abs(state.view.scale / before.scale - 1) < 1e-6;
  for (const each of [canvas, overlay]) [each.width, each.height] = [width, height];
  Object.assign(screen, { width, height, ratio, image: paper.createImageData(width, height) });
  screen.pixels = new Uint32Array(screen.image.data.buffer);
  if (whole) state.view = fitted();
  draw();
}

// Room for the controls is left free where the window is wide enough.
function fitted() {
  const width = screen.width / screen.ratio, height = screen.height / screen.ratio;
  const left = width > 620 ? 250 : 0;
  const size = Math.max(40, Math.min(width - left - 60, height - 70));
  const scale = size / LAST;
  return { x: LAST / 2 - left / 2 / scale, y: LAST / 2, scale };
}

const across_px = (x) => (x - state.view.x) * state.view.scale + screen.width / screen.ratio / 2;
const down_px = (y) => (y - state.view.y) * state.view.scale + screen.height / screen.ratio / 2;
const where = ({ name, row }) => [across_px(layers[name].xy[2 * row]), down_px(layers[name].xy[2 * row + 1])];
const radius = () => Math.max(1.6, Math.min(5.5, 1.9 * Math.sqrt(state.view.scale / fitted().scale) * crowd()));
const crowd = () => Math.max(1, Math.min(1.9, Math.sqrt(6000 / layers.crystals.n))); // few points may be larger

// The pixels of a point around its middle, each with how much of it is covered.
function stamp(shape, r) {
  const reach = Math.ceil(r + 1), found = [];
  for (let dy = -reach; dy <= reach; dy++) {
    for (let dx = -reach; dx <= reach; dx++) {
      const far = { disc: Math.hypot(dx, dy), diamond: (Math.abs(dx) + Math.abs(dy)) * 0.8, square: Math.max(Math.abs(dx), Math.abs(dy)) * 1.15 };
      const cover = Math.max(0, Math.min(1, r + 0.5 - far[shape]));
      if (cover > 0.03) found.push({ dx, dy, cover });
    }
  }
  return found;
}

function draw() {
  const { width, height, ratio, pixels, image } = screen;
  if (!image) return 0;
  const start = performance.now();
  const packed = ([r, g, b]) => (255 << 24) | (b << 16) | (g << 8) | r;
  pixels.fill(packed(rgb(css("--back"))));
  const k = state.view.scale * ratio;
  const left = width / 2 - state.view.x * k + 0.5, top = height / 2 - state.view.y * k + 0.5;
  for (const below of [true, false]) {
    for (const name of [...MODALITIES].reverse()) {
      const { xy, n, colour, shown } = layers[name];
      if (!shown) continue;
      const dots = stamp(SHAPES[name], radius() * ratio), reach = Math.max(...dots.map((d) => d.dx));
      const offset = Int32Array.from(dots, (d) => d.dy * width + d.dx), cover = Float32Array.from(dots, (d) => d.cover);
      for (let i = 0; i < n; i++) {
        const c = colour[i];
        if (state.back[c] !== below) continue;
        const x = (xy[2 * i] * k + left) | 0, y = (xy[2 * i + 1] * k + top) | 0;
        if (x < reach || y < reach || x >= width - reach || y >= height - reach) continue;
        const [r, g, b] = state.palette[c], whole = packed(state.palette[c]), middle = y * width + x;
        for (let d = 0; d < offset.length; d++) {
          const at = middle + offset[d], a = cover[d];
          if (a >= 0.99) {
            pixels[at] = whole;
          } else {
            const old = pixels[at], r0 = old & 255, g0 = (old >> 8) & 255, b0 = (old >> 16) & 255;
            pixels[at] = (255 << 24) | ((b0 + (b - b0) * a) << 16) | ((g0 + (g - g0) * a) << 8) | (r0 + (r - r0) * a);
          }
        }
      }
    }
  }
  paper.putImageData(image, 0, 0);
  drawOverlay();
  return performance.now() - start;
}

function drawOverlay() {
  const { ratio, width, height } = screen;
  lines.setTransform(ratio, 0, 0, ratio, 0, 0);
  lines.clearRect(0, 0, width / ratio, height / ratio);
  if (state.selected) {
    const [x0, y0] = where(state.selected);
    for (const other of neighbours(state.selected)) {
      const [x, y] = where(other), hot = state.pointed && same(state.pointed, other);
      lines.beginPath();
      lines.moveTo(x0, y0);
      lines.lineTo(x, y);
      lines.strokeStyle = css(`--${other.name}`);
      lines.lineWidth = hot ? 3 : 1.4;
      lines.globalAlpha = hot || !state.pointed ? 0.95 : 0.4;
      lines.stroke();
      lines.globalAlpha = 1;
      mark(x, y, other.name, hot ? 7 : 4.5);
    }
    ring(x0, y0, 9, 3);
    label(x0, y0, formulas[layers[state.selected.name].of[state.selected.row]]);
  }
  if (state.hovered) ring(...where(state.hovered), 7, 2);
  if (document.activeElement === map && map.matches(":focus-visible")) cross(width / ratio / 2, height / ratio / 2);
}

function mark(x, y, name, r) {
  lines.beginPath();
  if (SHAPES[name] === "disc") lines.arc(x, y, r, 0, 2 * Math.PI);
  else if (SHAPES[name] === "square") lines.rect(x - r * 0.85, y - r * 0.85, 1.7 * r, 1.7 * r);
  else for (const [dx, dy] of [[0, -1.2], [1.2, 0], [0, 1.2], [-1.2, 0]]) lines.lineTo(x + dx * r, y + dy * r);
  lines.closePath();
  lines.fillStyle = css(`--${name}`);
  lines.fill();
  lines.strokeStyle = css("--back");
  lines.lineWidth = 1.2;
  lines.stroke();
}

function ring(x, y, r, width) {
  for (const [colour, w] of [[css("--back"), width + 2.5], [css("--ink"), width]]) {
    lines.beginPath();
    lines.arc(x, y, r, 0, 2 * Math.PI);
    lines.strokeStyle = colour;
    lines.lineWidth = w;
    lines.stroke();
  }
}

function label(x, y, text) {
  lines.font = "600 13px system-ui, sans-serif";
  lines.textAlign = "center";
  lines.lineJoin = "round";
  lines.strokeStyle = css("--back");
  lines.lineWidth = 4;
  lines.strokeText(text, x, y - 15);
  lines.fillStyle = css("--ink");
  lines.fillText(text, x, y - 15);
}

function cross(x, y) {
  lines.strokeStyle = css("--ink");
  lines.lineWidth = 1.5;
  lines.beginPath();
  for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
    lines.moveTo(x + 4 * dx, y + 4 * dy);
    lines.lineTo(x + 11 * dx, y + 11 * dy);
  }
  lines.stroke();
}

let asked = 0;
function redraw() {
  asked ||= requestAnimationFrame(() => {
    asked = 0;
    draw();
  });
}

// ---- finding a point ------------------------------------------------------------------------------------------------

const same = (a, b) => Boolean(a && b) && a.name === b.name && a.row === b.row;

// The shown point nearest to a place of the window, at most so many CSS pixels away; null where there is none.
function pick(px, py, within = 9) {
  const { view } = state;
  const x = (px - screen.width / screen.ratio / 2) / view.scale + view.x;
  const y = (py - screen.height / screen.ratio / 2) / view.scale + view.y;
  let best = (within / view.scale) ** 2, found = null;
  for (const { name, xy, side, first, members, shown } of Object.values(layers)) {
    if (!shown) continue;
    const cell = (v) => Math.max(0, Math.min(side - 1, Math.floor((v * side) / (LAST + 1)))), r = Math.sqrt(best);
    for (let cx = cell(x - r); cx <= cell(x + r); cx++) {
      for (let cy = cell(y - r); cy <= cell(y + r); cy++) {
        for (let m = first[cx * side + cy]; m < first[cx * side + cy + 1]; m++) {
          const i = members[m], far = (xy[2 * i] - x) ** 2 + (xy[2 * i + 1] - y) ** 2;
          if (far < best) [best, found] = [far, { name, row: i }];
        }
      }
    }
  }
  return found;
}

// Its nearest in the space, of each modality, the most similar first.
function neighbours({ name, row }) {
  return MODALITIES.flatMap((other) => {
    const key = `${name}/${other}`, k = across[key];
    return Array.from({ length: k }, (_, i) => ({
      name: other,
      row: arrays[key][row * k + i],
      cosine: arrays[`${key}/cosine`][row * k + i] / 127,
    }));
  });
}

// ---- moving ---------------------------------------------------------------------------------------------------------

function zoom(factor, px = screen.width / screen.ratio / 2, py = screen.height / screen.ratio / 2) {
  const whole = fitted().scale, { view } = state;
  const scale = Math.max(0.6 * whole, Math.min(400 * whole, view.scale * factor));
  const dx = px - screen.width / screen.ratio / 2, dy = py - screen.height / screen.ratio / 2;
  // what is under the pointer stays there
  state.view = { x: view.x + dx / view.scale - dx / scale, y: view.y + dy / view.scale - dy / scale, scale };
  redraw();
}

function pan(dx, dy) {
  const { view } = state, kept = (v) => Math.max(-LAST / 2, Math.min(1.5 * LAST, v));
  state.view = { ...view, x: kept(view.x - dx / view.scale), y: kept(view.y - dy / view.scale) };
  redraw();
}

let flight = 0;
function fly(to) {
  cancelAnimationFrame(flight);
  if (still.matches) {
    state.view = to;
    redraw();
    return;
  }
  const from = state.view, start = performance.now();
  const step = (now) => {
    const t = Math.min(1, (now - start) / 450), eased = 1 - (1 - t) ** 3;
    const scale = from.scale * (to.scale / from.scale) ** eased;
    // at an even pace for the eye: the place follows the scale
    const share = to.scale === from.scale ? eased : (1 / from.scale - 1 / scale) / (1 / from.scale - 1 / to.scale);
    state.view = { x: from.x + (to.x - from.x) * share, y: from.y + (to.y - from.y) * share, scale };
    draw();
    if (t < 1) flight = requestAnimationFrame(step);
  };
  flight = requestAnimationFrame(step);
}

// Show a point with the crystals nearest to it, wherever they lie on the map.
function show(item) {
  const whole = fitted(), places = [item, ...neighbours(item).filter(({ name }) => name === "crystals")];
  const bounds = [0, 1].map((d) => places.map(({ name, row }) => layers[name].xy[2 * row + d])).map((v) => [Math.min(...v), Math.max(...v)]);
  const span = Math.max(...bounds.map(([low, high]) => high - low), LAST / 40);
  const scale = whole.scale * Math.min(Math.max(1, (0.6 * LAST) / span), 12);
  const left = (LAST / 2 - whole.x) * whole.scale; // half of what the controls take
  fly({ x: (bounds[0][0] + bounds[0][1]) / 2 - left / scale, y: (bounds[1][0] + bounds[1][1]) / 2, scale });
}

const pointers = new Map();
let moved = 0;
const inMap = (event) => {
  const box = map.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};
const onControls = (event) => event.target.closest("#controls, #zoom");

map.addEventListener("pointerdown", (event) => {
  if (onControls(event) || event.button > 0) return;
  cancelAnimationFrame(flight);
  pointers.set(event.pointerId, inMap(event));
  map.setPointerCapture(event.pointerId);
  if (pointers.size === 1) moved = 0;
});
map.addEventListener("pointermove", (event) => {
  const [x, y] = inMap(event), before = pointers.get(event.pointerId);
  if (!before) {
    hover(onControls(event) ? null : pick(x, y), x, y);
    return;
  }
  const others = [...pointers.entries()].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
  moved += Math.hypot(x - before[0], y - before[1]);
  if (others.length) {
    const [ox, oy] = others[0];
    zoom(Math.hypot(x - ox, y - oy) / Math.max(1, Math.hypot(before[0] - ox, before[1] - oy)), ox, oy);
  } else if (moved > 3) {
    map.classList.add("dragging");
    hover(null);
    pan(x - before[0], y - before[1]);
  }
  pointers.set(event.pointerId, [x, y]);
});
for (const kind of ["pointerup", "pointercancel"]) {
  map.addEventListener(kind, (event) => {
    if (!pointers.delete(event.pointerId)) return;
    map.classList.remove("dragging");
    if (kind === "pointerup" && moved <= 3 && !pointers.size) {
      const found = pick(...inMap(event));
      if (found) select(found);
      else if (state.selected) select(null);
    }
  });
}
map.addEventListener("pointerleave", () => hover(null));
map.addEventListener("wheel", (event) => {
  if (onControls(event)) return;
  event.preventDefault();
  cancelAnimationFrame(flight);
  zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), ...inMap(event));
}, { passive: false });

byId("zoom").addEventListener("click", (event) => {
  const factor = Number(event.target.dataset.zoom ?? NaN);
  if (factor) fly({ ...state.view, scale: Math.max(0.6 * fitted().scale, Math.min(400 * fitted().scale, state.view.scale * factor)) });
  else if (factor === 0) fly(fitted());
});

map.addEventListener("keydown", (event) => {
  if (event.target !== map || event.ctrlKey || event.metaKey || event.altKey) return;
  const moves = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
  if (moves[event.key]) pan(...moves[event.key]);
  else if (event.key === "Enter") {
    const found = pick(screen.width / screen.ratio / 2, screen.height / screen.ratio / 2, 200);
    if (found) select(found);
  } else return;
  event.preventDefault();
});
for (const kind of ["focus", "blur"]) map.addEventListener(kind, drawOverlay);

// ---- what is known of a point ---------------------------------------------------------------------------------------

function known(row) {
  const list = data.properties
    .map(({ name, label, unit }) => [label, unit, arrays[`property/${name}`][row]])
    .filter(([, , value]) => !Number.isNaN(value))
    .flatMap(([label, unit, value]) => [element("dt", {}, label), element("dd", {}, `${number(value)} ${unit}`)]);
  return list.length ? element("dl", {}, ...list) : null;
}

const title = (item) => {
  const row = layers[item.name].of[item.row];
  return item.name === "crystals" ? ids[row] : `${ONE[item.name]} of ${ids[row]}`;
};

function hover(item, x = 0, y = 0) {
  const tip = byId("tip"), changed = !same(item, state.hovered) && Boolean(item || state.hovered);
  state.hovered = item;
  map.classList.toggle("over", Boolean(item));
  tip.hidden = !item;
  if (!item) {
    if (changed) drawOverlay();
    return;
  }
  if (changed) {
    const row = layers[item.name].of[item.row];
    tip.replaceChildren(
      element("div", { class: "formula" }, typeset(formulas[row])),
      element("div", { class: "id" }, `${title(item)} · ${data.classes[arrays.class[row]].name}`),
      ...[known(row), cell(row, 170, 120), item.name === "micrographs" ? micrograph(item.row, 96) : null].filter(Boolean),
    );
    drawOverlay();
  }
  const room = map.getBoundingClientRect();
  tip.style.left = `${Math.max(4, x + 16 + tip.offsetWidth > room.width ? x - 16 - tip.offsetWidth : x + 16)}px`;
  tip.style.top = `${Math.max(4, Math.min(y + 12, room.height - tip.offsetHeight - 4))}px`;
}

function select(item, { move = false, focus = false } = {}) {
  state.selected = item && { name: item.name, row: item.row };
  state.pointed = null;
  hover(null);
  panel();
  history.replaceState(null, "", item?.name === "crystals" ? `#${ids[item.row]}` : location.pathname + location.search);
  if (item) {
    const row = layers[item.name].of[item.row];
    byId("status").textContent = `${formulas[row]}, ${title(item)}, selected; its neighbours are listed in the panel`;
    if (move) show(item);
    if (focus) byId("panel").querySelector("h2").focus();
  } else {
    byId("status").textContent = "nothing selected";
  }
  redraw();
}

function panel() {
  const side = byId("panel"), item = state.selected;
  side.scrollTop = 0;
  if (!item) {
    side.replaceChildren(element("div", { class: "empty" },
      element("h2", {}, "Pick a point"),
      element("p", {}, "Each point is a crystal, the protocol that makes one, or the image of one under an electron microscope. " +
        "Those that the model takes for alike lie together."),
      element("p", {}, "Click a point, or press ", element("kbd", {}, "/"), " and type a formula: its nearest neighbours in each modality are listed here and joined by lines on the map.")));
    return;
  }
  const row = layers[item.name].of[item.row], recipe = item.name === "protocols" ? data.recipes?.[item.row] : null;
  const views = [
    [cell(row, 160, 140), "unit cell"],
    [item.name === "protocols" ? null : micrograph(row, 112, true), "simulated micrograph; its crystal's picture, registered; what is left"],
  ].filter(([view]) => view);
  const facts = known(row);
  side.replaceChildren(
    element("div", { class: "head" },
      element("h2", { tabindex: -1 }, typeset(formulas[row])),
      element("button", { class: "close", type: "button", "aria-label": "Clear the selection", onclick: () => { select(null); map.focus(); } }, "×")),
    element("p", { class: "id" }, `${title(item)} · ${data.classes[arrays.class[row]].name}`),
    ...(recipe ? [recipeText(recipe)] : []),
    ...(facts ? [facts, element("p", { class: "note" }, { predicted: "predicted by the model", synthetic: "synthetic values", labelled: "values of the sources" }[data.labelled])] : []),
    ...(views.length ? [element("div", { class: "views" }, ...views.map(([view, text]) => element("figure", {}, view, element("figcaption", {}, text))))] : []),
    ...MODALITIES.flatMap((other) => nearestList(item, other)),
  );
}

function recipeText([text, method, doi]) {
  return element("div", { class: "recipe" }, text, element("div", { class: "note" }, `${method} · DOI ${doi}`));
}

// Protocols of one material that follow each other are one line with their number.
function nearestList(item, other) {
  const found = neighbours(item).filter(({ name }) => name === other), rows = [];
  for (const each of found) {
    const of = layers[other].of[each.row], before = rows.find((line) => line.of === of);
    if (before) before.times++;
    else rows.push({ ...each, of, times: 1 });
  }
  const point = (each) => () => {
    state.pointed = each;
    drawOverlay();
  };
  return [
    element("h3", {}, symbol(other), `Nearest ${other}`, element("small", {}, "cosine")),
    element("ol", { "aria-label": `Nearest ${other}` }, ...rows.map((each) => {
      const bar = element("i", { style: `width: ${Math.max(0, each.cosine) * 100}%; background: var(--${other})` });
      return element("li", {},
        element("button", {
          type: "button",
          "aria-label": `${formulas[each.of]}, ${title(each)}, cosine ${each.cosine.toFixed(2)}`,
          onclick: () => select(each, { move: true, focus: true }),
          onfocus: point(each), onblur: point(null), onpointerenter: point(each), onpointerleave: point(null),
        },
          element("span", { class: "name" }, typeset(formulas[each.of]), " ", element("span", { class: "id" }, each.times > 1 ? `${each.times} × ${ids[each.of]}` : ids[each.of])),
          element("span", { class: "bar" }, bar),
          element("span", { class: "cosine" }, each.cosine.toFixed(2).replace("-", "−"))),
        other === "protocols" && data.recipes ? recipeText(data.recipes[each.row]) : null);
    })),
  ];
}

// The mark of a modality as on the map.
function symbol(name) {
  const shapes = { disc: '<circle cx="6" cy="6" r="4.5"/>', diamond: '<path d="M6 .6 11.4 6 6 11.4 .6 6z"/>', square: '<rect x="1.8" y="1.8" width="8.4" height="8.4"/>' };
  const holder = element("span", { style: "display: contents" });
  holder.innerHTML = `<svg width="12" height="12" aria-hidden="true" fill="var(--${name})">${shapes[SHAPES[name]]}</svg>`;
  return holder.firstChild;
}

// ---- pictures: cells and micrographs, where the page holds them -----------------------------------------------------

const sheet = data.micrographs ? Object.assign(new Image(), { src: data.micrographs.image }) : null;
delete data.micrographs?.image;

function sharp(width, height) {
  const made = element("canvas", { width: width * 2, height: height * 2, style: `width: ${width}px; height: ${height}px` });
  const context = made.getContext("2d");
  context.scale(2, 2);
  return [made, context];
}

// Alone, or with what stands beside it: the pristine picture and the residual.
function micrograph(row, size, whole = false) {
  if (!sheet) return null;
  const { px, wide, across } = data.micrographs, width = whole ? wide : px;
  const made = element("canvas", { class: "micrograph", width, height: px, role: "img", "aria-label": `simulated micrograph of ${formulas[row]}`, style: `width: ${size * width / px}px; height: ${size}px` });
  sheet.decode().then(() => made.getContext("2d").drawImage(sheet, (row % across) * wide, Math.floor(row / across) * px, width, px, 0, 0, width, px));
  return made;
}

const COMMON = { H: "#dfe3e8", B: "#f2b8a0", C: "#5f6670", N: "#4a6fe3", O: "#e0453a", F: "#6fcf6a", Si: "#cfa86b", P: "#f08a24", S: "#e6c419", Cl: "#3fbf4f", Se: "#d98f1f", Br: "#a5482e", I: "#7f3fa6" };
const atomColour = (z) => COMMON[data.symbols[z]] ?? `hsl(${(z * 137.5) % 360} 42% 62%)`;
const VIEW = [[0.93, 0.36, 0], [-0.1, 0.26, 0.96], [0.35, -0.89, 0.28]]; // rows: right, up, towards the eye

// A projection of the cell, atoms on its faces drawn on both sides.
function cell(row, width, height) {
  if (!arrays["cell/lattice"]) return null;
  const [made, context] = sharp(width, height);
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", `unit cell of ${formulas[row]}`);
  const lattice = arrays["cell/lattice"].subarray(9 * row, 9 * row + 9);
  const project = (f) => {
    const place = [0, 1, 2].map((d) => f[0] * lattice[d] + f[1] * lattice[3 + d] + f[2] * lattice[6 + d]);
    return VIEW.map((axis) => axis[0] * place[0] + axis[1] * place[1] + axis[2] * place[2]);
  };
  const atoms = [];
  for (let a = arrays["cell/first"][row]; a < arrays["cell/first"][row + 1]; a++) {
    const f = Array.from(arrays["cell/fraction"].subarray(3 * a, 3 * a + 3), (v) => v / 256), z = arrays["cell/number"][a];
    const both = f.map((v) => (v < 0.02 ? [v, v + 1] : v > 0.98 ? [v - 1, v] : [v]));
    for (const x of both[0]) for (const y of both[1]) for (const w of both[2]) atoms.push({ z, at: project([x, y, w]), r: 0.36 + 0.3 * data.radius_A[z] });
  }
  const corners = Array.from({ length: 8 }, (_, i) => project([i & 1, (i >> 1) & 1, i >> 2]));
  const all = [...atoms.map(({ at, r }) => [at, r]), ...corners.map((at) => [at, 0])];
  const bound = [0, 1].map((d) => [Math.min(...all.map(([at, r]) => at[d] - r)), Math.max(...all.map(([at, r]) => at[d] + r))]);
  const scale = Math.min((width - 6) / (bound[0][1] - bound[0][0]), (height - 6) / (bound[1][1] - bound[1][0]));
  const put = (at) => [width / 2 + (at[0] - (bound[0][0] + bound[0][1]) / 2) * scale, height / 2 - (at[1] - (bound[1][0] + bound[1][1]) / 2) * scale];
  context.strokeStyle = css("--soft");
  for (let i = 0; i < 8; i++) {
    for (const bit of [1, 2, 4]) {
      if (i & bit) continue;
      context.beginPath();
      context.moveTo(...put(corners[i]));
      context.lineTo(...put(corners[i | bit]));
      context.stroke();
    }
  }
  context.textAlign = "center";
  context.textBaseline = "middle";
  for (const { z, at, r } of atoms.sort((a, b) => a.at[2] - b.at[2])) {
    const [x, y] = put(at), size = r * scale;
    context.beginPath();
    context.arc(x, y, size, 0, 2 * Math.PI);
    context.fillStyle = atomColour(z);
    context.fill();
    context.strokeStyle = "#00000088";
    context.lineWidth = 0.8;
    context.stroke();
    if (size < 6.5) continue;
    context.fillStyle = "#101216";
    context.font = `600 ${Math.min(12, size * 1.05)}px system-ui, sans-serif`;
    context.fillText(data.symbols[z], x, y + 0.5);
  }
  return made;
}

// ---- controls and legend --------------------------------------------------------------------------------------------

function controls() {
  const choose = byId("colour");
  const choices = [[CLASS, "chemistry"], [MODALITY, "modality"], ...data.properties.map(({ name, label }) => [name, label])];
  choose.append(...choices.map(([value, text]) => element("option", { value }, text)));
  choose.addEventListener("change", () => colourBy(choose.value));
  for (const name of MODALITIES) {
    const box = element("input", { type: "checkbox", checked: layers[name].shown, onchange: () => {
      layers[name].shown = box.checked;
      hover(null);
      redraw();
    } });
    layers[name].box = box;
    byId("layers").append(element("label", {}, box, symbol(name), name, element("span", {}, counted(layers[name].n))));
  }
}

function colourBy(value) {
  state.colour = byId("colour").value = value;
  state.only = null;
  if (value === MODALITY) for (const each of Object.values(layers)) each.shown = each.box.checked = true;
  recolour();
}

function legend() {
  const made = byId("legend");
  made.hidden = state.colour === MODALITY; // the list of layers says it
  if (state.colour === CLASS) {
    const counts = data.classes.map(() => 0);
    for (const row of arrays.class) counts[row]++;
    made.replaceChildren(...data.classes.map((each, row) => {
      if (!counts[row]) return "";
      const swatch = element("i", { style: `background: ${dark.matches ? each.dark : each.light}` });
      return element("button", { type: "button", "aria-pressed": String(state.only === row), title: "show this class alone", onclick: () => {
        state.only = state.only === row ? null : row;
        recolour();
        byId("legend").querySelectorAll("button").forEach((button) => button.dataset.row === String(row) && button.focus());
      }, "data-row": row }, swatch, element("span", {}, each.name), element("span", {}, counted(counts[row])));
    }));
  } else if (state.colour !== MODALITY) {
    const property = data.properties.find((each) => each.name === state.colour);
    const bar = element("canvas", { width: LEVELS, height: 1, role: "img", "aria-label": `colours from ${number(state.range[0])} to ${number(state.range[1])} ${property.unit}` });
    const context = bar.getContext("2d");
    for (let i = 0; i < LEVELS; i++) {
      context.fillStyle = `rgb(${gradient(i / (LEVELS - 1))})`;
      context.fillRect(i, 0, 1, 1);
    }
    const n = arrays[`property/${state.colour}`].reduce((sum, v) => sum + !Number.isNaN(v), 0);
    const how = { predicted: "predicted by the model", synthetic: "synthetic", labelled: "of the sources" }[data.labelled];
    made.replaceChildren(bar,
      element("div", { class: "ends" }, element("span", {}, number(state.range[0])), element("span", {}, `${number(state.range[1])} ${property.unit}`)),
      element("div", { class: "note" }, `${counted(n)} of ${counted(ids.length)} crystals, ${how}; ${property.log ? "colours by the logarithm; " : ""}the outermost hundredths share the colours of the ends${n < ids.length ? "; grey: no value" : ""}`));
  }
}

// ---- search ---------------------------------------------------------------------------------------------------------

const MAX_FOUND = 60;
let index = null; // made at the first search

function search(text) {
  const query = text.trim();
  if (!query) return [];
  index ??= formulas.map((formula, row) => ({ row, lower: formula.toLowerCase(), id: ids[row].toLowerCase(), key: canonical(formula), has: new Set(formula.match(/[A-Z][a-z]?/g)) }));
  const lower = query.toLowerCase(), key = canonical(query);
  const single = /^[A-Z][a-z]?$/.test(query), listed = query.split(/[\s,-]+/).filter(Boolean);
  // Ba Ti O, Ba-Ti-O, or the elements of a formula: crystals that have them all, those with no other first
  const elements = listed.length > 1 && listed.every((s) => /^[A-Z][a-z]?$/.test(s)) ? listed : Object.keys(composition(query) ?? {});
  const rank = (each) => {
    if (each.id === lower) return 0;
    if (key && each.key === key) return each.lower === lower ? 1 : 2;
    if (single) return each.has.has(query) ? (each.lower.startsWith(lower) ? 3 : 4) : 9;
    if (each.lower.startsWith(lower)) return 3;
    if (elements.length && elements.every((s) => each.has.has(s))) return each.has.size === elements.length ? 5 : 6;
    if (each.lower.includes(lower)) return 7;
    return each.id.includes(lower) ? 8 : 9;
  };
  return index
    .map((each) => ({ row: each.row, rank: rank(each), length: each.lower.length }))
    .filter((each) => each.rank < 9)
    .sort((a, b) => a.rank - b.rank || a.length - b.length || a.row - b.row)
    .map((each) => each.row);
}

const box = byId("search"), results = byId("results");
let active = -1;

function suggest() {
  const found = search(box.value), query = box.value.trim();
  active = found.length ? 0 : -1;
  results.replaceChildren(
    ...found.slice(0, MAX_FOUND).map((row, i) => element("li", { role: "option", id: `result-${i}`, "data-row": row, "aria-selected": String(i === active),
      onpointerdown: (event) => { event.preventDefault(); choose(row); } }, typeset(formulas[row]), element("span", {}, ids[row]))),
    ...(query && !found.length ? [element("li", { class: "none" }, "no crystal answers to that")] : []),
    ...(found.length > MAX_FOUND ? [element("li", { class: "none" }, `and ${counted(found.length - MAX_FOUND)} more`)] : []),
  );
  open(Boolean(query));
  byId("status").textContent = query ? `${found.length} crystals found` : "";
}

function open(yes) {
  results.hidden = !yes;
  box.setAttribute("aria-expanded", String(yes));
  if (yes && active >= 0) box.setAttribute("aria-activedescendant", `result-${active}`);
  else box.removeAttribute("aria-activedescendant");
}

function choose(row) {
  open(false);
  box.value = formulas[row];
  if (!layers.crystals.shown) layers.crystals.shown = layers.crystals.box.checked = true;
  select({ name: "crystals", row }, { move: true, focus: true });
}

box.addEventListener("input", suggest);
box.addEventListener("focus", () => box.select());
box.addEventListener("blur", () => open(false));
box.addEventListener("keydown", (event) => {
  const options = [...results.querySelectorAll("[role=option]")];
  if ((event.key === "ArrowDown" || event.key === "ArrowUp") && options.length) {
    event.preventDefault();
    if (!results.hidden) active = (active + (event.key === "ArrowDown" ? 1 : -1) + options.length) % options.length;
    options.forEach((option, i) => option.setAttribute("aria-selected", String(i === active)));
    options[active].scrollIntoView({ block: "nearest" });
    open(true);
  } else if (event.key === "Enter" && options[active]) {
    choose(Number(options[active].dataset.row));
  } else if (event.key === "Escape") {
    event.stopPropagation();
    if (results.hidden && !box.value) map.focus();
    box.value = "";
    open(false);
  }
});

addEventListener("keydown", (event) => {
  if (event.target.matches?.("input[type=search], select") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") {
    event.preventDefault();
    box.focus();
  } else if (event.key === "+" || event.key === "=") zoom(1.4);
  else if (event.key === "-") zoom(1 / 1.4);
  else if (event.key === "0") fly(fitted());
  else if (event.key === "Escape" && !byId("about").open && state.selected) {
    select(null);
    map.focus();
  }
});

// ---- about ----------------------------------------------------------------------------------------------------------

function about() {
  const { map: kept, principal_components: plain, own_crystal: own } = data.scores;
  const rows = [
    [`a crystal's ${kept.k} nearest in the space that are among its ${kept.k} nearest on the map`, percent(kept.among_k)],
    [`… among its ${5 * kept.k} nearest on the map`, percent(kept.among_5k)],
    [`the same two on a map of the first two principal components`, `${percent(plain.among_k)}, ${percent(plain.among_5k)}`],
    [`the first on a random map`, percent(kept.chance)],
    [`trustworthiness (1: no false neighbour on the map)`, kept.trustworthiness.toFixed(3)],
    ...own.filter((each) => !each.centred).map((each) => [
      `${each.of} with their own crystal among the ${each.top} nearest of ${counted(layers.crystals.n)}`,
      `${percent(each.recall)} (${percent(own.find((o) => o.of === each.of && o.centred).recall)} centred)`]),
  ];
  byId("about-text").append(
    element("p", {}, `Three towers put crystals, protocols and micrographs into one space of unit vectors; this is the space of the profile “${data.profile}” as a map. ` +
      (data.synthetic ? "All materials, values, recipes and images of the sample are synthetic: they show that the pipeline works, and nothing about real materials." : "Micrographs are simulated from the crystals.")),
    element("p", {}, "Crystals are placed by t-SNE, which keeps neighbours together; the distance between two groups, their size and their orientation mean little. " +
      "Protocols and micrographs stand beside the crystals that are nearest to them. The lists of neighbours are exact: they are taken in the space, not on the map. " +
      "Modalities lie apart in the space, so a cosine between two of them is smaller than within one; “centred” below tells what subtracting the mean of each would change."),
    element("p", {}, data.labelled === "predicted" && data.properties.length
      ? "Values are the model's predictions, for crystals that it was trained on too."
      : data.labelled === "predicted" ? "This page holds no values, cells or recipes: nothing out of the sources is in it." : "Values are the labels of the curated set."),
    element("h3", {}, "How much of the space the map keeps"),
    element("table", {}, ...rows.map(([what, value]) => element("tr", {}, element("th", { scope: "row" }, what), element("td", {}, value)))),
    element("h3", {}, "Keys"),
    element("p", {}, ...["/", " search; ", "↑", " ", "↓", " and ", "Enter", " choose a result; on the map the arrows move, ", "+", " ", "−", " ", "0", " zoom, ", "Enter", " selects what is nearest to the middle; ", "Esc", " clears."]
      .map((part, i) => (i % 2 ? part : element("kbd", {}, part)))),
    element("p", { class: "note" }, "Chemistry goes by the most electronegative element of a crystal. Colours are chosen for the colour-blind. The page loads nothing from elsewhere."),
  );
}
byId("about-button").addEventListener("click", () => byId("about").showModal());

// ---- start ----------------------------------------------------------------------------------------------------------

byId("profile").textContent = data.profile;
byId("synthetic").hidden = !data.synthetic;
byId("local").hidden = !data.local;
map.setAttribute("aria-label", `Map of ${counted(ids.length)} crystals`);
byId("scale").textContent = `Distances on the map are only roughly those of the space: of a crystal's ${data.scores.map.k} nearest, ` +
  `${percent(data.scores.map.among_k)} are among its ${data.scores.map.k} nearest here.`;
controls();
about();
panel();
recolour();
new ResizeObserver(resize).observe(map);
resize();
dark.addEventListener("change", () => { recolour(); panel(); });
const asked_for = ids.indexOf(decodeURIComponent(location.hash.slice(1)));
if (asked_for >= 0) select({ name: "crystals", row: asked_for }, { move: true });
window.atlas = { data, arrays, formulas, layers, state, draw, pick, search, select, neighbours, colourBy, where };
