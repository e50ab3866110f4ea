"""The three carriers: a generative model is a field and something that carries it.

The same field object goes into any carrier:

    critic = DiscriminatorField(network, "non-saturating", conditions=("t",))
    ParticleModel(critic, prior, steps=56, eta=20.0)    # Discriminator Flow
    GeneratorModel(critic, generator, latent)           # GAN
    FlowMapModel(flow, network)                         # where the flow's particles end, in one call

All answer the same questions: *give me particles* to train the field on, *sample n*, and *what do
you train*. A :class:`ParticleModel` integrates the field (GPM Definition 1); a
:class:`GeneratorModel` trains a generator whose outputs follow it (GPM Definition 2); a
:class:`FlowMapModel` learns the integral of a field along time (framework §11).
"""

from partikel.models.base import Carrier, Sampling
from partikel.models.flow_map import NO_MAP, Diagonal, FlowMapModel, no_map, own_flow
from partikel.models.generator import GeneratorModel, generate, surrogate_loss
from partikel.models.map_losses import (
    Consistency,
    Endpoints,
    ImprovedMeanFlow,
    Lagrangian,
    MapLoss,
    MeanFlow,
    Semigroup,
)
from partikel.models.ntk import kernel_operator, ntk_matrix, ntk_operator, ntk_spectrum
from partikel.models.particle import ParticleModel, free_particles, nodes_at
from partikel.models.placing import Placement, place_nodes
from partikel.models.pooled import PooledParticleModel
from partikel.models.reflow import Reflow
from partikel.models.staged import StagedParticleModel

__all__ = [
    "NO_MAP",
    "Carrier",
    "Consistency",
    "Diagonal",
    "Endpoints",
    "FlowMapModel",
    "GeneratorModel",
    "ImprovedMeanFlow",
    "Lagrangian",
    "MapLoss",
    "MeanFlow",
    "ParticleModel",
    "Placement",
    "PooledParticleModel",
    "Reflow",
    "Sampling",
    "Semigroup",
    "StagedParticleModel",
    "free_particles",
    "generate",
    "no_map",
    "nodes_at",
    "kernel_operator",
    "ntk_matrix",
    "ntk_operator",
    "ntk_spectrum",
    "own_flow",
    "place_nodes",
    "surrogate_loss",
]
