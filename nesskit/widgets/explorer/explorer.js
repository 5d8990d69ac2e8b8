// The threshold explorer, drawn in the browser from the three vectors a layer that a profile keeps.
//
// One plain ES module, without a build step and without a dependency: JupyterLab, Voilà and Colab load it as an
// anywidget (`render`), a page without a kernel calls `mountPage` with recorded runs. State is in the model's
// attributes: run, task, layer, rule, eps, side_by_side; every view of it is drawn from them alone.
// From above to below: mathematics (pure, names and formulas as in nesskit/analysis), words, drawing, the widget.

// ---- Mathematics ---------------------------------------------------------------------------------------------------

export const EXPONENTS = [-5, 0]; // of ε: at 1 every rule frees everything
export const STEP = 0.01; // of the exponent: one key press, 2 % of ε
const [SMALLEST, LARGEST] = EXPONENTS.map((exponent) => 10 ** exponent);

/** Threshold rules (nesskit/spectra/filters.py): direction i is free if σ_i ≤ ε · scale. */
export const RULES = {
  frobenius: { title: "Frobenius", formula: "σ ≤ ε ‖I‖_F", unit: "‖I‖_F", scale: (curve) => curve.frobeniusNorm },
  nuclear: { title: "nuclear", formula: "σ ≤ ε Σσ", unit: "Σσ", scale: (curve) => curve.nuclearNorm },
  relative: { title: "relative", formula: "σ ≤ ε σ₁", unit: "σ₁", scale: (curve) => curve.singularValues[0] },
};

/** The nearest ε on the steps of the slider. */
export function onStep(eps) {
  const steps = Math.round(Math.log10(Math.max(eps, SMALLEST)) / STEP);
  return 10 ** (Math.min(steps, EXPONENTS[1] / STEP) / (1 / STEP));
}

const sum = (values) => values.reduce((total, value) => total + value, 0);
const rootOfSquares = (values) => Math.sqrt(sum(values.map((value) => value * value)));

/** Infinite where only the denominator is 0, NaN where both are or one is unknown. */
const ratio = (value, whole) => (whole === 0 ? (value > 0 ? Infinity : NaN) : value / whole);

/** (d + 1,) entry r is the sum over the last r of `values` (d,), which belong to the r smallest directions. */
export function sumsFromSmallest(values) {
  const sums = new Float64Array(values.length + 1);
  for (let r = 1; r < sums.length; r++) sums[r] = sums[r - 1] + values[values.length - r];
  return sums;
}

/** Interference and energy kept of one layer at every rank: entry r with r directions free. */
export class LayerCurve {
  constructor({ layer, rank, outputs, sigmaSquared, updateEnergy, weightEnergy }) {
    const times = (energy) => Float64Array.from(sigmaSquared, (value, i) => value * energy[i]);
    Object.assign(this, { layer, trainedRank: rank, outputs, dimension: sigmaSquared.length, updateEnergy });
    this.singularValues = Float64Array.from(sigmaSquared, Math.sqrt);
    this.frobeniusNorm = Math.sqrt(sum(sigmaSquared));
    this.nuclearNorm = sum(this.singularValues);
    this.moved = times(updateEnergy); // (d,) ‖D u_i‖² σ_i²
    this.interference = sumsFromSmallest(this.moved).map(Math.sqrt); // ‖D U_r U_rᵀ I‖_F
    this.energyKept = sumsFromSmallest(updateEnergy); // ‖D U_r‖_F²
    this.outputNorm = Math.sqrt(sum(times(weightEnergy))); // ‖W I‖_F
  }

  /** What ε is multiplied by; 1 where all inputs are zero and every direction is free. */
  scale(rule) {
    return RULES[rule].scale(this) || 1;
  }

  /** (d,) the ε from which on each direction is free: σ over the scale. */
  epsToFree(rule) {
    const scale = this.scale(rule);
    return this.singularValues.map((value) => value / scale);
  }

  /** r, how many singular values lie at or under the cut; they descend, so bisection finds the first that does. */
  nullRank(rule, eps) {
    const cut = eps * this.scale(rule);
    let [above, free] = [0, this.dimension];
    while (above < free) {
      const middle = (above + free) >> 1;
      if (this.singularValues[middle] <= cut) free = middle;
      else above = middle + 1;
    }
    return this.dimension - free;
  }

  /** What a threshold frees, costs and keeps; `bound` is what Eq. 7 allows, σ_j ‖ΔW‖_F. */
  at(rule, eps) {
    const rank = this.nullRank(rule, eps);
    const energyKept = this.energyKept[rank];
    const largestFree = rank ? this.singularValues[this.dimension - rank] : 0;
    return {
      layer: this.layer,
      rank,
      dimension: this.dimension,
      outputs: this.outputs,
      interference: this.interference[rank],
      bound: largestFree * Math.sqrt(energyKept),
      energyKept,
      energy: this.energyKept[this.dimension],
      outputNorm: this.outputNorm,
    };
  }
}

/** All of that for every ε of a rule: the directions of all layers, in the order in which they become free. */
export function frontier(curves, rule) {
  const directions = curves.flatMap((curve) => {
    const { updateEnergy, moved } = curve;
    return Array.from(curve.epsToFree(rule), (eps, i) => ({ eps, moved: moved[i], energy: updateEnergy[i] }));
  });
  directions.sort((one, other) => other.eps - one.eps); // as in a layer: the last is the first to be free
  return {
    interference: sumsFromSmallest(directions.map(({ moved }) => moved)).map(Math.sqrt),
    energyKept: sumsFromSmallest(directions.map(({ energy }) => energy)),
    outputNorm: rootOfSquares(curves.map((curve) => curve.outputNorm)),
  };
}

const shares = (values, whole) => values.map((value) => (whole > 0 ? value / whole : NaN));
export const energyShare = ({ energyKept }) => shares(energyKept, energyKept[energyKept.length - 1]);
export const interferenceShare = ({ interference }) => shares(interference, interference[interference.length - 1]);
export const relativeInterference = ({ interference, outputNorm }) => shares(interference, outputNorm);

/** The point where most is kept for the least: the greatest energy share minus interference share. */
export function knee(curve) {
  const [energy, cost] = [energyShare(curve), interferenceShare(curve)];
  const gain = energy.map((value, r) => (value || 0) - (cost[r] || 0));
  return gain.indexOf(gain.reduce((most, value) => Math.max(most, value), -Infinity));
}

/** What one rule does to the chosen layer, or to all if `layer` is empty (sums of squares then run over layers). */
export function read(curves, rule, eps, layer) {
  const points = curves.map((curve) => curve.at(rule, eps));
  const chosen = points.filter((point) => !layer || point.layer === layer);
  const total = (value) => sum(chosen.map(value));
  const trainable = total((point) => point.rank * point.outputs);
  const known = chosen.every((point) => point.outputs);
  const [rank, dimension] = [total((point) => point.rank), total((point) => point.dimension)];
  const [interference, bound, outputNorm] = ["interference", "bound", "outputNorm"].map((name) =>
    rootOfSquares(chosen.map((point) => point[name])),
  );
  const whole = total((point) => point.dimension * point.outputs);
  return {
    rule,
    eps,
    rank,
    dimension,
    trainable,
    trainableShare: layer ? rank / dimension : known ? ratio(trainable, whole) : NaN,
    interference,
    bound,
    relativeInterference: ratio(interference, outputNorm),
    relativeBound: ratio(bound, outputNorm),
    energyShare: ratio(total((point) => point.energyKept), total((point) => point.energy)),
    ranks: points.map((point) => point.rank),
  };
}

/** The chosen rule, and those beside it. */
export function rulesOf({ rule, side_by_side }) {
  return [rule, ...["frobenius", "nuclear"].filter((name) => side_by_side && name !== rule)];
}

/** Task → the curves of its layers, from what `pack_profiles` (nesskit/runs/profile_file.py) lays end to end. */
export function unpackProfiles(packed) {
  const [sigmaSquared, updateEnergy, weightEnergy] = ["sigma_squared", "update_energy", "weight_energy"].map((name) =>
    vector(packed[name]),
  );
  const tasks = new Map();
  let start = 0;
  packed.dimension.forEach((dimension, k) => {
    const own = (values) => values.subarray(start, start + dimension);
    const [layer, rank, outputs] = [packed.layer[k], packed.rank[k], packed.outputs[k]];
    const profile = { layer, rank, outputs, sigmaSquared: own(sigmaSquared) };
    Object.assign(profile, { updateEnergy: own(updateEnergy), weightEnergy: own(weightEnergy) });
    if (!tasks.has(packed.task[k])) tasks.set(packed.task[k], []);
    tasks.get(packed.task[k]).push(new LayerCurve(profile));
    start += dimension;
  });
  return tasks;
}

/** A kernel sends float64 as bytes, a page holds float32 as base64 text; sums are made in float64 either way. */
function vector(values) {
  if (typeof values !== "string") {
    return new Float64Array(values.buffer.slice(values.byteOffset, values.byteOffset + values.byteLength));
  }
  const bytes = Uint8Array.from(atob(values), (character) => character.charCodeAt(0));
  return Float64Array.from(new Float32Array(bytes.buffer));
}

// ---- Words ---------------------------------------------------------------------------------------------------------

const SUPERSCRIPT = (text) => text.replace(/./g, (c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]));

/** Three digits, and powers of ten as people write them. */
export function number(value) {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "–" : "∞";
  const rounded = Number(value.toPrecision(3));
  if (rounded === 0 || (Math.abs(rounded) >= 1e-5 && Math.abs(rounded) < 1e6)) return plain(rounded);
  const [digits, exponent] = rounded.toExponential().split("e");
  return `${digits === "1" ? "" : `${digits} · `}10${SUPERSCRIPT(String(Number(exponent)))}`;
}

/** Without an exponent, which `String` writes below 10⁻⁶. */
const plain = (value) => (Math.abs(value) >= 1e-6 || value === 0 ? String(value) : value.toFixed(9).replace(/0+$/, ""));

/** A share as a percentage: two digits below 10 %, and nothing smaller than anyone can see. */
export function percent(share) {
  const value = 100 * share;
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "–" : "∞";
  if (value > 0 && value < 0.001) return "< 0.001\u00a0%";
  return `${Number(value < 10 ? value.toPrecision(2) : value.toFixed(1))}\u00a0%`;
}

const thousands = (count) => String(count).replace(/\B(?=(\d{3})+$)/g, "\u2009");
const ruleName = ({ rule, eps }) => `${RULES[rule].title} ε = ${number(eps)}`;

/** The chosen rule in one sentence, which a screen reader reads out when it changes. */
export function describe(reading, layer) {
  const where = layer ? `layer ${layer}` : "all layers";
  const text = `${ruleName(reading)} frees ${reading.rank} of ${reading.dimension} directions of ${where}`;
  if (Number.isNaN(reading.energyShare)) return `${text}; the update is zero, so there is nothing to keep.`;
  const kept = `${text}: ${percent(reading.energyShare)} of the update is kept`;
  if (Number.isNaN(reading.relativeInterference)) return `${kept}.`;
  return `${kept}, and old outputs change by ${percent(reading.relativeInterference)} of their size.`;
}

/** {eps} that a person typed, or {problem}: one sentence that says what is wrong and how it is written. */
export function parseEps(text) {
  const typed = text.trim();
  if (/^\d*,\d+$/.test(typed)) {
    return { problem: `ε₁ = ${typed} has a comma: write it with a point, ${typed.replace(",", ".")}` };
  }
  if (!/^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(typed)) {
    return { problem: `ε₁ = "${typed}" is not a number: write for example 0.02` };
  }
  const eps = Number(typed);
  if (eps >= SMALLEST && eps <= LARGEST) return { eps };
  return { problem: `ε₁ = ${typed} is out of range: choose one between ${plain(SMALLEST)} and ${LARGEST}` };
}

// ---- Drawing -------------------------------------------------------------------------------------------------------

const MARGIN = { left: 58, right: 12, top: 26, bottom: 40 };

function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

function shape(name, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function filled(node, attributes, children) {
  set(node, attributes);
  node.append(...children);
  return node;
}

function set(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
}

const show = (node, visible) => node.classList.toggle("nk-hidden", !visible);

/** A value's place between two pixels, linear or logarithmic, and back. */
function scale([low, high], [from, to], log = false) {
  const [go, back] = log ? [Math.log10, (value) => 10 ** value] : [(value) => value, (value) => value];
  const length = go(high) - go(low) || 1;
  const place = (value) => from + ((go(value) - go(low)) / length) * (to - from);
  const inverse = (pixel) => back(go(low) + ((pixel - from) / (to - from)) * length);
  return Object.assign(place, { inverse, low, high });
}

function linearTicks(low, high) {
  const rough = (high - low) / 6;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(1, power * [1, 2, 5, 10].find((factor) => factor * power >= rough));
  const first = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - first + 1 }, (_, k) => (first + k) * step);
}

function logTicks(low, high) {
  const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const every = Math.ceil((last - first) / 7);
  const within = last - first <= 3 ? [1, 2, 5] : [1];
  const ticks = [];
  for (let power = first; power <= last; power += every) ticks.push(...within.map((digit) => digit * 10 ** power));
  return ticks.filter((tick) => tick >= low && tick <= high);
}

/** How far down and up falling values are drawn: what is zero, or nearly, lies on the floor. */
function spectrumRange(values, norm) {
  const floor = Math.max(values.at(-1) / 3, SMALLEST * (norm || 1));
  return [floor, Math.max(2 * values[0], 10 * floor)];
}

const path = (points) => points.map(([x, y], k) => `${k ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

/** Axes with a title, drawn anew in every size; `still` holds what stands, `moving` what a cut moves. */
class Picture {
  constructor(css, role) {
    this.still = shape("g");
    this.moving = shape("g");
    this.svg = shape("svg", { class: `nk-picture ${css}`, role }, this.still, this.moving);
  }

  axes({ width, height, x, y, xLabel, yLabel, title }) {
    const { left, right, top, bottom } = MARGIN;
    this.x = scale(x, [left, width - right]);
    this.y = scale(y, [height - bottom, top], true);
    this.height = height - bottom;
    set(this.svg, { width, height, viewBox: `0 0 ${width} ${height}` });
    const text = (content, attributes) => shape("text", attributes, content);
    this.still.replaceChildren(
      ...logTicks(...y).flatMap((tick) => [
        shape("line", { class: "nk-grid", x1: left, x2: width - right, y1: this.y(tick), y2: this.y(tick) }),
        text(number(tick), { class: "nk-tick", x: left - 6, y: this.y(tick) + 4, "text-anchor": "end" }),
      ]),
      ...linearTicks(...x).map((tick) =>
        text(String(tick), { class: "nk-tick", x: this.x(tick), y: this.height + 16, "text-anchor": "middle" }),
      ),
      shape("path", { class: "nk-axis", d: `M${left} ${top}V${this.height}H${width - right}` }),
      text(title, { class: "nk-title", x: left, y: 14 }),
      text(xLabel, { class: "nk-label", x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }),
      text(yLabel, {
        class: "nk-label",
        transform: `translate(12 ${(top + this.height) / 2}) rotate(-90)`,
        "text-anchor": "middle",
      }),
    );
  }

  /** Within the axes, so that a mark never leaves them. */
  inside(y) {
    return Math.min(Math.max(this.y(Math.max(y, 1e-300)), MARGIN.top), this.height);
  }
}

/** The log spectrum of one layer, or of all in units of the rule's norm, and the cuts through it. */
class Spectrum extends Picture {
  constructor(onEps) {
    super("nk-spectrum", "group");
    this.shade = shape("rect", { class: "nk-shade" });
    this.marks = {};
    for (const name of Object.keys(RULES)) {
      const [edge, height, dots] = [shape("line"), shape("line"), shape("path", { class: "nk-dots" })];
      const text = shape("text", { class: "nk-name", "text-anchor": "end" });
      const group = shape("g", { class: `nk-mark nk-${name}` }, edge, height, dots, text);
      this.marks[name] = { group, edge, height, dots, text };
    }
    this.cut = shape("g", { role: "slider", tabindex: 0, "aria-label": "ε₁, the cut" });
    set(this.cut, { "aria-valuemin": SMALLEST, "aria-valuemax": LARGEST });
    this.grip = this.cut.appendChild(shape("circle", { class: "nk-grip", r: 7 }));
    this.moving.append(this.shade, ...Object.values(this.marks).map(({ group }) => group), this.cut);
    this.drag(onEps);
  }

  drag(onEps) {
    let grabbed = "";
    const within = ({ clientX, clientY }) => {
      const box = this.svg.getBoundingClientRect();
      return [clientX - box.left, clientY - box.top];
    };
    const move = (event) => {
      if (grabbed) onEps(onStep(this.epsAt(...within(event), grabbed)));
    };
    this.svg.addEventListener("pointerdown", (event) => {
      if (!this.chosen) return;
      grabbed = this.nearest(...within(event));
      this.svg.setPointerCapture(event.pointerId);
      this.cut.focus({ preventScroll: true });
      event.preventDefault(); // no text is selected
      move(event);
    });
    this.svg.addEventListener("pointermove", move);
    for (const end of ["pointerup", "pointercancel"]) this.svg.addEventListener(end, () => (grabbed = ""));
  }

  setStill(curves, state, width, height) {
    this.chosen = curves.filter((curve) => !state.layer || curve.layer === state.layer);
    this.alone = this.chosen.length === 1;
    this.rule = state.rule;
    const ranges = this.chosen.map((curve) => spectrumRange(this.heights(curve), this.alone && curve.frobeniusNorm));
    const only = this.chosen[0];
    this.axes({
      width,
      height,
      x: this.alone ? [0.5, only.dimension + 0.5] : [0, 100],
      y: [0.8 * Math.min(...ranges.map(([floor]) => floor)), Math.max(...ranges.map(([, top]) => top))],
      xLabel: this.alone ? "direction i" : "direction i, % of d",
      yLabel: this.alone ? "singular value σ" : `σ over ${RULES[state.rule].unit}`,
      title: `${this.alone ? only.layer : "all layers"}: inputs of old tasks`,
    });
    this.chosen.forEach((curve, k) => {
      const pixels = Array.from(this.heights(curve), (y, i) => [this.across(curve, i), this.y(Math.max(y, ranges[k][0]))]);
      const look = this.alone ? 0 : curves.indexOf(curve);
      this.still.append(shape("path", { class: `nk-curve ${layerLook(look)}`, d: path(pixels) }));
      if (this.alone && pixels.length <= 130) {
        this.still.append(...pixels.map(([cx, cy]) => shape("circle", { class: "nk-point", cx, cy, r: 1.8 })));
      }
    });
    if (this.alone && only.trainedRank < only.dimension) this.markTrained(only);
  }

  /** Where the run that is shown was cut itself: its update has nothing to add beyond. */
  markTrained({ dimension, trainedRank }) {
    const x = this.x(dimension - trainedRank + 0.5);
    const place = { class: "nk-tick", transform: `translate(${x - 4} ${this.height - 6}) rotate(-90)` };
    this.still.append(
      shape("line", { class: "nk-trained", x1: x, x2: x, y1: MARGIN.top, y2: this.height }),
      shape("text", place, `this run: r = ${trainedRank}`),
    );
  }

  move(readings) {
    for (const [name, mark] of Object.entries(this.marks)) {
      const order = readings.findIndex((reading) => reading.rule === name);
      show(mark.group, order >= 0);
      if (order >= 0) this.moveMark(mark, readings[order], order);
    }
    this.moveCut(readings[0]);
    this.svg.setAttribute("aria-label", this.describe(readings[0]));
  }

  /** The cut of one rule; beside others all layers show its dots alone, as a height means the same ε for every rule. */
  moveMark({ edge, height, dots, text }, reading, order) {
    const { x, y } = this.placeOf(reading);
    const right = this.x(this.x.high);
    set(height, { x1: MARGIN.left, x2: right, y1: y, y2: y });
    show(height, this.alone || order === 0);
    show(edge, this.alone);
    show(dots, !this.alone);
    if (this.alone) set(edge, { x1: x, x2: x, y1: MARGIN.top, y2: this.height });
    else dots.setAttribute("d", this.dotsOf(reading.rule, reading.eps));
    set(text, { x: right - 4, y: MARGIN.top + 14 + 17 * order });
    text.textContent = `${ruleName(reading)}: r = ${reading.rank} of ${reading.dimension}`;
  }

  moveCut(reading) {
    const { x, y } = this.placeOf(reading);
    const { rule, eps } = reading;
    set(this.grip, { cx: x, cy: y });
    set(this.cut, { class: `nk-cut nk-${rule}`, "aria-valuenow": eps, "aria-valuetext": number(eps) });
    set(this.shade, { class: `nk-shade nk-${rule}`, x, width: this.x(this.x.high) - x });
    set(this.shade, { y: MARGIN.top, height: this.height - MARGIN.top });
    show(this.shade, this.alone);
  }

  /** The corner of a cut in pixels: the edge of the null space, and the height of the cut. */
  placeOf({ rule, eps, rank, dimension }) {
    if (!this.alone) return { x: this.x(50), y: this.inside(eps) };
    return { x: this.x(dimension - rank + 0.5), y: this.inside(eps * this.chosen[0].scale(rule)) };
  }

  describe(reading) {
    const what = this.alone ? `layer ${this.chosen[0].layer}` : "all layers";
    const { singularValues, dimension } = this.chosen[0];
    const range = this.alone
      ? `${dimension} singular values from ${number(singularValues[0])} down to ${number(singularValues.at(-1))}`
      : `${this.chosen.length} falling curves of singular values`;
    const free = `${ruleName(reading)} leaves the ${reading.rank} smallest of ${reading.dimension} free`;
    return `Spectrum of ${what}: ${range}. ${free}.`;
  }

  /** One layer: its σ_i. All layers: σ_i over the rule's norm. */
  heights(curve) {
    return this.alone ? curve.singularValues : curve.epsToFree(this.rule);
  }

  /** Where direction i lies in pixels: one layer counts them, all layers count shares of d. */
  across(curve, i) {
    return this.x(this.alone ? i + 1 : (100 * (i + 1)) / curve.dimension);
  }

  /** Where a rule cuts each of several layers: a dot at the largest σ that is free. */
  dotsOf(rule, eps) {
    const dots = this.chosen.map((curve) => {
      const at = curve.dimension - curve.nullRank(rule, eps);
      if (at === curve.dimension) return "";
      const scaled = curve.singularValues[at] / curve.scale(this.rule);
      const [x, y] = [this.across(curve, at), this.inside(scaled)];
      return `M${x - 4} ${y}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0`;
    });
    return dots.join("");
  }

  /** Which line of the chosen rule is nearest to a point in pixels: the one that the pointer means. */
  nearest(x, y) {
    const [edge, level] = ["cx", "cy"].map((name) => Number(this.grip.getAttribute(name)));
    return this.alone && Math.abs(edge - x) < Math.abs(level - y) ? "edge" : "height";
  }

  /** The ε whose cut goes through a point. */
  epsAt(x, y, grabbed) {
    const value = this.y.inverse(y);
    if (!this.alone) return value;
    const [curve] = this.chosen;
    if (grabbed === "height") return value / curve.scale(this.rule);
    const i = Math.ceil(this.x.inverse(x)) - 1;
    return curve.epsToFree(this.rule)[Math.min(Math.max(i, 0), curve.dimension - 1)];
  }
}

/** What a rule costs over what it keeps, for every ε, and where it stands now. */
class Frontier extends Picture {
  constructor() {
    super("nk-frontier", "img");
    this.marks = {};
    for (const name of Object.keys(RULES)) {
      const [stem, bar] = [shape("line"), shape("line", { class: "nk-bar" })];
      const ring = shape("circle", { class: "nk-ring", r: 6 });
      const group = shape("g", { class: `nk-mark nk-${name}` }, stem, bar, ring);
      this.marks[name] = { group, stem, bar, ring };
      this.moving.append(group);
    }
  }

  setStill(curves, state, width, height) {
    const rules = state.layer ? [state.rule] : rulesOf(state); // the curve of a layer is the same under every rule
    const shown = rules.map((rule) => {
      const curve = state.layer ? curves.find(({ layer }) => layer === state.layer) : frontier(curves, rule);
      const cost = relativeInterference(curve).map((value) => 100 * value);
      return { rule, curve, kept: energyShare(curve).map((value) => 100 * value), cost };
    });
    const top = Math.max(0, ...shown.map(({ cost }) => cost.at(-1) || 0)) || 1;
    this.axes({
      width,
      height,
      x: [-2, 102],
      y: [1e-4 * top, 20 * top],
      xLabel: "energy of the update that is kept (%)",
      yLabel: "change of old outputs (%)",
      title: "what it keeps, and what it costs",
    });
    shown.forEach(({ rule, kept, cost }) => {
      const pixels = Array.from(kept, (x, k) => [this.x(x), this.y(cost[k])]);
      const visible = pixels.filter(([x, y]) => Number.isFinite(x) && y <= this.height); // below it nobody sees it
      const look = state.layer ? "nk-curve nk-look-0" : `nk-mark nk-${rule}`;
      this.still.append(shape("path", { class: look, fill: "none", d: path(visible) }));
    });
    const { curve, kept, cost } = shown[0];
    const [x, y] = [kept[knee(curve)], cost[knee(curve)]];
    this.knee = Number.isFinite(x) && Number.isFinite(y) ? ` The knee lies at ${percent(x / 100)} kept.` : "";
    if (this.knee) this.still.append(diamond(this.x(x), this.inside(y)));
  }

  move(readings) {
    for (const [name, { group, stem, bar, ring }] of Object.entries(this.marks)) {
      const reading = readings.find(({ rule }) => rule === name);
      const known = reading && Number.isFinite(reading.energyShare) && Number.isFinite(reading.relativeInterference);
      show(group, known);
      if (!known) continue;
      const x = this.x(100 * reading.energyShare);
      const [y, bound] = [reading.relativeInterference, reading.relativeBound].map((share) => this.inside(100 * share));
      set(ring, { cx: x, cy: y });
      set(stem, { x1: x, x2: x, y1: y, y2: bound });
      set(bar, { x1: x - 7, x2: x + 7, y1: bound, y2: bound });
    }
    const [now] = readings;
    const text = `${ruleName(now)} keeps ${percent(now.energyShare)} of the update and changes old outputs by`;
    const costs = `${percent(now.relativeInterference)}, where Eq. 7 allows ${percent(now.relativeBound)}`;
    this.svg.setAttribute("aria-label", `What every ε keeps, and what it costs. ${text} ${costs}.${this.knee}`);
  }
}

/** One layer, small: its spectrum, the cuts, and how many directions are free. A click chooses it. */
class SmallSpectrum {
  constructor(number, name, onLayer) {
    this.name = name;
    this.curve = shape("path", { class: `nk-curve ${layerLook(number)}` });
    this.shade = shape("rect", { y: 0, height: SMALL });
    this.edges = Object.keys(RULES).map((rule) => [rule, shape("line", { class: `nk-mark nk-${rule}`, y1: 0, y2: SMALL })]);
    const edges = this.edges.map(([, edge]) => edge);
    const axis = shape("path", { class: "nk-axis", d: `M0.5 0V${SMALL}H2000` });
    this.svg = shape("svg", { class: "nk-small", "aria-hidden": "true" }, this.shade, axis, this.curve, ...edges);
    this.text = element("span", { class: "nk-free" });
    const title = element("span", { class: "nk-layer-name", title: name }, name);
    this.button = element("button", { type: "button", class: "nk-layer-button" }, title, this.text, this.svg);
    this.button.addEventListener("click", () => onLayer(name));
  }

  setStill(curve, chosen, width) {
    const values = curve.singularValues;
    const [floor, top] = spectrumRange(values, curve.frobeniusNorm);
    this.x = scale([0.5, values.length + 0.5], [0, width]);
    const y = scale([0.8 * floor, top], [SMALL, 0], true);
    set(this.svg, { width, height: SMALL, viewBox: `0 0 ${width} ${SMALL}` });
    this.curve.setAttribute("d", path(Array.from(values, (value, i) => [this.x(i + 1), y(Math.max(value, floor))])));
    this.button.setAttribute("aria-pressed", chosen);
    this.dimension = values.length;
  }

  move(number, readings) {
    for (const [rule, edge] of this.edges) {
      const reading = readings.find((each) => each.rule === rule);
      show(edge, reading);
      if (!reading) continue;
      const x = this.x(this.dimension - reading.ranks[number] + 0.5);
      set(edge, { x1: x, x2: x });
      if (reading === readings[0]) {
        set(this.shade, { class: `nk-shade nk-${rule}`, x, width: this.x(this.x.high) - x });
      }
    }
    const ranks = readings.map(({ ranks }) => ranks[number]).join(" | ");
    this.text.textContent = `r = ${ranks} of ${this.dimension}`;
    this.button.setAttribute("aria-label", `Layer ${this.name}: ${ranks} of ${this.dimension} directions free`);
  }
}

const SMALL = 84; // height of a small spectrum in pixels

/** Colour and dashes of a layer, the same in the large and the small pictures; no colour is one of a rule. */
const layerLook = (number) => `nk-look-${number % 4} nk-dash-${(number + Math.floor(number / 4)) % 4}`;

function diamond(x, y) {
  return shape("path", { class: "nk-knee", d: `M${x} ${y - 5}l5 5l-5 5l-5 -5z` });
}

// ---- The widget ----------------------------------------------------------------------------------------------------

const STATE = ["run", "task", "layer", "rule", "eps", "side_by_side"];
const WATCHED = [...STATE, "runs", "source", "message", "problem"];
const COLUMNS = [
  ["rule", (r) => [ruleName(r)]],
  ["free directions r", (r) => [`${r.rank} of ${r.dimension}`, percent(r.rank / r.dimension)]],
  ["trainable parameters", (r) => (Number.isNaN(r.trainableShare) ? ["–"] : [thousands(r.trainable), percent(r.trainableShare)])],
  ["interference ‖ΔW I‖, of ‖W I‖", (r) => [number(r.interference), percent(r.relativeInterference)]],
  ["bound (Eq. 7), of ‖W I‖", (r) => [number(r.bound), percent(r.relativeBound)]],
  ["energy kept", (r) => [percent(r.energyShare)]],
];
const LEGEND = [
  ["ring", "measured ‖ΔW I‖ / ‖W I‖"],
  ["bar", "allowed by Eq. 7, σⱼ ‖ΔW‖ / ‖W I‖"],
  ["knee", "knee: most kept for the least"],
];
const RESTRICTED =
  "This run was kept out of the directions beyond its own cut (dotted line), so its update has nothing to show there.";
const NO_KERNEL =
  "Everything here is computed in this page. Training needs a kernel: open the explorer in JupyterLab, or with " +
  "“make explorer” in a copy of the repository.";

class Explorer {
  constructor(model, el) {
    this.model = model;
    this.smalls = [];
    this.frame = 0;
    this.build(el);
    this.changed = () => (this.frame ||= requestAnimationFrame(() => this.draw())); // once a frame, however much changes
    for (const name of WATCHED) model.on(`change:${name}`, this.changed);
    this.resized = new ResizeObserver(this.changed);
    this.resized.observe(this.root);
    this.recoloured = () => this.followTheme();
    this.themed = new MutationObserver(this.recoloured);
    for (const page of [document.documentElement, document.body]) this.themed.observe(page, { attributes: true });
    this.preference = matchMedia("(prefers-color-scheme: dark)");
    this.preference.addEventListener("change", this.recoloured);
    this.changed();
  }

  remove() {
    for (const name of WATCHED) this.model.off(`change:${name}`, this.changed);
    this.resized.disconnect();
    this.themed.disconnect();
    this.preference.removeEventListener("change", this.recoloured);
    cancelAnimationFrame(this.frame);
  }

  get state() {
    return Object.fromEntries(STATE.map((name) => [name, this.model.get(name)]));
  }

  /** Every change goes into the model: it tells its views, also this one, and the kernel if there is one. */
  set(changes) {
    if (!("problem" in changes)) changes.problem = "";
    for (const [name, value] of Object.entries(changes)) this.model.set(name, value);
    this.model.save_changes();
  }

  build(el) {
    this.alert = element("p", { class: "nk-message", role: "alert" });
    this.layers = element("div", { class: "nk-layers", role: "group", "aria-label": "All layers, small" });
    this.sentence = element("p", { class: "nk-sentence", role: "status", "aria-live": "polite" });
    this.note = element("p", { class: "nk-note" });
    this.root = element(
      "div",
      { class: "nk-view" },
      this.buildControls(),
      this.buildThreshold(),
      this.alert,
      this.buildNumbers(),
      this.buildPictures(),
      this.layers,
      this.sentence,
      this.note,
    );
    keepKeys(this.root);
    el.append(this.root);
  }

  buildControls() {
    const menu = (name, label, title, read) => {
      const select = element("select", { title });
      select.addEventListener("change", () => this.set({ [name]: read(select) }));
      this[name] = select;
      return element("label", { class: `nk-field nk-${name}` }, element("span", {}, label), select);
    };
    this.both = element("button", { type: "button", class: "nk-both", title: "Both rules side by side at the same ε₁" });
    this.both.append("Frobenius | nuclear");
    this.both.addEventListener("click", () => this.set({ side_by_side: !this.model.get("side_by_side") }));
    const controls = element(
      "div",
      { class: "nk-controls" },
      menu("run", "Run", "Which run to look at", (select) => select.value),
      menu("task", "Task", "The task whose update is looked at; the first task has none", (s) => Number(s.value)),
      menu("layer", "Layer", "One layer, or all", (select) => select.value),
      menu("rule", "Rule", "What ε₁ is measured in", (select) => select.value),
      this.both,
    );
    options(this.rule, Object.entries(RULES).map(([name, { title, formula }]) => [name, `${title}  ${formula}`]));
    return controls;
  }

  buildThreshold() {
    this.slider = element("input", { type: "range", min: EXPONENTS[0], max: EXPONENTS[1], step: STEP });
    set(this.slider, { "aria-label": "ε₁", title: "The threshold: arrow keys move it, or drag the cut in the figure" });
    this.slider.addEventListener("input", () => this.set({ eps: onStep(10 ** this.slider.valueAsNumber) }));
    this.readout = element("input", { type: "text", class: "nk-readout", "aria-label": "ε₁ as a number", size: 8 });
    set(this.readout, { inputmode: "decimal", autocomplete: "off", spellcheck: "false" });
    const typed = () => this.set(parseEps(this.readout.value));
    this.readout.addEventListener("change", typed);
    this.readout.addEventListener("keydown", ({ key }) => key === "Enter" && typed()); // JupyterLab swallows the change
    return element("div", { class: "nk-eps" }, element("span", { "aria-hidden": "true" }, "ε₁"), this.slider, this.readout);
  }

  buildNumbers() {
    const titles = COLUMNS.map(([title]) => element("th", { scope: "col" }, title));
    this.rows = element("tbody");
    this.table = element("table", {}, element("thead", {}, element("tr", {}, ...titles)), this.rows);
    return element("div", { class: "nk-numbers" }, this.table);
  }

  buildPictures() {
    this.spectrum = new Spectrum((eps) => this.set({ eps }));
    this.spectrum.cut.addEventListener("keydown", (event) => this.pressed(event));
    this.frontier = new Frontier();
    const legend = LEGEND.map(([css, text]) => element("span", {}, symbol(css), text));
    this.pictures = element(
      "div",
      { class: "nk-pictures" },
      element("figure", {}, this.spectrum.svg),
      element("figure", {}, this.frontier.svg, element("figcaption", {}, ...legend)),
    );
    return this.pictures;
  }

  pressed(event) {
    const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10 }[event.key];
    const ends = { Home: SMALLEST, End: LARGEST }[event.key];
    if (steps) this.set({ eps: onStep(this.model.get("eps") * 10 ** (steps * STEP)) });
    else if (ends) this.set({ eps: ends });
    else return;
    event.preventDefault();
    event.stopPropagation(); // a notebook would go to the next cell
  }

  /** Everything as the model says; what stands still is drawn anew only if something else than ε has changed. */
  draw() {
    this.frame = 0;
    const state = this.state;
    const source = this.model.get("source");
    if (source !== this.source) this.open(source);
    const curves = this.tasks.get(state.task) ?? [];
    this.drawControls(state, curves);
    for (const part of [this.table, this.pictures, this.layers]) show(part, curves.length);
    if (!curves.length) {
      this.key = this.sentence.textContent = this.note.textContent = "";
      return;
    }
    const readings = rulesOf(state).map((rule) => read(curves, rule, state.eps, state.layer));
    const key = [this.opened, state.task, state.layer, state.rule, state.side_by_side, this.root.clientWidth].join("\n");
    if (key !== this.key) this.drawStill(curves, state);
    this.key = key;
    this.spectrum.move(readings);
    this.frontier.move(readings);
    this.smalls.forEach((small, number) => small.move(number, readings));
    this.drawNumbers(readings);
    this.sentence.textContent = describe(readings[0], state.layer);
  }

  open(source) {
    this.source = source;
    this.opened = (this.opened ?? 0) + 1;
    this.tasks = source.profiles ? unpackProfiles(source.profiles) : new Map();
    const [curves = []] = this.tasks.values();
    const restricted = [...this.tasks.values()].flat().some(({ trainedRank, dimension }) => trainedRank < dimension);
    this.note.textContent = [restricted && RESTRICTED, !this.model.get("kernel") && NO_KERNEL].filter(Boolean).join(" ");
    this.smalls = curves.map(({ layer }, number) => new SmallSpectrum(number, layer, (name) => this.set({ layer: name })));
    this.layers.replaceChildren(...this.smalls.map(({ button }) => button));
    keepKeys(this.layers);
  }

  drawControls(state, curves) {
    options(this.run, this.model.get("runs").map((label) => [label, label]), state.run);
    options(this.task, this.source.tasks ?? [], state.task);
    options(this.layer, [["", "all layers"], ...curves.map(({ layer }) => [layer, layer])], state.layer);
    this.rule.value = state.rule;
    this.both.setAttribute("aria-pressed", state.side_by_side);
    const problem = this.model.get("problem");
    this.slider.value = Math.log10(state.eps);
    this.slider.setAttribute("aria-valuetext", number(state.eps)); // not its exponent
    const said = `${state.eps} ${problem}`; // what someone is typing stays until ε itself moves
    if (said !== this.said && !problem) this.readout.value = plain(Number(state.eps.toPrecision(3)));
    this.said = said;
    this.readout.setAttribute("aria-invalid", Boolean(problem));
    const message = problem || this.model.get("message");
    if (this.alert.textContent !== message) this.alert.textContent = message;
    for (const control of [this.task, this.layer, this.rule, this.both, this.slider, this.readout]) {
      control.disabled = !curves.length;
    }
  }

  drawStill(curves, state) {
    this.followTheme();
    for (const picture of [this.spectrum, this.frontier]) {
      const width = Math.floor(picture.svg.parentNode.clientWidth);
      picture.setStill(curves, state, width, Math.round(Math.min(Math.max(0.58 * width, 270), 420)));
    }
    const width = Math.floor(this.smalls[0].button.clientWidth - 16);
    this.smalls.forEach((small, k) => small.setStill(curves[k], curves[k].layer === state.layer, width));
  }

  drawNumbers(readings) {
    const rows = readings.map((reading) => {
      const cells = COLUMNS.map(([, texts], k) => {
        const [value, share = ""] = texts(reading);
        const small = element("small", {}, share);
        return element(k ? "td" : "th", k ? {} : { scope: "row" }, element("span", {}, value), small);
      });
      const { rule, eps, rank, interference, bound, trainable } = reading;
      const data = { rule, eps, rank, interference, bound, trainable, energy: reading.energyShare };
      const row = element("tr", { class: `nk-${rule}` }, ...cells);
      for (const [name, value] of Object.entries(data)) row.dataset[name] = value;
      return row;
    });
    this.rows.replaceChildren(...rows);
  }

  followTheme() {
    const outer = this.root.closest(".nk-explorer") ?? this.root;
    outer.classList.toggle("nk-dark", isDark(this.root));
  }
}

/** JupyterLab takes arrow keys and Enter for its own shortcuts, unless the very element that has the focus says not to. */
function keepKeys(root) {
  for (const control of root.querySelectorAll("select, button, input, .nk-cut")) {
    control.setAttribute("data-lm-suppress-shortcuts", "true");
  }
}

/** Whether the page behind a node is dark. Colab's frame is transparent: its own attribute says what lies behind it. */
function isDark(node) {
  const background = getComputedStyle(node).backgroundColor;
  if (background === "rgba(0, 0, 0, 0)") {
    return node.parentElement ? isDark(node.parentElement) : node.getAttribute("theme") === "dark";
  }
  const [red, green, blue] = background.match(/[\d.]+/g).map(Number);
  return 0.3 * red + 0.6 * green + 0.1 * blue < 128;
}

/** The choices of a menu, made anew only where they differ: an open menu must not close. */
function options(select, choices, chosen) {
  const now = JSON.stringify(choices);
  if (select.dataset.choices !== now) {
    select.dataset.choices = now;
    select.replaceChildren(...choices.map(([value, text]) => element("option", { value }, text)));
  }
  if (chosen !== undefined) select.value = chosen;
}

function symbol(css) {
  const shapes = {
    ring: () => shape("circle", { class: "nk-ring", cx: 9, cy: 9, r: 5 }),
    bar: () => shape("line", { class: "nk-bar", x1: 2, x2: 16, y1: 9, y2: 9 }),
    knee: () => diamond(9, 9),
  };
  return shape("svg", { class: "nk-symbol", width: 18, height: 18, "aria-hidden": "true" }, shapes[css]());
}

/** As anywidget calls it. */
function render({ model, el }) {
  const explorer = new Explorer(model, el);
  return () => explorer.remove();
}

export default { render };

// ---- A page without a kernel ---------------------------------------------------------------------------------------

/** What a kernel's model does, without one: values, and whoever listens to them. */
class PageModel extends EventTarget {
  on = this.addEventListener;
  off = this.removeEventListener;
  save_changes() {}

  constructor(values) {
    super();
    this.values = values;
  }

  get(name) {
    return this.values[name];
  }

  set(name, value) {
    if (this.values[name] === value) return;
    this.values[name] = value;
    this.dispatchEvent(new Event(`change:${name}`));
  }
}

/** The explorer in `el` on recorded runs, label → {tasks, profiles, rule, eps}; returns its model. */
export function mountPage(el, recorded) {
  const runs = Object.keys(recorded);
  const model = new PageModel({ runs, layer: "", side_by_side: false, message: "", problem: "", kernel: false });
  const choose = () => {
    const source = recorded[model.get("run")];
    const tasks = source.tasks.map(([task]) => task);
    if (!source.profiles.layer.includes(model.get("layer"))) model.set("layer", "");
    model.set("source", source);
    model.set("task", tasks.includes(model.get("task")) ? model.get("task") : tasks.at(-1));
  };
  const { rule, eps } = recorded[runs[0]];
  for (const [name, value] of Object.entries({ run: runs[0], task: 1, rule, eps })) model.set(name, value);
  choose();
  model.on("change:run", choose);
  render({ model, el });
  return model;
}
