// A slider of the page's own, with its name, its value in words, and a field to type the value in.

const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;
const SAME = 1e-9; // what rounding may do to a bound or a step

/** The value at a place of the slider, which is its exponent on a logarithmic one, and the place of a value. */
const valueAt = (place, log) => (log ? 10 ** place : place);
const placeOf = (value, log) => (log ? Math.log10(value) : value);

/** A value as it is written. */
function written(value, { log, whole }) {
  if (whole) return String(value);
  return log ? value.toPrecision(3) : value.toFixed(2);
}

/** The number that was typed; NaN if it is none that the slider has. */
function typedValue(text, { min, max, step, log, whole }) {
  const value = NUMBER.test(text.trim()) ? Number(text) : NaN;
  const place = placeOf(value, log);
  const steps = (place - min) / step;
  const onStep = log || Math.abs(steps - Math.round(steps)) < SAME;
  if (!(place >= min - SAME && place <= max + SAME && onStep)) return NaN;
  return whole ? Math.round(value) : value;
}

/** What is right, as in "must be …". */
function expected({ min, max, step, log, whole, start }) {
  const bounds = [min, max].map((bound) => written(valueAt(bound, log), { log, whole }));
  const range = `from ${bounds[0]} to ${bounds[1]}`;
  if (whole) return `a whole number ${range}`;
  return log ? `a number ${range}, such as ${written(start, { log, whole })}` : `a number ${range} in steps of ${step}`;
}

function element(kind, values, parent) {
  const made = Object.assign(document.createElement(kind), values);
  parent.append(made);
  return made;
}

function render({ model, el }) {
  const names = ["description", "min", "max", "step", "log", "whole"];
  const of = Object.fromEntries(names.map((name) => [name, model.get(name)]));
  of.start = model.get("value");
  const id = `nk-slider-${Math.random().toString(36).slice(2)}`; // every widget has a module of its own: no counter
  el.classList.add("nk-slider");
  element("label", { htmlFor: id, textContent: of.description }, el);
  const range = element("input", { id, type: "range", min: of.min, max: of.max, step: of.step }, el);
  const field = element("input", { type: "text", autocomplete: "off", spellcheck: false }, el);
  const problem = element("div", { className: "nk-problem", id: `${id}-problem` }, el);
  problem.setAttribute("role", "alert");
  // JupyterLab would go to the next cell by arrow keys.
  for (const input of [range, field]) input.setAttribute("data-lm-suppress-shortcuts", "true");
  field.setAttribute("aria-label", `${of.description}, typed`);
  field.setAttribute("aria-describedby", problem.id);

  function show() {
    const value = model.get("value");
    range.value = placeOf(value, of.log);
    field.value = written(value, of);
    range.setAttribute("aria-valuetext", field.value);
    say("");
  }
  function say(text) {
    problem.textContent = text;
    field.setAttribute("aria-invalid", String(text !== ""));
  }
  function choose(value) {
    model.set("value", value);
    model.save_changes();
    show();
  }

  range.addEventListener("input", () => choose(valueAt(Number(range.value), of.log)));
  function typed() {
    const value = typedValue(field.value, of);
    if (Number.isNaN(value)) say(`${of.description} must be ${expected(of)}, got '${field.value}'`);
    else choose(value);
  }
  field.addEventListener("change", typed);
  field.addEventListener("keydown", ({ key }) => key === "Enter" && typed()); // which JupyterLab keeps to itself else
  model.on("change:value", show);
  show();
  return () => model.off("change:value", show);
}

export default { render };
