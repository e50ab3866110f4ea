// Objectives of a discriminator d, high on data: it minimises E_p[b(d)] + E_ρ[a(d)]; particles ascend c(d).
// What is needed of them are the slopes a', b' and c', and c itself for shading.

import { softplus } from "./networks.js";

const sigmoid = (d) => 1 / (1 + Math.exp(-d));
const one = () => 1;
const logistic = { b: (d) => -sigmoid(-d), a: sigmoid };

/** An f-GAN from the slope of g_f, that of the conjugate, which is h(r), and the conjugate. */
const fgan = (label, activation, conjugate, potential) => ({
  label,
  b: (d) => -activation(d),
  a: conjugate,
  c: conjugate,
  potential,
});

export const OBJECTIVES = {
  "non-saturating": {
    label: "non-saturating: log sigmoid(d)",
    ...logistic,
    c: (d) => sigmoid(-d),
    potential: (d) => -softplus(-d),
  },
  saturating: { label: "saturating: softplus(d)", ...logistic, c: sigmoid, potential: softplus },
  logit: { label: "logit: d, the flow of KL(ρ‖p)", ...logistic, c: one, potential: (d) => d },
  lsgan: {
    label: "least squares: −(d − 1)²",
    b: (d) => 2 * (d - 1),
    a: (d) => 2 * d,
    c: (d) => -2 * (d - 1),
    potential: (d) => -((d - 1) ** 2),
  },
  hinge: {
    label: "hinge: d",
    b: (d) => (d < 1 ? -1 : 0),
    a: (d) => (d > -1 ? 1 : 0),
    c: one,
    potential: (d) => d,
  },
  ipm: { label: "WGAN: d", b: () => -1, a: one, c: one, potential: (d) => d },
  "f-kl": fgan("f-GAN, KL(ρ‖p)", (d) => Math.exp(-d), one, (d) => d - 1),
  "f-reverse-kl": fgan("f-GAN, KL(p‖ρ)", one, Math.exp, Math.exp),
  "f-jensen-shannon": fgan(
    "f-GAN, Jensen–Shannon",
    (d) => sigmoid(-d),
    sigmoid,
    (d) => softplus(d) - Math.LN2,
  ),
  "f-pearson": fgan(
    "f-GAN, Pearson χ²",
    (d) => 2 * Math.exp(-2 * d),
    (d) => 2 * Math.exp(-d),
    (d) => 2 - 2 * Math.exp(-d),
  ),
  "f-hellinger": fgan(
    "f-GAN, Hellinger",
    (d) => 0.5 * Math.exp(-d / 2),
    (d) => 0.5 * Math.exp(d / 2),
    (d) => Math.exp(d / 2) - 1,
  ),
  "f-jeffreys": fgan(
    "f-GAN, Jeffreys",
    (d) => 1 + Math.exp(-d),
    (d) => 1 + Math.exp(d),
    (d) => Math.exp(d) + d - 1,
  ),
};
