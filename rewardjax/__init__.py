"""Reward design and reward-driven post-training in JAX: one experiment file a paper."""

__version__ = "0.1.0"
