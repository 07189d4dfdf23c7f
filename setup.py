"""Package definition. Lower bounds are versions that the tests ran with."""

from setuptools import find_packages, setup

CORE = [
    "jax>=0.10.2,<0.12",
    "flax>=0.12.8",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "etils[epath]>=1.15",
    "chex>=0.1.92",
    "grain>=0.2.18",
    "tensorflow-datasets>=4.9.10",
    "array-record>=0.8.6",
    "sentencepiece>=0.2.2",
    "jaxtyping>=0.3.11",
    "numpy>=2.4",
    "scipy>=1.17",
    "tyro>=1.0.17",
    "rich>=15.0",
    "matplotlib>=3.11",
    "tensorboardX>=2.6.5",
]

# What some families' experiments need besides; the tests need all of it.
FAMILIES = {
    "control": ["gymnax>=1.0.1"],
    "games": ["pgx>=2.6"],
    "generation": ["scikit-learn>=1.7"],
    "baselines": ["scikit-learn>=1.7"],
}

# Published checkpoints and tokenizers, a judge behind an HTTP endpoint: the tests need these too.
SERVICES = {
    "hf": ["safetensors>=0.8.0", "tokenizers>=0.23.2", "jinja2>=3.1"],
    "judge": ["httpx>=0.28.1", "tenacity>=9.2.1"],
}
OPTIONAL = FAMILIES | SERVICES

setup(
    name="rewardjax",
    version="0.1.0",
    description="Reward design and reward-driven post-training in JAX: one experiment file a paper.",
    python_requires=">=3.11",
    packages=find_packages(include=["rewardjax", "rewardjax.*", "experiments", "experiments.*"]),
    install_requires=CORE,
    extras_require={
        "test": [
            "pytest>=9.0",
            "pytest-xdist>=3.8",
            "hypothesis>=6.155",
            "beartype>=0.22",
            "ruff>=0.14",
            "mypy>=1.19",
            "pyyaml>=6.0",
            *(package for packages in OPTIONAL.values() for package in packages),
        ],
        **OPTIONAL,
        # What the parity tests compare with; they are left out without it.
        "parity": ["torch==2.13.0", "transformers>=5.23"],
        "tpu-compile": ["libtpu>=0.0.51"],
        "cuda": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
    },
    entry_points={"console_scripts": ["rewardjax=rewardjax.cli:main"]},
)
