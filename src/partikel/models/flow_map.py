"""Flow maps: the carrier that has learned where a field's particles end up (framework §11).

X_{s→t}(x) is where dx/dt = v(x, t) takes x from s to t; a network learns the average velocity on the way,
U(x, s, t) = (X_{s→t}(x) - x)/(t - s), whose diagonal U(x, s, s) is v(x, s).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from partikel.denoising import VelocityDenoiser
from partikel.errors import ConfigError
from partikel.errors.checks import Count, Part, Range, checked, shown
from partikel.fields import (
    At,
    Context,
    Coupling,
    Field,
    Guided,
    Independent,
    Loss,
    LossValue,
    Pairs,
    TrainingBatch,
    VelocityField,
)
from partikel.fields.guidance import hide_labels
from partikel.fields.particles import Particles
from partikel.fields.velocity import on_the_way, through, velocity_in
from partikel.models.base import Carrier, Sampling
from partikel.models.map_losses import (
    Endpoints,
    Lagrangian,
    MapLoss,
    MeanFlow,
    Points,
    Semigroup,
)
from partikel.models.particle import ParticleModel, depends_on_cloud, free_particles
from partikel.models.reflow import Reflow
from partikel.objectives import exact
from partikel.priors import GaussianPrior, Prior
from partikel.schedules import Nodes, Schedule, UniformGrid
from partikel.solvers import Dynamics, Heun, Solver, State, Step
from partikel.streams import Streams
from partikel.tensors import Asking, columns, expand_like

GuidanceWeight = Annotated[float, Range(least=1.0, most=100.0)]
"""Of the labels, 1 for what was learned from them alone."""
SHOWN = 24
"""Times at which a map is shown on its way."""


class FlowMapModel(Carrier):
    """A network that jumps: x + (t - s) U_θ(x, s, t), learned from a flow of free particles.

    Of a trained flow (distillation) v is its velocity; of a flow that is the map's own diagonal
    (:func:`own_flow`) v is learned from data with the map. Samples are K jumps from t = 0 to T, one unless
    asked for more, on any nodes; those of a consistency model lead to the data, which are noised in between.

    The network is called as ``network(x, c, cond)`` with c = (s, t - s), (B, 2) or (1, 2), in units of T,
    and a third entry where the weight of guidance is an input. It is differentiated forward in x, s and t.

    Args:
        flow: free particles with a velocity of (x, t).
        network: U_θ.
        loss: how it is learned: MeanFlow from data, the Lagrangian equation from a velocity known at all
            times, the semigroup from a flow of N trained steps, unless given. Endpoints learns one call only,
            of a trained flow.
        steps: K, jumps of sampling.
        teacher: decay of the average of weights that targets are made of; None takes the present ones.
        guidance: weight of the labels, of a conditional model: a number is learned as it is; of a pair
            (low, high) all between, as an input of the network.
        label_dropout: share of labels hidden in training.

    Attributes:
        nodes: (N + 1,) the times of a flow that is known at its own steps only, in float64.
        learns_itself: whether the flow is the map's own diagonal.
        one_call: whether it learns where its flow ends, and no jump between.
        simulated: whether it is trained at the flow's own particles.

    Raises:
        ConfigError: for a flow without a velocity of (x, t) alone: one that moves with noise, looks at the
            cloud or at samples, or draws; a loss that does not fit it; or a network that cannot be
            differentiated forward.
    """

    kind = "flow map"
    teacher: nn.Module | None

    def __init__(
        self,
        flow: Carrier,
        network: nn.Module,
        loss: MapLoss | None = None,
        *,
        steps: Count = 1,
        teacher: Part | None = None,
        guidance: GuidanceWeight | tuple[GuidanceWeight, GuidanceWeight] = 1.0,
        label_dropout: Part = 0.1,
    ) -> None:
        flow = free_particles(
            flow,
            "a flow map learns where free particles go, and this model has none: name another.",
        )
        _check_flow(flow)
        _check_network(network)
        super().__init__(flow.field, flow.prior, flow.conditional, flow.label_weights)
        self._flow = (flow,)  # its field is this carrier's: as a submodule it would be saved twice
        self.network = network
        self.horizon, self.schedule = flow.horizon, flow.schedule
        self.shape = flow.prior.shape
        self.steps: int = steps  # type: ignore[override]  # no call without steps here
        learned = velocity_in(flow.field)
        own = None if learned is None else learned.denoiser.network
        self.learns_itself = isinstance(own, Diagonal) and own.network is network
        self.nodes = None if flow.follows_path else flow.grid.nodes(flow.steps)
        usual = Lagrangian if flow.follows_path else Semigroup
        self.loss = loss or (MeanFlow() if self.learns_itself else usual())
        self.one_call = isinstance(self.loss, Endpoints)
        if self.one_call:
            _check_one_call(steps)
        on_nodes = isinstance(self.loss, Semigroup) and self.loss.step == 0
        if not (flow.follows_path or on_nodes or self.one_call):
            raise ConfigError(
                "this flow was trained for its own steps and is not known between them: learn its map by "
                "the semigroup on its nodes (Semigroup()), or where it ends (Endpoints())."
            )
        if self.learns_itself and (self.loss.simulated or self.one_call):
            raise ConfigError(
                "a map that learns from data has no flow to simulate yet: leave out simulated, and "
                "Endpoints."
            )
        self.simulated = (
            not (flow.follows_path or self.one_call)
            if self.loss.simulated is None
            else self.loss.simulated
        )
        self._ends = Reflow(flow, self.loss.size) if isinstance(self.loss, Endpoints) else None
        if self._ends and (self.simulated or guidance != 1):
            raise ConfigError(
                "Endpoints learns the ends of the flow's own paths as they are: leave out simulated and "
                "guidance."
            )
        if guidance != 1 and not self.conditional:
            raise ConfigError("guidance weighs labels: train on labels, or leave guidance out.")
        if isinstance(guidance, tuple) and guidance[0] > guidance[1]:
            raise ConfigError(f"weights of guidance lie between (low, high), got {guidance}.")
        self.guidance = guidance
        self.label_dropout = label_dropout
        self.decay = teacher
        self.teacher = None
        if teacher is not None:
            self.teacher = copy.deepcopy(network).requires_grad_(False)

    # --- what it is made of

    @property
    def flow(self) -> ParticleModel:
        """The flow whose map it is."""
        return self._flow[0]

    @property
    def sampled(self) -> nn.Module:
        """The network."""
        return self.network

    def alone(self) -> FlowMapModel:
        """See :meth:`Carrier.alone`: a teacher's field then refuses to be asked."""
        if not self.learns_itself:
            flow, self.field = self.flow, _Left()
            options = {"steps": flow.steps, "schedule": flow.schedule, "grid": flow.grid}
            self._flow = (ParticleModel(self.field, flow.prior, **options),)
            self._ends = None
        return self

    def losses(self) -> tuple[Loss, ...]:
        """The field's, where it still learns, then the map's."""
        needs = {"particles"} if self.simulated else {"real"}
        own = Loss("map", self.network, frozenset(needs), self._loss, adds_noise=True)
        return (*self.field.losses(), own)

    def updated(self) -> None:
        """Move the teacher after the network."""
        if self.teacher is None or self.decay is None:
            return
        with torch.no_grad():
            ours, theirs = self.network, self.teacher
            averages, values = [*theirs.parameters()], [*ours.parameters()]
            torch._foreach_lerp_(averages, values, 1 - self.decay)  # pyright: ignore
            for kept, now in zip(theirs.buffers(), ours.buffers(), strict=True):
                kept.copy_(now)

    # --- the map

    def jump(
        self,
        x: Tensor,
        s: Tensor,
        t: Tensor,
        cond: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """X_{s→t}(x): points (B, ...), times () or (B,), 0 <= s <= t <= T.

        Raises:
            ConfigError: for a jump back, or times that are none.
        """
        if not ((s >= 0) & (s <= t) & (t <= self.horizon * (1 + 1e-6))).all():
            raise ConfigError(
                f"a flow map jumps forward in time only: give times 0 <= s <= t <= {self.horizon:g}."
            )
        return self._jump(Points(x, s, t, None, cond, weight))

    def _jump(self, points: Points) -> Tensor:
        x, length = points.x, points.t - points.s
        return x + expand_like(length, x) * self._asked(self.network, points)

    def _asked(self, network: nn.Module, points: Points) -> Tensor:
        """U(x, s, t)."""
        told = [points.s / self.horizon, (points.t - points.s) / self.horizon]
        if isinstance(self.guidance, tuple):
            weight = points.weight
            told.append(torch.ones_like(told[0]) if weight is None else weight)
        c = columns(*told)
        with Asking(network, points.x, c=c, cond=points.cond):
            return network(points.x, c.to(points.x.dtype), points.cond)

    @torch.no_grad()
    def average(self, points: Points) -> Tensor:
        """U(x, s, t) of the network whose targets are followed."""
        return self._asked(self.teacher or self.network, points)

    @torch.no_grad()
    def derivative(
        self, points: Points, velocity: Tensor, ds: float, dt: float
    ) -> tuple[Tensor, Tensor]:
        """U(x, s, t) and its derivative along (velocity, ds, dt), by forward differentiation.

        Attention is computed by its formula, which has such a derivative; the fused kernels have none.

        Raises:
            ConfigError: for a network that has none.
        """

        def asked(x: Tensor, s: Tensor, t: Tensor) -> Tensor:
            return self._asked(self.teacher or self.network, points.like(x, s, t))

        x, s, t = points.x, points.s, points.t
        tangents = (velocity, torch.full_like(s, ds), torch.full_like(t, dt))
        try:
            with sdpa_kernel(SDPBackend.MATH), exact():
                value, slope, *_ = torch.func.jvp(asked, (x, s, t), tangents)
                return value, slope
        except (RuntimeError, ValueError) as error:
            if not any(words in str(error) for words in _NO_DERIVATIVE):
                raise
            raise _no_derivative(self.network) from error

    @torch.no_grad()
    def velocity(self, points: Points) -> Tensor:
        """V(x, s) of the flow; of a map that learns from data, its own."""
        if self.learns_itself:
            return self.average(points.like(points.x, points.s, points.s))
        flow, field = self.flow, self.field
        if points.weight is not None:
            weight = points.weight
            field = Guided(field, lambda t: weight)
        elif not isinstance(self.guidance, tuple) and self.guidance != 1:
            field = Guided(field, self.guidance)
        return flow.velocity(points.x, points.s, points.cond, field)

    @torch.no_grad()
    def stepped(self, points: Points, solver: Solver) -> Tensor:
        """Where one step of a solver takes x from s to t, each point over its own interval."""
        x, s, length = points.x, points.s, points.t - points.s

        def drift(x: Tensor, place: Tensor) -> Tensor:
            now = s + place * length
            return expand_like(length, x) * self.velocity(points.like(x, now, now))

        return solver.step(Dynamics(drift), x, Step(0.0, 1.0))

    def on_the_way(self, pairs: Pairs, t: Tensor) -> Tensor:
        """Points of the paths between pairs; straight ones where the flow has no path of noised data."""
        if self.flow.schedule is None:
            return torch.lerp(pairs.x0, pairs.x1, expand_like(t / self.horizon, pairs.x0))
        return on_the_way(self._path, pairs, t)[0]

    # --- training

    def particles(
        self,
        n: int,
        streams: Streams,
        *,
        cond: Tensor | None = None,
        real: Tensor | None = None,
    ) -> Particles:
        """Those of the flow."""
        return self.flow.particles(n, streams, cond=cond, real=real)

    @property
    def _path(self) -> Schedule:
        assert self.flow.schedule is not None
        return self.flow.schedule

    @property
    def _coupling(self) -> Coupling:
        """The law of the ends of the paths that points are on."""
        learned = velocity_in(self.field)
        known = None if learned is None else learned.coupling
        return known or Independent(GaussianPrior(self.prior.shape))

    def _loss(self, batch: TrainingBatch) -> LossValue:
        points = self._points(batch)
        with torch.no_grad():
            target = self.loss.target(self, points)
        residual = self._asked(self.network, points) - target
        return LossValue(self.loss.weighted(residual))

    def _points(self, batch: TrainingBatch) -> Points:
        """Points at s with times t, labels and weights."""
        time = batch.streams.time
        pairs = velocity = None
        if self._ends is not None:
            assert batch.real is not None
            pairs = self._ends.pairs(batch.real, batch.streams)
            s = pairs.x0.new_zeros(len(pairs.x0))
            t = torch.full_like(s, self.horizon)
            return Points(pairs.x0, s, t, cond=pairs.cond, pairs=pairs)
        if batch.particles is not None:
            x, cond = batch.particles.x, batch.particles.cond
            s, t = self.loss.times(len(x), self, batch.particles.t, generator=time, like=x)
        else:
            assert batch.real is not None
            pairs = self._coupling.pairs(batch.real, batch.streams)
            s, t = self.loss.times(len(pairs.x1), self, None, generator=time, like=pairs.x1)
            x, velocity, pairs = through(self._coupling, self._path, pairs, s)
            cond = pairs.cond
        if self.label_weights is not None:
            cond = hide_labels(cond, len(self.label_weights), self.label_dropout, generator=time)
        draws = torch.rand(2, len(x), generator=time, dtype=x.dtype, device=x.device)
        weight = None
        if isinstance(self.guidance, tuple):
            low, high = self.guidance
            weight = low + (high - low) * draws[1]
        points = Points(x, s, t, None, cond, weight, pairs, draws[0])
        if velocity is None or not self.learns_itself:
            return points
        return points._replace(velocity=self._guided(points, velocity))

    def _guided(self, points: Points, velocity: Tensor) -> Tensor:
        """v_c + (1 - 1/w) (U(x, s, s | c) - U(x, s, s | ∅)), which the flow guided by w is the mean of."""
        if points.cond is None or self.guidance == 1:
            return velocity
        weight = points.weight
        if weight is None:
            weight = torch.full_like(points.s, float(self.guidance))  # type: ignore[arg-type]
        labelled = self.velocity(points)
        without = self.velocity(points._replace(cond=None, weight=None))
        assert self.label_weights is not None
        share = torch.where(points.cond == len(self.label_weights), 0.0, 1 - 1 / weight)
        return velocity + expand_like(share, points.x) * (labelled - without)

    # --- sampling

    def _sampled(
        self, start: Tensor, cond: Tensor | None, context: Context, sampling: Sampling
    ) -> Tensor:
        nodes, x = self._jumps(sampling).to(start), start
        weight, end = self._weight(x, sampling.guidance), x.new_tensor(self.horizon)
        with torch.no_grad():
            for k, (s, t) in enumerate(zip(nodes[:-1], nodes[1:], strict=True)):
                if k and self.loss.to_end:  # from the data back to noise
                    if context.generator is None:
                        raise ConfigError(
                            "a consistency map draws noise between its jumps, and nothing is drawn here: "
                            "take one jump."
                        )
                    x = self._path.noised(x, s, generator=context.generator)
                x = self._jump(Points(x, s, end if self.loss.to_end else t, None, cond, weight))
        return x

    def stream(
        self,
        x: Tensor,
        *,
        generator: torch.Generator,
        cond: Tensor | None = None,
        real: Tensor | None = None,
        sampling: Sampling | None = None,
        **options: Any,
    ) -> Iterator[State]:
        """Where starts are at times between, by one jump from t = 0 each; see :meth:`Carrier.stream`.

        A map that jumps to the end only shows the straight paths to there.
        """
        if sampling is None and options.get("grid") is None:
            options["steps"] = options.get("steps") or SHOWN
        sampling = Sampling.of(sampling, **options)
        x, weight = self._begun(x), self._weight(x, sampling.guidance)
        nodes, zero = self._jumps(sampling, shown=True), x.new_zeros(())
        for k, t in enumerate(nodes.to(x)):
            with torch.no_grad():
                to = torch.full_like(t, self.horizon) if self.loss.to_end else t
                moved = self.jump(x, zero, to, cond, weight)
            if self.loss.to_end:
                moved = self.on_the_way(Pairs(x, moved), t)
            yield State(k, float(nodes[k]), moved, k)

    def paths(
        self,
        x: Tensor,
        *,
        generator: torch.Generator,
        cond: Tensor | None = None,
        steps: int | None = None,
    ) -> Iterator[State]:
        """See :meth:`Carrier.paths`: by Heun's steps, or by the flow's own where it is known at those only.

        A consistency model of data has learned no velocity.
        """
        if self.loss.to_end and self.learns_itself:
            return
        nodes = self._jumps(Sampling.of(steps=steps or SHOWN), shown=True)
        options: dict[str, Any] = {}
        if self.nodes is None:
            options = {"grid": Nodes(times=tuple(nodes.tolist())), "solver": Heun()}
        low = self.guidance[0] if isinstance(self.guidance, tuple) else self.guidance
        if low != 1 and not self.learns_itself:
            options["guidance"] = low
        for state in self.flow.stream(self._begun(x), generator=generator, cond=cond, **options):
            if (nodes - state.t).abs().min() < 1e-6 * self.horizon:
                yield state

    def evaluations(
        self, *, real: Tensor | None = None, sampling: Sampling | None = None, **options: Any
    ) -> int:
        """K."""
        return len(self._jumps(Sampling.of(sampling, **options))) - 1

    def _jumps(self, sampling: Sampling, shown: bool = False) -> Tensor:
        """The nodes that samples jump between, in float64; those at which they are only shown."""
        other = [name for name in ("solver", "path") if getattr(sampling, name) is not None]
        if other:
            raise ConfigError(
                f"a flow map jumps, and follows nothing: leave out {', '.join(other)}."
            )
        grid, own = sampling.grid or Nodes(), self.nodes
        if own is None:
            nodes = grid.of(UniformGrid(self.horizon), self.steps, self.horizon)
        elif grid.times is None:  # the flow's own nodes, as evenly as there are
            jumps = min(grid.steps or self.steps, len(own) - 1)
            nodes = own[torch.linspace(0, len(own) - 1, jumps + 1).round().long()]
        else:
            nodes = grid.of(UniformGrid(self.horizon), self.steps, self.horizon)
            if (nodes[:, None] - own).abs().amin(1).max() > 1e-6 * self.horizon:
                raise ConfigError(
                    f"this map knows the nodes of its flow's {len(own) - 1} steps only."
                )
        if self.one_call and not shown:
            _check_one_call(len(nodes) - 1)
        if sampling.stop is not None and sampling.stop >= len(nodes):
            raise ConfigError(f"cannot stop after {sampling.stop} jumps of {len(nodes) - 1}.")
        return nodes if sampling.stop is None else nodes[: sampling.stop + 1]

    def _weight(self, x: Tensor, guidance: object) -> Tensor | None:
        if isinstance(self.guidance, tuple):
            low, high = self.guidance
            wanted = 1.0 if guidance is None else guidance
            if guidance is not None and not (
                isinstance(wanted, (int, float)) and low <= wanted <= high
            ):
                raise ConfigError(
                    f"this map knows guidance from {low:g} to {high:g}, got {shown(guidance)}."
                )
            return x.new_tensor(max(low, float(wanted)))  # type: ignore[arg-type]
        if guidance is not None and guidance != self.guidance:
            raise ConfigError(
                f"a flow map learns guidance in training, this one {self.guidance:g}: leave guidance out, "
                "or train one with a pair of weights."
            )
        return None


class _Left(Field):
    """A field that was left behind."""

    def forward(self, x: Tensor, at: At) -> Tensor:
        """Refused."""
        raise ConfigError(
            "this is a flow map alone, without the flow that it has learned: ask the run that it was "
            "exported from."
        )


class Diagonal(nn.Module):
    """v(x, t) = U(x, t, t) of a flow map's network, called as a velocity's network is.

    Args:
        network: U; it belongs to the map, which holds, trains and saves it.
        scalars: how many numbers it is told: s, t - s, and the weight of guidance, here 1.
    """

    def __init__(self, network: nn.Module, scalars: int = 2) -> None:
        super().__init__()
        self._network = (network,)
        self._more = scalars - 2

    @property
    def network(self) -> nn.Module:
        """U."""
        return self._network[0]

    def forward(self, x: Tensor, c: Tensor, cond: Tensor | None = None) -> Tensor:
        """U(x, t, t), told (t, 0)."""
        more = [torch.ones_like(c)] * self._more
        return self.network(x, torch.cat([c, torch.zeros_like(c), *more], 1), cond)


_NO_DERIVATIVE = (
    "forward AD",
    "forward-mode",
    "functorch",
    "torch.func",
    "jvp",
    "vmap",
    "saved_mean",
)
"""Words of PyTorch's where a network has no derivative, or changes its buffers in its forward."""


def _no_derivative(network: nn.Module) -> ConfigError:
    return ConfigError(
        f"this {type(network).__name__} cannot be differentiated forward, as the losses of flow maps do: "
        "choose norms other than batch norm, and layers of PyTorch that have such a derivative."
    )


def _check_network(network: nn.Module) -> None:
    """Refuse networks whose statistics would be those of points, times and tangents mixed."""
    if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in network.modules()):
        raise _no_derivative(network)


def _check_one_call(steps: int) -> None:
    if steps > 1:
        raise ConfigError(
            "a map that learns its flow's ends only (the loss 'endpoints') makes samples in one call: leave "
            "out steps, or learn the jumps between by another loss."
        )


NO_MAP = {"noise": "noise", "cloud": "the cloud", "samples": "samples", "draws": "random draws"}
"""What stands between a flow and a map of (x, s, t): in a word, and as a sentence says it."""


@checked
def no_map(flow: ParticleModel) -> str | None:
    """Why a flow has no map, a word of :data:`NO_MAP`; None if it has one."""
    if flow.diffusion is not None:
        return "noise"
    if depends_on_cloud(flow.field):
        return "cloud"
    needs = flow.field.needs
    return "samples" if "real" in needs else "draws" if needs or flow.field.draws else None


def _check_flow(flow: ParticleModel) -> None:
    """Refuse flows without a velocity of (x, t) alone."""
    why = no_map(flow)
    if why == "noise":
        raise ConfigError(
            "particles that move with noise have no map from where they start to where they end: learn "
            "that of the probability flow, the same model without noise (of the plane lambda2 = g2; a "
            "temperature of 0)."
        )
    if why is not None:
        raise ConfigError(
            f"a flow map learns a velocity of (x, t), and this field also asks for {NO_MAP[why]}: bind "
            "it to them, or choose another field."
        )


@checked
def own_flow(
    network: nn.Module,
    prior: Prior,
    path: Schedule,
    *,
    coupling: Coupling | None = None,
    scalars: int = 2,
    steps: Count = 28,
    label_weights: Tensor | None = None,
) -> ParticleModel:
    """The flow of a map's own diagonal v = U(x, t, t), which it learns from data.

    Args:
        network: U, of T = 1.
        prior: where particles start.
        path: of the interpolant.
        coupling: of its ends; independent draws of the prior unless given.
        scalars: how many numbers the network is told.
        steps: of the flow, where it is followed by itself.
        label_weights: (K,) shares of the classes, of a conditional model.
    """
    velocity = VelocityField(
        VelocityDenoiser(Diagonal(network, scalars), path), None, coupling or Independent(prior)
    )
    return ParticleModel(velocity, prior, steps=steps, schedule=path, label_weights=label_weights)
