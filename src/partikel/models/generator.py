"""A generator that follows a field in training time (GPM Definition 2, eqs. 10-11)."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor, nn

from partikel.data import Batch
from partikel.errors import ConfigError
from partikel.errors.checks import NotNegative, Positive, Range, checked
from partikel.fields import At, Context, Field, Loss, LossValue, TrainingBatch
from partikel.fields.base import unique_losses
from partikel.fields.particles import Particles
from partikel.models.base import Carrier, Sampling
from partikel.priors import Prior
from partikel.streams import Streams
from partikel.tensors import Asking, flat_sum


@checked
def surrogate_loss(x: Tensor, velocity: Tensor) -> Tensor:
    """-⟨g_θ(z), stopgrad ∇h(g_θ(z))⟩ for each sample: its gradient is -J_θ g(z)ᵀ ∇h (GPM eq. 11).

    Args:
        x: (B, ...) generated points, with a graph to the generator's weights.
        velocity: (B, ...) the field there; detached here.

    Returns:
        (B,) losses. Their value means nothing, their gradient does.
    """
    return -flat_sum(x * velocity.detach())


@checked
def generate(generator: nn.Module, z: Tensor, cond: Tensor | None = None) -> Tensor:
    """g(z), without gradients."""
    with torch.no_grad():
        return _called(generator, z, cond)


def _called(generator: nn.Module, z: Tensor, cond: Tensor | None) -> Tensor:
    with Asking(generator, z, cond=cond):
        return generator(z, None, cond)


class GeneratorModel(Carrier):
    """A generator g_θ whose outputs follow the field as θ is trained (GPM Definition 2).

    Args:
        field: what moves the outputs.
        generator: g_θ, called as ``generator(z, None, cond)``.
        prior: the law p_z of latents.
        horizon: the generation time at which the field is asked about outputs, which are samples.
        eta: None descends the surrogate loss. A number η moves the outputs one step along the field,
            x' = x + η ∇h(x), and fits the generator to x' by least squares (DiffFlow Algorithm 1); one
            SGD step of rate lr/η on the same latents is the surrogate's step of rate lr, several
            (a phase with ``repeats``, ``reuse`` and ``same``) are another model.
        annealing: how many draws of particles generation time takes from 0 to the horizon: time is
            training time (GPM Definition 2), so that a discriminator with a schedule compares with
            data whose noise falls as training goes on (DiffFlow §3.3.2). 0 stays at the horizon.
        conditional: whether the generator takes labels. A field of samples then compares the points of
            each class with the real samples of that class.
        label_weights: (K,) shares of the classes, of a conditional model.
    """

    kind = "generator"
    shared_calls = True
    draws: Tensor

    def __init__(
        self,
        field: Field,
        generator: nn.Module,
        prior: Prior,
        *,
        horizon: NotNegative = 1.0,
        eta: Positive | None = None,
        annealing: Annotated[int, Range(least=0)] = 0,
        conditional: bool = False,
        label_weights: Tensor | None = None,
    ) -> None:
        super().__init__(field, prior, conditional, label_weights)
        self.eta = eta
        self.generator = generator
        self.horizon = horizon
        self.annealing = annealing
        if annealing:  # a buffer: a checkpoint knows how far it is
            self.register_buffer("draws", torch.tensor(0))

    @property
    def sampled(self) -> nn.Module:
        """The generator."""
        return self.generator

    def losses(self) -> tuple[Loss, ...]:
        """The field's, then the generator's surrogate loss."""
        needs = frozenset(self.field.needs & {"real"})
        if self.conditional:
            needs |= {"real"}  # whose labels the generated points share
        compute = self._surrogate
        if self.eta is not None:
            needs, compute = needs | {"particles", "moved"}, self._fit
        together = self.eta is None and "particles" in self.field.needs
        whole = self._follow_whole if together else None
        own = Loss("generator", self.generator, needs, compute, whole=whole)
        return unique_losses([*self.field.losses(), own])

    def particles(
        self,
        n: int,
        streams: Streams,
        *,
        cond: Tensor | None = None,
        real: Tensor | None = None,
    ) -> Particles:
        """g(z) for fresh latents, as the generator stands."""
        z = self.start(n, streams.latent)
        x = generate(self.generator, z, cond)
        particles = Particles(x, self._time(x).expand(len(x)), cond=cond, latent=z)
        if self.annealing:
            self.draws += 1
        return particles

    def _sampled(
        self, start: Tensor, cond: Tensor | None, context: Context, sampling: Sampling
    ) -> Tensor:
        given = sorted(sampling.protocol)
        if given:
            trained = " (a Score GAN learns it in training)" if "guidance" in given else ""
            raise ConfigError(
                f"a generator makes samples in one call: leave out {', '.join(given)}{trained}."
            )
        return generate(self.generator, start, cond)

    def _surrogate(self, batch: TrainingBatch) -> LossValue:
        if batch.particles is None:
            cond = batch.labels
            x = _called(self.generator, self.start(batch.size, batch.streams.latent), cond)
            at = At(self._time(x), None, cond)
            velocity = self._velocity(x.detach(), at, batch.real, batch.streams)
        else:
            assert batch.particles.latent is not None
            assert batch.particles.velocity is not None
            x = _called(self.generator, batch.particles.latent, batch.particles.cond)
            velocity = batch.particles.velocity
        rms = velocity.square().mean().sqrt()
        return LossValue(surrogate_loss(x, velocity), {"field_rms": rms})

    def _follow_whole(self, batch: TrainingBatch) -> TrainingBatch:
        """The batch with what its outputs follow, all of which are the field's cloud."""
        z, cond = self.start(batch.size, batch.streams.latent), batch.labels
        x = generate(self.generator, z, cond)
        t = self._time(x)
        velocity = self._velocity(x, At(t, None, cond), batch.real, batch.streams)
        made = Particles(x, t.expand(len(x)), cond=cond, latent=z, velocity=velocity)
        return replace(batch, particles=made)

    def pull(
        self,
        x: Tensor,
        *,
        generator: torch.Generator,
        cond: Tensor | None = None,
        real: Tensor | None = None,
    ) -> Tensor | None:
        """See :meth:`Carrier.pull`."""
        if cond is not None and self.field.needs & {"real", "particles"}:
            return None
        at = At(self._time(x), None, cond)
        return self.field.bind(Context(real=real, generator=generator))(x, at)

    def move(
        self, particles: Particles, streams: Streams, real: Batch | Tensor | None
    ) -> Particles:
        """The same particles, with ``moved`` = x + η ∇h(x)."""
        assert self.eta is not None
        real = Batch(real, None) if isinstance(real, Tensor) else real
        velocity = self._velocity(particles.x, particles.at, real, streams)
        return replace(particles, moved=particles.x + self.eta * velocity)

    def _velocity(self, x: Tensor, at: At, real: Batch | None, streams: Streams) -> Tensor:
        """The field at outputs, without gradients; of each class by itself where it compares samples.

        Fields of samples know no labels: asked about the points of a class, bound to the real samples of
        that class, they compare the joint laws of points and labels. Classes of which a batch has too few
        points, one in a cloud, wait for another batch.
        """
        context = Context(real=None if real is None else real.x, generator=streams.noise)
        compares = self.field.needs & {"real", "particles"}
        with torch.no_grad():
            if at.cond is None or not compares:
                return self.field.bind(context)(x, at)
            labels = None if real is None else real.cond
            if at.cond.ndim != 1 or (labels is None and "real" in compares):
                raise ConfigError(
                    "a field of samples compares them class by class: give the real samples and what is "
                    "generated one label each."
                )
            velocity, met = torch.zeros_like(x), False
            least = 2 if "particles" in compares else 1
            for label in at.cond.unique():
                rows, theirs = at.cond == label, context
                sizes = [int(rows.sum())]
                if real is not None and labels is not None:
                    theirs = replace(context, real=real.x[labels == label])
                    sizes += [int((labels == label).sum())] * ("real" in compares)
                if min(sizes) >= least:
                    t, met = at.t if at.t.ndim == 0 else at.t[rows], True
                    velocity[rows] = self.field.bind(theirs)(x[rows], At(t, None, at.cond[rows]))
        if not met:
            raise ConfigError(
                f"no class has {least} or more points in a batch of {len(x)}, so that a field of samples "
                "has nothing to compare: enlarge the batch."
            )
        return velocity

    def _fit(self, batch: TrainingBatch) -> LossValue:
        """½‖g(z) - x'‖² for each sample."""
        particles = batch.particles
        assert particles is not None
        assert particles.latent is not None
        assert particles.moved is not None
        x = _called(self.generator, particles.latent, particles.cond)
        return LossValue(flat_sum((x - particles.moved).square()) / 2)

    def _time(self, x: Tensor) -> Tensor:
        time = x.new_tensor(self.horizon)
        if self.annealing:
            time = time * (self.draws / self.annealing).clamp(max=1).to(time)
        return time
