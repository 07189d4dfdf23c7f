"""The device programs of flow models at full size, as `recipes/workloads.py` has those of language models."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import ShapeDtypeStruct
from jax.sharding import Mesh

from rewardjax.compilation.layout import key_shape, rows_of, weights_of
from rewardjax.compilation.program import Program, Workload
from rewardjax.models.flow import FlowModel
from rewardjax.recipes.policy_gradient import PolicyGradientConfig, scored
from rewardjax.recipes.rollout_workloads import CLIPPED, in_one_step
from rewardjax.recipes.workloads import state_of, training
from rewardjax.sampling.flow import FlowPolicy
from rewardjax.trajectory import Trajectory


def velocities(model: FlowModel, rows: int, calls: int) -> Workload:
    """One call of a flow model's network for `rows` samples."""

    def program(mesh: Mesh, rows: int) -> Program:
        x = rows_of(mesh, jnp.float32, rows, *model.config.event)
        time, condition = (rows_of(mesh, kind, rows) for kind in (jnp.float32, jnp.int32))
        return Program(model.velocity, (weights_of(mesh, model), x, time, condition))

    return Workload("velocity", rows, program, calls)


def denoising(
    policy: FlowPolicy, model: FlowModel, rl: PolicyGradientConfig, group_size: int
) -> list[Workload]:
    """A flow model's rollout, the reference's scores and the update: `rows` are samples.

    Args:
      policy: on the model.
      model: the velocity network.
      rl: conditions a step, cuts of a batch, optimizer.
      group_size: samples a condition.
    """
    total = rl.prompts * group_size
    cut = total // (rl.minibatches * rl.micro_batches)
    single = dataclasses.replace(policy, group_size=1)

    def held(mesh: Mesh) -> dict[str, Any]:
        state = state_of(mesh, model.boxed_init, rl.optimizer)
        return {"policy": state, "reference": weights_of(mesh, model)}

    def rollout(mesh: Mesh, rows: int) -> Program:
        conditions = rows_of(mesh, jnp.int32, rows)
        arguments = (weights_of(mesh, model), conditions, key_shape())
        return Program(single.rollout, arguments, kept=(0,))

    def sampled(mesh: Mesh, rows: int) -> Trajectory:
        shapes = jax.eval_shape(
            single.rollout,
            jax.eval_shape(model.init, key_shape()),
            ShapeDtypeStruct((rows,), jnp.int32),
            key_shape(),
        )
        return jax.tree.map(lambda x: rows_of(mesh, x.dtype, *x.shape), shapes)

    def score(mesh: Mesh, rows: int) -> Program:
        return Program(policy.score, (weights_of(mesh, model), sampled(mesh, rows)), kept=(0,))

    def improve(mesh: Mesh, rows: int) -> Program:
        batch, loss = total // rl.minibatches, scored(policy.score, CLIPPED)
        traj = sampled(mesh, batch)
        advantages = rows_of(mesh, jnp.float32, *traj.mask.shape)

        def own(params, batch):
            return loss(params, *batch)

        return training(
            mesh, model.boxed_init, rl.optimizer, own, (traj, advantages), batch // min(rows, batch)
        )

    programs = [
        Workload("rollout", total // rl.rollout_cuts, rollout, rl.rollout_cuts),
        Workload("score", total // rl.batch_cuts, score, rl.batch_cuts),
        Workload("update", cut, improve, rl.epochs * rl.minibatches),
    ]
    return in_one_step(programs, held)
