"""The two carriers: a generative model is a field and something that carries it.

The same field object goes into either carrier:

    critic = DiscriminatorField(network, "non-saturating", conditions=("t",))
    ParticleModel(critic, prior, steps=56, eta=20.0)    # Discriminator Flow
    GeneratorModel(critic, generator, latent)           # GAN

Both answer the same questions: *give me particles* to train the field on, *sample n*, and *what do
you train*. A :class:`ParticleModel` integrates the field (GPM Definition 1); a
:class:`GeneratorModel` trains a generator whose outputs follow it (GPM Definition 2).
"""

from partikel.models.base import Carrier, Sampling
from partikel.models.generator import GeneratorModel, generate, surrogate_loss
from partikel.models.ntk import kernel_operator, ntk_matrix, ntk_operator, ntk_spectrum
from partikel.models.particle import ParticleModel, free_particles, nodes_at
from partikel.models.pooled import PooledParticleModel
from partikel.models.staged import StagedParticleModel

__all__ = [
    "Carrier",
    "GeneratorModel",
    "ParticleModel",
    "PooledParticleModel",
    "Sampling",
    "StagedParticleModel",
    "free_particles",
    "generate",
    "nodes_at",
    "kernel_operator",
    "ntk_matrix",
    "ntk_operator",
    "ntk_spectrum",
    "surrogate_loss",
]
