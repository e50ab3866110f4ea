// The canvas with the particles.

import { TRACED } from "./flow.js";

/** Half the side of the view, in units of the data. */
export const HALF = 5.2;
const CELLS = 64;
const ARROWS = 110;
const RESTING = 6; // frames between shadings
const TRAIL = 7; // parts of a path, each fainter than the next

/** The colours of the page, by the names of its style sheet. */
export function palette() {
  const style = getComputedStyle(document.documentElement);
  const names = ["ink", "muted", "hairline", "page", "card", "data", "generated", "critic", "score"];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

/** Fit a canvas to its place on the screen; its size in CSS pixels. */
export function fitted(canvas) {
  const ratio = Math.min(window.devicePixelRatio || 1, 2);
  const { clientWidth: width, clientHeight: height } = canvas;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return { context, width, height };
}

export class Stage {
  constructor(canvas) {
    this.canvas = canvas;
    this.shading = new OffscreenCanvas(CELLS, CELLS);
    this.pixels = new ImageData(CELLS, CELLS);
    this.cells = new Float64Array(2 * CELLS * CELLS);
    this.values = new Float64Array(CELLS * CELLS);
    this.lengths = new Float64Array(ARROWS);
    this.shown = new Float64Array(0);
    this.reference = new Float64Array(0);
    this.shadedAt = Number.NaN;
    this.shadedFor = 0;
    this.frames = 0;
  }

  /** Use the page's colours anew. */
  repaint() {
    this.colors = palette();
    this.shadedAt = Number.NaN;
  }

  /** Where a point of the screen is in the plane, at a scale of 1. */
  toPlane(px, py) {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const unit = Math.min(width, height) / (2 * HALF);
    return [(px - width / 2) / unit, (height / 2 - py) / unit];
  }

  /**
   * Draw a moment.
   * @param {object} simulation what moves
   * @param {number} part of the way from the node before
   * @param {object} state what to show
   */
  draw(simulation, part, state) {
    const { context, width, height } = fitted(this.canvas);
    const t = simulation.time(part);
    const scale = simulation.scale(t);
    const view = { unit: Math.min(width, height) / (2 * HALF), cx: width / 2, cy: height / 2 };
    context.clearRect(0, 0, width, height);
    if (simulation.picture) {
      drawPicture(context, simulation.picture, width, height);
      return;
    }
    if (state.shading && simulation.shade) this.shade(context, simulation, t, scale, view);
    this.drawGrid(context, view, width, height, scale);
    this.drawData(context, view, scale);
    this.interpolate(simulation, part, scale);
    if (state.paths && simulation.history) this.drawPaths(context, simulation, view);
    this.drawParticles(context, simulation.n, view, Math.min(3, 1.2 + width / 1200));
    if (state.arrows) this.drawArrows(context, simulation, view);
  }

  /** Positions between two nodes, as the camera sees them. */
  interpolate(simulation, part, scale) {
    const { x, before, n } = simulation;
    if (this.shown.length !== 2 * n) this.shown = new Float64Array(2 * n);
    for (let i = 0; i < 2 * n; i++) this.shown[i] = (before[i] + part * (x[i] - before[i])) / scale;
  }

  shade(context, simulation, t, scale, { unit, cx, cy }) {
    const reach = Math.max(cx, cy) / unit; // the whole canvas
    this.frames++;
    if (this.shadedFor !== reach) this.shadedAt = Number.NaN;
    if (this.shadedAt !== t && (this.frames % RESTING === 0 || !(Math.abs(t - this.shadedAt) < 0.05))) {
      this.shadedAt = t;
      this.shadedFor = reach;
      for (let row = 0, i = 0; row < CELLS; row++) {
        for (let column = 0; column < CELLS; column++, i++) {
          this.cells[2 * i] = scale * reach * ((2 * column + 1) / CELLS - 1);
          this.cells[2 * i + 1] = scale * reach * (1 - (2 * row + 1) / CELLS);
        }
      }
      const count = CELLS * CELLS;
      const values = simulation.shade(this.cells, count, t, this.values);
      const levels = !simulation.relative; // a density: its logarithm's height; a potential: its range
      let high = Number.NEGATIVE_INFINITY;
      let low = Number.POSITIVE_INFINITY;
      for (let i = 0; i < count; i++) {
        if (values[i] > high) high = values[i];
        if (values[i] < low) low = values[i];
      }
      const [red, green, blue] = rgb(levels ? this.colors.data : this.colors.muted);
      const { data } = this.pixels;
      for (let i = 0; i < count; i++) {
        const height = levels ? Math.exp(values[i] - high) : (values[i] - low) / (high - low || 1);
        data[4 * i] = red;
        data[4 * i + 1] = green;
        data[4 * i + 2] = blue;
        data[4 * i + 3] = levels ? 120 * Math.sqrt(height) : 90 * height * height;
      }
      this.shading.getContext("2d").putImageData(this.pixels, 0, 0);
    }
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    const side = 2 * reach * unit;
    context.drawImage(this.shading, cx - side / 2, cy - side / 2, side, side);
  }

  /** Lines at round numbers, which tell how far the camera is away. */
  drawGrid(context, { unit, cx, cy }, width, height, scale) {
    const gap = 2 * 2 ** Math.floor(Math.log2(scale));
    const pixels = (gap * unit) / scale;
    context.strokeStyle = this.colors.hairline;
    context.lineWidth = 1;
    context.beginPath();
    for (let k = -Math.ceil(cx / pixels); k <= cx / pixels; k++) {
      const place = Math.round(cx + k * pixels) + 0.5;
      context.moveTo(place, 0);
      context.lineTo(place, height);
    }
    for (let k = -Math.ceil(cy / pixels); k <= cy / pixels; k++) {
      const place = Math.round(cy + k * pixels) + 0.5;
      context.moveTo(0, place);
      context.lineTo(width, place);
    }
    context.stroke();
    context.fillStyle = this.colors.muted;
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "left";
    context.fillText(`${gap} units a square`, 10, height - 10);
  }

  /** Diamonds at draws of the data. */
  drawData(context, { unit, cx, cy }, scale) {
    const { reference } = this;
    const half = scale < 2 ? 2.4 : 1.6;
    context.fillStyle = this.colors.data;
    context.globalAlpha = 0.5;
    context.beginPath();
    for (let i = 0; i < reference.length; i += 2) {
      const x = cx + (reference[i] / scale) * unit;
      const y = cy - (reference[i + 1] / scale) * unit;
      context.moveTo(x, y - half);
      context.lineTo(x + half, y);
      context.lineTo(x, y + half);
      context.lineTo(x - half, y);
    }
    context.fill();
    context.globalAlpha = 1;
  }

  drawParticles(context, n, { unit, cx, cy }, radius) {
    const { shown } = this;
    context.fillStyle = this.colors.generated;
    context.globalAlpha = 0.72;
    context.beginPath();
    for (let i = 0; i < n; i++) {
      const x = cx + shown[2 * i] * unit;
      const y = cy - shown[2 * i + 1] * unit;
      context.moveTo(x + radius, y);
      context.arc(x, y, radius, 0, 2 * Math.PI);
    }
    context.fill();
    context.globalAlpha = 1;
  }

  /** The whole paths, faintly where they are known ahead, and what has been walked of them. */
  drawPaths(context, simulation, view) {
    const { history, ahead, node, steps } = simulation;
    context.lineJoin = "round";
    context.strokeStyle = this.colors.ink;
    if (ahead) {
      context.globalAlpha = 0.1;
      context.lineWidth = 1;
      this.trace(context, ahead, 0, steps, view, false);
    }
    context.lineWidth = 1.4;
    for (let age = TRAIL - 1; age >= 0; age--) {
      const from = Math.floor(((TRAIL - 1 - age) / TRAIL) * node); // older parts are fainter
      const to = Math.floor(((TRAIL - age) / TRAIL) * node);
      context.globalAlpha = 0.8 * 0.66 ** age;
      this.trace(context, history, from, age === 0 ? node - 1 : to, view, age === 0);
    }
    context.globalAlpha = 1;
    context.fillStyle = this.colors.ink;
    context.beginPath();
    for (let i = 0; i < TRACED; i++) {
      const x = view.cx + this.shown[2 * i] * view.unit;
      const y = view.cy - this.shown[2 * i + 1] * view.unit;
      context.moveTo(x + 3, y);
      context.arc(x, y, 3, 0, 2 * Math.PI);
    }
    context.fill();
  }

  /** Lines along nodes from first to last, and on to where the particles are shown. */
  trace(context, paths, first, last, { unit, cx, cy }, onwards) {
    context.beginPath();
    for (let i = 0; i < TRACED; i++) {
      for (let k = first; k <= last; k++) {
        const at = 2 * (TRACED * k + i);
        const x = cx + paths[at] * unit;
        const y = cy - paths[at + 1] * unit;
        if (k === first) context.moveTo(x, y);
        else context.lineTo(x, y);
      }
      if (onwards && last >= first) {
        context.lineTo(cx + this.shown[2 * i] * unit, cy - this.shown[2 * i + 1] * unit);
      }
    }
    context.stroke();
  }

  /** The field at some particles; lengths are compared within a moment only. */
  drawArrows(context, simulation, view) {
    this.strokeArrows(context, simulation.arrows, view, this.colors.ink);
    if (simulation.carried) this.strokeArrows(context, simulation.carried, view, this.colors.score);
  }

  strokeArrows(context, field, { unit, cx, cy }, color) {
    const { lengths, shown } = this;
    const count = Math.min(ARROWS, field.length / 2);
    for (let i = 0; i < count; i++) lengths[i] = Math.hypot(field[2 * i], field[2 * i + 1]);
    const usual = lengths.slice(0, count).sort()[Math.floor(0.85 * count)];
    if (!(usual > 0)) return;
    context.strokeStyle = color;
    context.lineWidth = 1.2;
    context.beginPath();
    for (let i = 0; i < count; i++) {
      const shrink = 26 / Math.max(usual, lengths[i] / 1.6);
      const dx = field[2 * i] * shrink;
      const dy = -field[2 * i + 1] * shrink;
      const x = cx + shown[2 * i] * unit;
      const y = cy - shown[2 * i + 1] * unit;
      const tip = 0.3;
      context.moveTo(x, y);
      context.lineTo(x + dx, y + dy);
      context.lineTo(x + dx - tip * (dx + 0.6 * dy), y + dy - tip * (dy - 0.6 * dx));
      context.moveTo(x + dx, y + dy);
      context.lineTo(x + dx - tip * (dx - 0.6 * dy), y + dy - tip * (dy + 0.6 * dx));
    }
    context.stroke();
  }
}

/** A picture as large as fits, its pixels sharp. */
function drawPicture(context, picture, width, height) {
  const factor = Math.min((width - 24) / picture.width, (height - 24) / picture.height);
  if (!Number.isFinite(factor)) return; // not decoded yet
  const [wide, high] = [factor * picture.width, factor * picture.height];
  context.imageSmoothingEnabled = factor < 1;
  context.drawImage(picture, (width - wide) / 2, (height - high) / 2, wide, high);
}

/** Red, green and blue of "#rrggbb". */
function rgb(color) {
  const bits = Number.parseInt(color.slice(1), 16);
  return [bits >> 16, (bits >> 8) & 255, bits & 255];
}
