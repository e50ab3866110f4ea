// One step of each solver, from t to next, in place. A flow answers velocity(x, n, t, out), noise(t),
// sigma(t) and noisy; `draw(index, out)` gives standard normal numbers for the step, two for a particle.

/** Arrays that a solver works with, made once for n particles. */
export class Workspace {
  constructor(n) {
    this.n = n;
    this.velocity = new Float64Array(2 * n);
    this.second = new Float64Array(2 * n);
    this.middle = new Float64Array(2 * n);
    this.normals = new Float64Array(2 * n);
    this.others = new Float64Array(2 * n);
    this.past = new Float64Array(2 * n);
    this.pastLevel = Number.NaN; // log σ of the step before, where a multistep method remembers one
  }
}

/** x + v dt + g dW. */
function euler(flow, x, work, t, next, draw) {
  const { n, velocity, normals } = work;
  const dt = next - t;
  flow.velocity(x, n, t, velocity);
  for (let i = 0; i < 2 * n; i++) x[i] += dt * velocity[i];
  if (flow.noisy) {
    const scale = flow.noise(t) * Math.sqrt(dt);
    draw(0, normals);
    for (let i = 0; i < 2 * n; i++) x[i] += scale * normals[i];
  }
}

/** Heun's method, with the same noise in both stages. */
function heun(flow, x, work, t, next, draw) {
  const { n, velocity, second, middle, normals } = work;
  const dt = next - t;
  flow.velocity(x, n, t, velocity);
  if (flow.noisy) {
    const scale = 0.5 * (flow.noise(t) + flow.noise(next)) * Math.sqrt(dt);
    draw(0, normals);
    for (let i = 0; i < 2 * n; i++) x[i] += scale * normals[i];
  }
  for (let i = 0; i < 2 * n; i++) middle[i] = x[i] + dt * velocity[i];
  flow.velocity(middle, n, next, second);
  for (let i = 0; i < 2 * n; i++) x[i] += 0.5 * dt * (velocity[i] + second[i]);
}

/** Rößler's stochastic Runge-Kutta method SRA1, of strong order 3/2. */
function sra1(flow, x, work, t, next, draw) {
  const { n, velocity, second, middle, normals, others } = work;
  const dt = next - t;
  flow.velocity(x, n, t, velocity);
  for (let i = 0; i < 2 * n; i++) middle[i] = x[i] + 0.75 * dt * velocity[i];
  if (flow.noisy) {
    const scale = flow.noise(t);
    const later = flow.noise(next);
    const root = Math.sqrt(dt);
    draw(0, normals);
    draw(1, others);
    for (let i = 0; i < 2 * n; i++) {
      const increment = root * normals[i];
      const area = increment / 2 + Math.sqrt(dt / 12) * others[i]; // under the noise, over dt
      middle[i] += 1.5 * later * area;
      x[i] += later * increment + (scale - later) * area;
    }
  }
  flow.velocity(middle, n, t + 0.75 * dt, second);
  for (let i = 0; i < 2 * n; i++) x[i] += (dt / 3) * (velocity[i] + 2 * second[i]);
}

/** The denoised D = x - σ v/σ' that a drift defines, where u = 1, into `work.second`. */
function denoised(flow, x, work, t) {
  const { n, velocity, second } = work;
  flow.velocity(x, n, t, velocity);
  const ratio = flow.path.fall; // -σ'/σ
  for (let i = 0; i < 2 * n; i++) second[i] = x[i] + velocity[i] / ratio;
  return second;
}

/** Exact where D is constant: D + σ_next/σ (x - D). */
function ddim(flow, x, work, t, next) {
  const ahead = denoised(flow, x, work, t);
  const ratio = flow.sigma(next) / flow.sigma(t);
  for (let i = 0; i < 2 * work.n; i++) x[i] = ahead[i] + ratio * (x[i] - ahead[i]);
}

/** DPM-Solver++(2M): D is extrapolated along log σ from this step's and the last one's. */
function multistep(flow, x, work, t, next) {
  const { n, past, pastLevel } = work;
  const now = denoised(flow, x, work, t);
  const level = Math.log(flow.sigma(t));
  const half = Math.log(flow.sigma(next)) - level;
  const share = Number.isNaN(pastLevel) ? 0 : half / 2 / (level - pastLevel);
  const ratio = Math.exp(half);
  for (let i = 0; i < 2 * n; i++) {
    const ahead = now[i] + share * (now[i] - past[i]);
    x[i] = ahead + ratio * (x[i] - ahead);
    past[i] = now[i];
  }
  work.pastLevel = level;
}

export const SOLVERS = {
  euler: { label: "Euler", step: euler, noise: true },
  heun: { label: "Heun", step: heun, noise: true },
  ddim: { label: "DDIM", step: ddim, noise: false },
  "dpmpp-2m": { label: "DPM-Solver++(2M)", step: multistep, noise: false },
  sra1: { label: "SRA1 (stochastic Runge–Kutta)", step: sra1, noise: true },
};
