// The guided tour: a title, what there is to see, and the settings that show it.

export const TOUR = [
  {
    title: "Noise becomes data",
    text:
      "Every orange dot is a particle; blue diamonds are the data. Each particle follows one velocity, " +
      "from noise (σ = 10) to the data. This is the probability flow of a diffusion model: no noise on " +
      "the way, smooth paths.",
    set: { g2: 2, lambda2: 2 },
  },
  {
    title: "Other paths, the same law",
    text:
      "One step down on the map: the diffusion SDE. Noise shakes every path, and yet the particles end " +
      "in the same law: the energy distance stays at the level of two draws of the data.",
    set: { g2: 2, lambda2: 1 },
  },
  {
    title: "Few steps tell solvers apart",
    text:
      "Twelve evaluations for each particle. DPM-Solver++ extrapolates what it has seen; choose Euler " +
      "and look at the energy distance.",
    set: { g2: 2, lambda2: 2, solver: "dpmpp-2m", steps: 12, levels: 7 },
  },
  {
    title: "The discriminator alone",
    text:
      "The corner (0, 0): a GAN, without its generator. There is no score: particles ascend the " +
      "log-ratio of the data's density and their own, here estimated from where they are.",
    set: { g2: 0, lambda2: 0 },
  },
  {
    title: "A wrong score",
    text:
      "The score believes that the data lie 1.5 further to the right. A diffusion model has nothing " +
      "else to go by: it ends beside the data.",
    set: { g2: 2, lambda2: 1, error: 1.5 },
  },
  {
    title: "What a discriminator repairs",
    text:
      "The same wrong score, but at g² = β half of the weight is on a discriminator, which sees where the " +
      "particles are and where the data are. Drag the point to the left: the further, the more it repairs.",
    set: { g2: 0.5, lambda2: 0.5, error: 1.5 },
  },
  {
    title: "The same field, in a generator",
    text:
      "A small network is trained so that its outputs follow the field of the GAN's corner. Black arrows " +
      "are the field, green ones what the generator makes of it: neighbours move together, so that it " +
      "smooths.",
    set: { g2: 0, lambda2: 0, carrier: "generator", arrows: true },
  },
  {
    title: "One discriminator, two carriers",
    text:
      "A network is trained to tell data from particles, which ascend it: a Discriminator Flow, whose runs " +
      "become better as it learns. Let a generator carry it, and the same discriminator is a GAN.",
    set: { field: "critic", data: "moons" },
  },
];
