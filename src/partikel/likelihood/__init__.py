"""Likelihood of particle models: exact by their ODE, bounded for their SDEs, of their maps (DiffFlow §5).

    Ode().log_prob(model, x, generator=generator).log_prob

The three answers, of :class:`Ode`, :class:`Elbo` and :class:`Map`, are of three laws: the ODE's, the SDE's,
and that of the steps that are taken. They are the same where networks and steps are fine enough;
:func:`agreement` tells.
"""

from partikel.likelihood.agreement import Agreement, agreement
from partikel.likelihood.bound import (
    Elbo,
    GenerativeSDE,
    Inference,
    MaximumLikelihood,
    elbo_loss,
    generative_sde,
)
from partikel.likelihood.dataset import Points, Report, dataset_likelihood
from partikel.likelihood.flow import (
    ProbabilityFlow,
    check_derivative,
    divergence,
    probability_flow,
)
from partikel.likelihood.images import bits_per_dim, byte_width, dequantised
from partikel.likelihood.maps import EulerMap, Map
from partikel.likelihood.method import Densities, Method
from partikel.likelihood.ode import Integrator, Ode, decode, encode, reconstruction_error

__all__ = [
    "Agreement",
    "Densities",
    "Elbo",
    "EulerMap",
    "GenerativeSDE",
    "Inference",
    "Integrator",
    "Map",
    "MaximumLikelihood",
    "Method",
    "Ode",
    "Points",
    "ProbabilityFlow",
    "Report",
    "agreement",
    "bits_per_dim",
    "byte_width",
    "check_derivative",
    "dataset_likelihood",
    "decode",
    "dequantised",
    "divergence",
    "elbo_loss",
    "encode",
    "generative_sde",
    "probability_flow",
    "reconstruction_error",
]
