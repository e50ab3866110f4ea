// Random numbers. Noise of particles is a function of (seed, step, particle), so that all points of the
// plane are driven by one Brownian motion, and a path can be computed ahead of the particle that takes it.

const TO_UNIT = 2 ** -32;

/** A 32-bit hash of two integers (rounds of multiplication and shift). */
function mixed(a, b) {
  let h = Math.imul(a ^ 0x9e3779b9, 0x85ebca6b) ^ Math.imul(b + 0x7f4a7c15, 0xc2b2ae35);
  h = Math.imul(h ^ (h >>> 16), 0x7feb352d);
  h = Math.imul(h ^ (h >>> 15), 0x846ca68b);
  return (h ^ (h >>> 16)) >>> 0;
}

/** Standard normal numbers: two for each of n particles, interleaved, the same for the same key. */
export function keyedNormals(seed, step, n, out) {
  const key = mixed(seed, step);
  for (let i = 0; i < n; i++) {
    const first = mixed(key, 2 * i);
    const second = mixed(key, 2 * i + 1);
    const radius = Math.sqrt(-2 * Math.log((first + 0.5) * TO_UNIT));
    const angle = 2 * Math.PI * second * TO_UNIT;
    out[2 * i] = radius * Math.cos(angle);
    out[2 * i + 1] = radius * Math.sin(angle);
  }
  return out;
}

/** A stream of random numbers: sfc32 (Doty-Humphrey's small fast counter). */
export class Stream {
  constructor(seed) {
    this.a = mixed(seed, 1);
    this.b = mixed(seed, 2);
    this.c = mixed(seed, 3);
    this.counter = 1;
    this.spare = Number.NaN;
    for (let i = 0; i < 12; i++) this.integer();
  }

  /** 32 random bits. */
  integer() {
    const sum = (((this.a + this.b) | 0) + this.counter) | 0;
    this.counter = (this.counter + 1) | 0;
    this.a = this.b ^ (this.b >>> 9);
    this.b = (this.c + (this.c << 3)) | 0;
    this.c = (((this.c << 21) | (this.c >>> 11)) + sum) | 0;
    return sum >>> 0;
  }

  /** Uniform on (0, 1). */
  uniform() {
    return (this.integer() + 0.5) * TO_UNIT;
  }

  /** A whole number from 0 to below n. */
  below(n) {
    return Math.floor(this.uniform() * n);
  }

  /** Standard normal. */
  normal() {
    if (!Number.isNaN(this.spare)) {
      const kept = this.spare;
      this.spare = Number.NaN;
      return kept;
    }
    const radius = Math.sqrt(-2 * Math.log(this.uniform()));
    const angle = 2 * Math.PI * this.uniform();
    this.spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  }

  /** Fill with standard normal numbers. */
  normals(out, count = out.length) {
    for (let i = 0; i < count; i++) out[i] = this.normal();
    return out;
  }
}
