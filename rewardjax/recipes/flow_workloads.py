"""The device programs of flow models at full size, as `recipes/workloads.py` has those of language models."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import ShapeDtypeStruct
from jax.sharding import Mesh

from rewardjax import losses
from rewardjax.compilation.layout import abstract, key_shape, rows_of
from rewardjax.compilation.program import Program, Workload
from rewardjax.models.flow import FlowModel
from rewardjax.recipes.policy_gradient import PolicyGradientConfig, scored
from rewardjax.recipes.workloads import training
from rewardjax.sampling.flow import FlowPolicy

CLIPPED = losses.policy_loss(surrogate=losses.clipped(0.2))


def velocities(model: FlowModel, rows: int, calls: int) -> Workload:
    """One call of a flow model's network for `rows` samples."""

    def program(mesh: Mesh, rows: int) -> Program:
        x = rows_of(mesh, jnp.float32, rows, *model.config.event)
        time, condition = (rows_of(mesh, kind, rows) for kind in (jnp.float32, jnp.int32))
        params = abstract(mesh, model.boxed_init, key_shape())
        return Program(model.velocity, (params, x, time, condition))

    return Workload("velocity", rows, program, calls)


def denoising(
    policy: FlowPolicy, model: FlowModel, rl: PolicyGradientConfig, group_size: int
) -> list[Workload]:
    """A flow model's rollout and update: `rows` are samples.

    Args:
      policy: on the model.
      model: the velocity network.
      rl: conditions a step, cuts of a batch, optimizer.
      group_size: samples a condition.
    """
    total = rl.prompts * group_size
    cut = total // (rl.minibatches * rl.micro_batches)

    def rollout(mesh: Mesh, rows: int) -> Program:
        one = dataclasses.replace(policy, group_size=1)
        params = abstract(mesh, model.boxed_init, key_shape())
        return Program(one.rollout, (params, rows_of(mesh, jnp.int32, rows), key_shape()))

    def improve(mesh: Mesh, rows: int) -> Program:
        batch, loss = total // rl.minibatches, scored(policy.score, CLIPPED)
        single = dataclasses.replace(policy, group_size=1)
        shapes = jax.eval_shape(
            single.rollout,
            jax.eval_shape(model.init, key_shape()),
            ShapeDtypeStruct((batch,), jnp.int32),
            key_shape(),
        )
        traj = jax.tree.map(lambda x: rows_of(mesh, x.dtype, *x.shape), shapes)
        advantages = rows_of(mesh, jnp.float32, *traj.mask.shape)

        def own(params, batch):
            return loss(params, *batch)

        return training(
            mesh, model.boxed_init, rl.optimizer, own, (traj, advantages), batch // min(rows, batch)
        )

    return [
        Workload("rollout", cut, rollout, total // cut),
        Workload("update", cut, improve, rl.epochs * rl.minibatches),
    ]
