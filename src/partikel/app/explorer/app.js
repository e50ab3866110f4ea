// The page: state, loop, figures.

import { Controls, element } from "./controls.js";
import { fitted, palette, Stage } from "./draw.js";
import { FreeFlow } from "./flow.js";
import { KERNELS } from "./kernels.js";
import { DiscriminatorFlow, Gan, GeneratedFlow, GeneratedSamples } from "./learned.js";
import { described, NEAR, PlaneMap, rounded } from "./map.js";
import { energyDistance, modesCovered, NullSpread } from "./measures.js";
import { modelName, onPlane, strength } from "./plane.js";
import { Stream } from "./random.js";
import { GivenData, showRun, TrainedScore } from "./runs.js";
import { SAMPLE_FIELDS, SampleFlow } from "./samples.js";
import { defaults, fromFragment, offer, packed, runOf, toFragment, unpacked } from "./settings.js";
import { SOLVERS } from "./solvers.js";
import { openTarget } from "./targets.js";
import { TOUR } from "./tour.js";

const PARTICLES = 2000;
const MEASURED = 500;
const DURATION = 6000; // milliseconds of a run
const REST = 2500; // until the next one
const EVERY = 500; // milliseconds between figures
const REFERENCE = 700; // diamonds
const HEART = Array.from({ length: 60 }, (_, k) => {
  const angle = (k / 60) * 2 * Math.PI; // a heart, until something is drawn
  const x = 16 * Math.sin(angle) ** 3;
  const y = 13 * Math.cos(angle) - 5 * Math.cos(2 * angle) - 2 * Math.cos(3 * angle) - Math.cos(4 * angle);
  return [x * 0.22, y * 0.22 + 0.5];
});

const PASS = 2500; // milliseconds of a run through a flow that is trained meanwhile
const TRAINING = 14; // milliseconds of a frame for training, at least an iteration
const STEPPING = 16; // and for steps of particles: where one costs more, a run takes longer

/** What a state shows: a field, and what carries it. */
export function simulate(state, target, n) {
  const run = runOf(state.field);
  if (run) return showRun(run, state.seed);
  const generated = state.carrier === "generator";
  const trained = runOf(state.score);
  if (state.field === "plane" && trained) {
    const count = generated ? n : trained.n;
    return new (generated ? GeneratedFlow : FreeFlow)(state, target, count, new TrainedScore(trained));
  }
  if (state.field in SAMPLE_FIELDS) return new (generated ? GeneratedSamples : SampleFlow)(state, target, n);
  if (state.field === "critic") return new (generated ? Gan : DiscriminatorFlow)(state, target, n);
  return new (generated ? GeneratedFlow : FreeFlow)(state, target, n);
}

const find = (id) => document.getElementById(id);

export class Explorer {
  constructor() {
    offer(JSON.parse(find("runs").textContent));
    this.state = settled(fromFragment(location.hash));
    this.stage = new Stage(find("stage"));
    this.map = new PlaneMap(find("map"), (g2, lambda2) => this.set({ field: "plane", g2, lambda2 }));
    this.controls = new Controls(find("controls"), (key, value) => this.set({ [key]: value }));
    this.still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.playing = !this.still;
    this.part = 1;
    this.lastFrame = Number.NaN;
    this.lastFigures = Number.NEGATIVE_INFINITY;
    this.restedFor = 0;
    this.costs = new Float64Array(240); // milliseconds of the latest frames
    this.frames = 0;
    this.firstMotion = Number.NaN; // milliseconds after the page was asked for
    this.energies = [];
    this.pastEnergies = [];
    this.tourStep = -1;
    this.connect();
    this.openData();
    this.begin();
    this.restyle();
    requestAnimationFrame((now) => this.frame(now));
  }

  // --- state

  /** Change settings; what moves begins anew where it depends on them. */
  set(changes) {
    const before = this.state;
    this.state = settled({ ...before, ...changes }, changes);
    this.simulation.state = this.state;
    const differs = (keys) => keys.some((key) => this.state[key] !== before[key]);
    if (differs(["data", "hand", "field"])) this.openData();
    const shown = ["paths", "arrows", "shading"];
    if (differs(Object.keys(this.state).filter((key) => !shown.includes(key)))) this.begin();
    else this.paint();
    this.tell();
  }

  /** Write the state where it can be seen and shared. */
  tell() {
    this.controls.show(this.state);
    const fragment = toFragment(this.state);
    const here = fragment ? `#${fragment}` : location.pathname + location.search;
    if (location.hash.slice(1) !== fragment) history.replaceState(null, "", here);
    this.showPlace();
  }

  openData() {
    const drawn = unpacked(this.state.hand);
    const run = runOf(this.state.field);
    const given = run?.reference ? new GivenData(run) : null;
    this.measurable = !run || given !== null;
    this.target = given ?? openTarget(this.state.data, drawn.length ? drawn : HEART);
    const stream = new Stream(7);
    this.reference = this.target.sample(stream, MEASURED, new Float64Array(2 * MEASURED));
    this.stage.reference = this.target.sample(stream, REFERENCE, new Float64Array(2 * REFERENCE));
    if (!this.measurable) this.stage.reference = new Float64Array(0);
    this.spread = null;
    find("modes").hidden = !(this.target.modal && this.measurable);
    const byHand = this.state.data === "hand" && !run;
    find("erase").hidden = !byHand;
    document.body.classList.toggle("drawing", byHand);
    this.pastEnergies = [];
  }

  /** A new run of the same noise. */
  begin() {
    this.simulation = simulate(this.state, this.target, PARTICLES);
    const count = Math.min(MEASURED, this.simulation.n);
    if (this.spread?.n !== count) {
      this.spread = new NullSpread(this.target, count, MEASURED, new Stream(11));
    }
    this.refresh();
    const moment = find("moment");
    find("moments").hidden = this.simulation.train !== undefined;
    moment.max = this.simulation.steps;
    this.tell();
  }

  restart() {
    this.simulation.reset(this.state.seed);
    this.refresh();
  }

  refresh() {
    this.part = 1;
    this.restedFor = 0;
    this.energies = [];
    this.stage.shadedAt = Number.NaN;
    if (this.still && !this.playing) this.hurrying = true;
    this.paint();
  }

  play(on) {
    this.playing = on;
    this.hurrying = false;
    if (on && this.simulation.finished) this.restart();
    find("play").textContent = on ? "Pause" : "Play";
    find("play").setAttribute("aria-pressed", String(on));
  }

  // --- the loop

  frame(now) {
    const begun = performance.now();
    const passed = Math.min(now - this.lastFrame || 0, 60);
    this.lastFrame = now;
    const moved = this.playing && this.move(passed);
    if (this.hurrying) this.hurry();
    if (moved || this.dirty) {
      this.dirty = false;
      this.stage.draw(this.simulation, this.part, this.state);
      this.showMoment();
    }
    if (moved && Number.isNaN(this.firstMotion)) this.firstMotion = performance.now();
    if (moved) this.costs[this.frames++ % this.costs.length] = performance.now() - begun;
    if (now - this.lastFigures > EVERY) {
      this.lastFigures = now;
      this.measure();
    } else if (this.measurable) this.spread.advance();
    requestAnimationFrame((next) => this.frame(next));
  }

  /** Move on by some milliseconds; whether anything moved. */
  move(passed) {
    const { simulation } = this;
    if (simulation.train) {
      const until = performance.now() + TRAINING;
      do simulation.train();
      while (performance.now() < until);
      simulation.show();
    }
    if (simulation.finished && this.part >= 1) {
      this.restedFor += passed;
      if (this.restedFor > (simulation.train ? REST / 3 : REST)) this.repeat();
      return simulation.train !== undefined;
    }
    if (simulation.continuous) return true;
    this.part += (passed / (simulation.train ? PASS : DURATION)) * simulation.steps;
    const until = performance.now() + STEPPING;
    while (this.part > 1 && !simulation.finished && performance.now() < until) {
      simulation.step();
      this.part -= 1;
    }
    this.part = Math.min(this.part, 1);
    if (simulation.finished && this.part === 1) this.lastFigures = Number.NEGATIVE_INFINITY;
    return true;
  }

  /** Another run after one that ended: training goes on, other curves begin anew. */
  repeat() {
    const { simulation } = this;
    this.restedFor = 0;
    if (!simulation.train) {
      this.pastEnergies = this.energies;
      this.energies = [];
    }
    simulation.again();
    this.part = 1;
  }

  /** To the end, without showing the way: for those who want no motion. */
  hurry() {
    const until = performance.now() + 40;
    const { simulation } = this;
    const trained = () => !simulation.train || simulation.iterations >= simulation.horizon;
    while (!trained() && performance.now() < until) simulation.train();
    simulation.show?.();
    if (!simulation.continuous && trained()) {
      while (!simulation.finished && performance.now() < until) simulation.step();
    }
    this.part = 1;
    if (trained() && (simulation.continuous || simulation.finished)) {
      this.hurrying = false;
      this.lastFigures = Number.NEGATIVE_INFINITY;
      this.dirty = true;
    }
  }

  paint() {
    this.dirty = true;
  }

  /** Where on its way the run is. */
  showMoment() {
    const { node, labels } = this.simulation;
    find("moment").value = node;
    find("moment-label").value = labels ? labels[node] : `${node}`;
  }

  /** To a node of the run: on from here, or from the start again. */
  goTo(node) {
    this.play(false);
    const { simulation } = this;
    if (node < simulation.node) simulation.again();
    while (simulation.node < node && !simulation.finished) simulation.step();
    this.part = 1;
    this.stage.shadedAt = Number.NaN;
    this.lastFigures = Number.NEGATIVE_INFINITY;
    this.paint();
  }

  /** Median milliseconds of the latest frames. */
  get cost() {
    const known = this.costs.slice(0, Math.min(this.frames, this.costs.length)).sort();
    return known.length ? known[known.length >> 1] : Number.NaN;
  }

  // --- figures

  measure() {
    const { simulation, target, reference, spread } = this;
    const count = spread.n;
    find("energy").hidden = !this.measurable;
    if (!simulation.settled) return;
    const energy = this.measurable ? energyDistance(simulation.x, count, reference, MEASURED) : 0;
    if (this.playing) this.energies.push([simulation.progress, energy]);
    find("energy-value").textContent = energy.toFixed(4).replace("-", "−");
    const level = target.level ?? spread.level;
    let said = "measuring two draws of the data …";
    if (!Number.isNaN(level)) {
      const times = energy / level;
      said =
        times <= 1
          ? "within what two draws of the data differ by"
          : `${times < 10 ? times.toFixed(1) : Math.round(times)} times what two draws of the data differ by`;
      find("energy").classList.toggle("good", times <= 1);
      find("null-value").textContent = level.toFixed(4);
    }
    find("energy-said").textContent = said;
    if (target.modal && this.measurable) {
      find("modes-value").textContent =
        `${modesCovered(target, simulation.x, simulation.n)} of ${target.count}`;
    }
    find("evaluations-label").textContent = simulation.train ? "iterations" : "evaluations";
    find("evaluations-value").textContent = `${simulation.train ? simulation.iterations : simulation.evaluations}`;
    find("sigma").hidden = !simulation.path;
    if (simulation.path) {
      find("sigma-value").textContent = simulation.path.sigma(simulation.time(this.part)).toPrecision(2);
    }
    find("cost").textContent = this.frames > 0 ? `${this.cost.toFixed(1)} ms a frame` : "";
    this.drawCurve(level);
  }

  /** The energy distance along the run, over what chance alone gives. */
  drawCurve(level) {
    const { context, width, height } = fitted(find("curve"));
    const colors = palette();
    context.clearRect(0, 0, width, height);
    const low = Math.log(1e-4);
    const high = Math.log(20);
    const { horizon, progress } = this.simulation;
    const all = Math.max(horizon, progress);
    const to = (place, energy) => [
      4 + (place / all) * (width - 8),
      height - 4 - ((Math.log(Math.max(energy, 1e-4)) - low) / (high - low)) * (height - 8),
    ];
    if (!Number.isNaN(level)) {
      const [, y] = to(0, level);
      context.fillStyle = colors.data;
      context.globalAlpha = 0.16;
      context.fillRect(0, y, width, height - y);
      context.globalAlpha = 1;
    }
    const curve = (values, alpha) => {
      context.globalAlpha = alpha;
      context.beginPath();
      for (const [place, energy] of values) context.lineTo(...to(place, energy));
      context.stroke();
      context.globalAlpha = 1;
    };
    context.strokeStyle = colors.generated;
    context.lineWidth = 2;
    context.lineJoin = "round";
    curve(this.pastEnergies, 0.3);
    curve(this.energies, 1);
  }

  /** Where the point is, and what its equation is there. */
  showPlace() {
    const { g2, lambda2 } = this.state;
    const { field } = this.state;
    const [x, y] = field === "critic" ? [0, 0] : [g2, lambda2];
    this.map.draw(x, y);
    find("place").textContent = titleOf(this.state);
    const elsewhere = Boolean(runOf(field)) || field in SAMPLE_FIELDS;
    find("map").hidden = elsewhere;
    find("place-numbers").hidden = elsewhere;
    find("place-numbers").textContent = `(${rounded(x)}, ${rounded(y)})`.replaceAll("-", "−");
    const formulas = formulasOf(this.state);
    for (const each of find("formulas").children) {
      each.hidden = !formulas.includes(each.id.replace("formula-", ""));
    }
    find("beta").hidden = !formulas.includes("plane");
    find("key-arrows").hidden = !(formulas.includes("surrogate") && this.state.arrows);
    find("walk-time").toggleAttribute("hidden", field !== "critic"); // formulas have no property for it
    if (formulas.includes("walk")) {
      find("walk-eta").textContent = `${Number(this.simulation.eta.toPrecision(4))}`;
      find("walk-steps").textContent = `${this.simulation.steps}`;
    }
    const weights = { gan: 1 - g2 / 2, score: g2 / 2, noise: Math.sqrt(Math.max(0, g2 - lambda2)) };
    for (const [key, value] of Object.entries(weights)) {
      find(`weight-${key}`).textContent = signed(value);
      find(`term-${key}`).classList.toggle("absent", Math.abs(value) < 1e-9);
    }
    find("beta-value").textContent = signed(strength(lambda2));
    find("weight-own").textContent = signed(1 - lambda2 / 2);
    const follows = this.simulation.follows ?? this.simulation.field;
    find("law").textContent = field in SAMPLE_FIELDS ? follows.told : lawOf(this.state);
    find("spoken").textContent = elsewhere ? titleOf(this.state) : described(g2, lambda2);
  }

  // --- what people do

  connect() {
    find("moment").addEventListener("input", (event) => this.goTo(Number(event.target.value)));
    find("play").addEventListener("click", () => this.play(!this.playing));
    find("restart").addEventListener("click", () => this.restart());
    find("reset").addEventListener("click", () => {
      this.tourStep = -1;
      this.showTour();
      this.set(defaults());
    });
    find("theme").addEventListener("click", () => {
      const root = document.documentElement;
      root.dataset.theme = isDark() ? "light" : "dark";
      this.restyle();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.restyle());
    addEventListener("hashchange", () => {
      if (location.hash.slice(1) !== toFragment(this.state)) this.set(fromFragment(location.hash));
    });
    addEventListener("resize", () => {
      this.paint();
      this.showPlace();
    });
    addEventListener("keydown", (event) => this.key(event));
    this.connectDrawing();
    this.connectTour();
    if (this.still) find("play").textContent = "Play";
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const within = event.target.closest?.("input, select, button, a, summary");
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    if (event.key in ways && !event.target.closest?.("input, select")) {
      const by = event.shiftKey ? 0.5 : 0.1;
      const [across, up] = ways[event.key];
      const { g2, lambda2 } = this.state;
      const [x, y] = snappedFar(g2 + by * across, lambda2 + by * up);
      this.set({ field: "plane", g2: x, lambda2: y });
      event.preventDefault();
    } else if (event.key === " " && !within) {
      this.play(!this.playing);
      event.preventDefault();
    } else if (event.key === "r" && !event.target.closest?.("select")) this.restart();
    else if (event.key === "n" && !event.target.closest?.("select")) this.tourTo(this.tourStep + 1);
  }

  /** Data drawn by hand: strokes on the stage. */
  connectDrawing() {
    const { canvas } = this.stage;
    let stroke = null;
    canvas.addEventListener("pointerdown", (event) => {
      if (!document.body.classList.contains("drawing")) return;
      canvas.setPointerCapture(event.pointerId);
      stroke = this.fresh ? unpacked(this.state.hand) : [];
      this.fresh = true;
      add(event);
    });
    const add = (event) => {
      const box = canvas.getBoundingClientRect();
      const [x, y] = this.stage.toPlane(event.clientX - box.left, event.clientY - box.top);
      const last = stroke[stroke.length - 1];
      if (Math.max(Math.abs(x), Math.abs(y)) > 5 || stroke.length >= 240) return;
      if (last && Math.hypot(x - last[0], y - last[1]) < 0.12) return;
      stroke.push([x, y]);
      this.set({ hand: packed(stroke) });
    };
    canvas.addEventListener("pointermove", (event) => stroke && add(event));
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, () => {
        stroke = null;
      });
    }
    find("erase").addEventListener("click", () => {
      this.fresh = false;
      this.set({ hand: "" });
    });
  }

  connectTour() {
    const list = find("tour-steps");
    TOUR.forEach(({ title }, index) => {
      const link = element("a", { href: `#${toFragment(tourState(index))}` }, title);
      link.addEventListener("click", (event) => {
        event.preventDefault();
        this.tourTo(index);
      });
      list.append(element("li", {}, link));
    });
    find("tour-next").addEventListener("click", () => this.tourTo(this.tourStep + 1));
  }

  /** A step of the tour: its state and its words. */
  tourTo(index) {
    this.tourStep = index % TOUR.length;
    this.set(tourState(this.tourStep));
    this.showTour();
    if (!this.still) this.play(true);
  }

  showTour() {
    const step = TOUR[this.tourStep];
    const words = step ? `${this.tourStep + 1}. ${step.title}. ` : "";
    find("tour-title").textContent = words;
    find("tour-text").textContent = step ? step.text : find("tour-text").dataset.first;
    find("tour-next").textContent = step ? "Next" : "Take the tour";
    [...find("tour-steps").children].forEach((item, index) => {
      item.classList.toggle("here", index === this.tourStep);
    });
  }

  restyle() {
    find("theme").textContent = isDark() ? "Light" : "Dark";
    this.stage.repaint();
    this.paint();
    this.showPlace();
  }
}

/** What is shown of a run, in a sentence. */
const TOLD = {
  film: (run) => `Data: ${run.data}. ${run.n} particles at ${run.moments.length} moments, computed when the page was made.`,
  critic: (run) => `Data: ${run.data}. The trained field moves particles in ${run.steps} steps, computed here.`,
  map: (run) => `Data: ${run.data}. The trained map takes ${run.jumps} jump${run.jumps > 1 ? "s" : ""}, computed here.`,
  generator: (run) => `Data: ${run.data}. Latents walk along great circles, which keeps their law; outputs are computed here.`,
  sheets: (run) => `Data: ${run.data}. ${run.moments.length} moments, ${Math.round(run.size / 1000)} kB of pictures.`,
};

/** What a state is called. */
function titleOf({ field, carrier, g2, lambda2 }) {
  const run = runOf(field);
  if (run) return run.label;
  const generated = carrier === "generator";
  if (field === "critic") return generated ? "GAN" : "Discriminator Flow";
  const { title, short = title } = SAMPLE_FIELDS[field] ?? { title: modelName(g2, lambda2) };
  return generated ? `${short}, in a generator` : title;
}

/** The formulas of a state, by name. */
function formulasOf({ field, carrier }) {
  if (runOf(field)) return [];
  const generated = carrier === "generator";
  if (field === "plane") return generated ? ["followed", "surrogate"] : ["plane"];
  return [field, generated ? "surrogate" : "walk"];
}

/** What law particles follow, in a sentence. */
function lawOf({ field, carrier, lambda2, score }) {
  const run = runOf(field);
  if (run) return TOLD[run.kind](run);
  if (runOf(score)) return `The score is that of ${runOf(score).label}; the data are those chosen below.`;
  if (field === "critic") {
    return carrier === "generator"
      ? "d is trained on the generator's outputs, the generator on d: a GAN."
      : "d is told the time t, and trained on particles of all ages; those shown walk through the flow as it is now.";
  }
  if (carrier === "generator") {
    if (lambda2 >= 2) return "A generator has no clock of its own: without ρ it runs to the summits of the density.";
    const power = rounded(1 / (1 - lambda2 / 2));
    return power === 1
      ? "A generator settles where both scores are equal: at the data."
      : `A generator has no clock of its own: it settles at the data's density to the power ${power}.`;
  }
  return lambda2 > 0
    ? "β matches the forward process: the law is that of the noised data, wherever the point is."
    : "No β matches the forward process here: laws follow that of the noised data with a lag.";
}

/** The state of a step of the tour. */
export function tourState(index) {
  return settled({ ...defaults(), ...TOUR[index].set });
}

/** A state that can be: solvers without noise stand on the diagonal g = λ, and Stein's kernels are definite. */
function settled(state, changes = state) {
  const made = { ...state };
  [made.g2, made.lambda2] = onPlane(made.g2, made.lambda2);
  if (made.lambda2 > 0 && made.lambda2 < NEAR) made.lambda2 = 0; // nearer to 0, no step is short enough for β
  if (made.field === "stein" && KERNELS[made.kernel].conditional) made.kernel = "rbf";
  if (!SOLVERS[made.solver].noise && made.g2 !== made.lambda2) {
    if ("solver" in changes) made.g2 = made.lambda2 = made.lambda2 > 0 ? made.lambda2 : 2;
    else made.solver = "heun";
  }
  return made;
}

/** A place that the keyboard leads to: on the plane and in the picture, but not drawn to lines. */
function snappedFar(g2, lambda2) {
  const [x, y] = onPlane(Math.min(Math.max(g2, 0), 3.2), Math.min(Math.max(lambda2, -1.25), 2.25));
  return [rounded(x), rounded(y)];
}

function signed(value) {
  return `${rounded(value)}`.replace("-", "−");
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}
