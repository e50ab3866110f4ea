// The map of the plane: where the point is, what the regions and lines are.

import { fitted, palette } from "./draw.js";
import { CORNERS, modelName, onPlane } from "./plane.js";

const LEFT = -0.45;
const RIGHT = 3.35;
const BOTTOM = -1.35;
const TOP = 2.4;
/** So near to lines the point sticks to them. */
export const NEAR = 0.09;

/** A number of the plane with two digits at most. */
export const rounded = (value) => Math.round(value * 100) / 100 + 0;

function dot(context, x, y, radius, fill, edge, width) {
  context.fillStyle = fill;
  context.strokeStyle = edge;
  context.lineWidth = width;
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fill();
  context.stroke();
}

export class PlaneMap {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {(g2: number, lambda2: number, done: boolean) => void} moved told where the point goes
   */
  constructor(canvas, moved) {
    this.canvas = canvas;
    this.moved = moved;
    this.dragging = false;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      canvas.focus({ preventScroll: true });
      this.dragging = true;
      this.follow(event, false);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (this.dragging) this.follow(event, false);
    });
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, (event) => {
        if (this.dragging) this.follow(event, true);
        this.dragging = false;
      });
    }
  }

  get frame() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    return { width, height, across: width / (RIGHT - LEFT), up: height / (TOP - BOTTOM) };
  }

  place(g2, lambda2) {
    const { across, up } = this.frame;
    return [(g2 - LEFT) * across, (TOP - lambda2) * up];
  }

  follow(event, done) {
    const box = this.canvas.getBoundingClientRect();
    const { across, up } = this.frame;
    const g2 = (event.clientX - box.left) / across + LEFT;
    const lambda2 = TOP - (event.clientY - box.top) / up;
    this.moved(...snapped(g2, lambda2), done);
  }

  draw(g2, lambda2) {
    const { context, width, height } = fitted(this.canvas);
    const colors = palette();
    const to = (a, b) => this.place(a, b);
    context.clearRect(0, 0, width, height);
    this.drawGround(context, colors, to, width, height);
    context.lineCap = "round";
    const lines = [
      [0, 0, TOP, TOP, colors.ink, 2.4],
      [0, 0, 0, BOTTOM, colors.critic, 3],
      [2, BOTTOM, 2, 2, colors.score, 3],
      [0, 0, RIGHT, 0, colors.muted, 1],
    ];
    for (const [x0, y0, x1, y1, color, thick] of lines) {
      context.strokeStyle = color;
      context.lineWidth = thick;
      context.beginPath();
      context.moveTo(...to(x0, y0));
      context.lineTo(...to(x1, y1));
      context.stroke();
    }
    context.font = "12px system-ui, sans-serif";
    this.write(context, "λ² > g²: impossible", to(-0.38, 1.72), colors.muted, "left");
    this.write(context, "continuation", to(1, -0.62), colors.muted, "center");
    this.write(context, "Diffusion-GANs", to(1, 0.42), colors.muted, "center");
    this.write(context, "SLCD", to(2.68, 0.5), colors.muted, "center");
    this.write(context, "the discriminator alone", to(0.08, -1.18), colors.critic, "left");
    this.write(context, "the score alone", to(2.08, -1.18), colors.score, "left");
    context.save();
    context.translate(...to(0.79, 0.89));
    context.rotate(-Math.atan2(this.frame.up, this.frame.across));
    this.write(context, "g = λ: no noise", [0, -9], colors.ink, "center");
    context.restore();
    for (const corner of CORNERS) this.drawCorner(context, colors, to, corner);
    this.drawAxes(context, colors, to, width, height);
    const [x, y] = to(g2, lambda2);
    dot(context, x, y, 10, colors.generated, colors.card, 3);
    this.canvas.setAttribute("aria-valuetext", described(g2, lambda2));
  }

  drawGround(context, colors, to, width, height) {
    const [zeroX, zeroY] = to(0, 0);
    context.fillStyle = colors.hairline;
    context.globalAlpha = 0.55;
    context.fillRect(zeroX, zeroY, width - zeroX, height - zeroY);
    context.save();
    context.beginPath();
    context.moveTo(0, height);
    context.lineTo(zeroX, height);
    context.lineTo(zeroX, zeroY);
    context.lineTo(...to(TOP, TOP));
    context.lineTo(0, 0);
    context.clip();
    context.strokeStyle = colors.muted;
    context.globalAlpha = 0.28;
    context.lineWidth = 1;
    context.beginPath();
    for (let k = -height; k < width; k += 9) {
      context.moveTo(k, height);
      context.lineTo(k + height, 0);
    }
    context.stroke();
    context.restore();
    context.globalAlpha = 1;
  }

  drawCorner(context, colors, to, { g2, lambda2, name }) {
    const [x, y] = to(g2, lambda2);
    dot(context, x, y, 5, colors.card, colors.ink, 1.6);
    context.font = "600 12.5px system-ui, sans-serif";
    this.write(context, name, [x + 12, y + (g2 === lambda2 ? 14 : -11)], colors.ink, "left"); // beside the diagonal
    context.font = "12px system-ui, sans-serif";
  }

  drawAxes(context, colors, to, width, height) {
    for (const k of [1, 2, 3]) this.write(context, `${k}`, to(k - 0.06, -0.13), colors.muted, "right"); // beside lines
    for (const k of [-1, 1, 2]) this.write(context, `${k}`.replace("-", "−"), to(-0.13, k), colors.muted, "center");
    context.font = "600 12px system-ui, sans-serif";
    this.write(context, "g²/β", [width - 8, to(0, 0)[1] + 28], colors.ink, "right");
    this.write(context, "λ²/β", [to(0, 0)[0] - 8, 14], colors.ink, "right");
    context.textAlign = "left";
    context.strokeStyle = colors.hairline;
    context.strokeRect(0.5, 0.5, width - 1, height - 1);
  }

  write(context, text, [x, y], color, align) {
    context.textAlign = align;
    context.textBaseline = "middle";
    context.fillStyle = color;
    context.fillText(text, x, y);
  }
}

/** A point in words, for those who hear the page. */
export function described(g2, lambda2) {
  return `${modelName(g2, lambda2)}: g²/β = ${rounded(g2)}, λ²/β = ${rounded(lambda2)}`;
}

/** On the plane and in the picture, on the lines where it is near to them. */
export function snapped(g2, lambda2) {
  let [x, y] = onPlane(Math.min(g2, RIGHT - 0.15), Math.max(Math.min(lambda2, TOP - 0.15), BOTTOM + 0.1));
  const sticks = (value, ticks) => ticks.find((tick) => Math.abs(value - tick) < NEAR) ?? value;
  if (Math.abs(x - y) < NEAR) x = y = (x + y) / 2;
  const diagonal = x === y;
  x = sticks(x, [0, 1, 2, 3]);
  y = diagonal ? x : sticks(y, [-1, 0, 1, 2]);
  return onPlane(rounded(x), rounded(y));
}
