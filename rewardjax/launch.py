"""What `rewardjax launch` starts where: a template of `launch/`, filled in. Nothing is run here."""

import dataclasses
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewardjax.tpu_slices import Slice

TEMPLATES: Mapping[str, str] = {
    "host": "host.sh",
    "tpu": "tpu_pod.sh",
    "gke": "gke.yaml",
    "slurm": "slurm.sbatch",
}
PROGRAMS: Mapping[str, Sequence[str]] = {
    "host": ("bash",),
    "tpu": ("bash", "gcloud", "tar"),
    "gke": ("kubectl",),
    "slurm": ("sbatch",),
}
MOUNT = "/tmp/rewardjax-bucket"  # where hosts see a job's bucket


class LaunchError(ValueError):
    """A job that cannot be described: the message names the flag."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A run of an experiment somewhere.

    Attributes:
      command: the program and its arguments, as run on every host.
      name: lower-case letters, digits and dashes.
      spot: take capacity that may be taken away again (TPU targets).
      attempts: how often a job that was preempted is started again (asked for, on TPU VMs).
      topology: of a slice (TPU targets).
      slices: joined by the data-centre network (TPU targets).
      bucket: of Google Cloud Storage, mounted at `MOUNT` on every host (TPU targets).
      zone: of Google Cloud (tpu); gcloud's own default without one.
      project: of Google Cloud (tpu); gcloud's own default without one.
      image: a container that has the project installed (gke).
      nodes: machines (slurm).
      gpus: of a node (slurm).
      task: "node" for one process a node, "gpu" for one a GPU (slurm).
      time: the limit, as Slurm writes it.
      processes: on this machine (host).
      port: of the first process, where the others find it (host).
    """

    command: tuple[str, ...]
    name: str
    spot: bool = False
    attempts: int = 20
    topology: str = "v5e:4x4"
    slices: int = 1
    bucket: str = ""
    zone: str = ""
    project: str = ""
    image: str = ""
    nodes: int = 1
    gpus: int = 8
    task: str = "node"
    time: str = "24:00:00"
    processes: int = 1
    port: int = 12355

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", self.name):
            raise LaunchError(
                "--name: expected at most 40 lower-case letters, digits and dashes,"
                f" found {self.name!r}"
            )
        if not re.fullmatch(r"([a-z0-9][a-z0-9._-]*)?", self.bucket):
            raise LaunchError(f"--workdir: expected a bucket's name, found {self.bucket!r}")
        if not re.fullmatch(r"\d+(-\d+)?(:\d+){0,2}", self.time):
            raise LaunchError(f"--time: expected HH:MM:SS or D-HH, found {self.time!r}")
        for flag in ("slices", "nodes", "gpus", "processes", "attempts"):
            if getattr(self, flag) < 1:
                raise LaunchError(f"--{flag}: expected 1 or more, found {getattr(self, flag)}")


def templates_folder(package: Path) -> Path:
    """The folder of templates beside the package, as it is after `pip install -e .`.

    Raises:
      LaunchError: it is not there.
    """
    folder = package.parent / "launch"
    missing = [name for name in TEMPLATES.values() if not (folder / name).is_file()]
    if missing:
        raise LaunchError(
            f"{folder}: no {', '.join(missing)}: `launch` needs the project's own folder;"
            " install it from there with pip install -e ."
        )
    return folder


def render(target: str, job: Job, templates: Path) -> str:
    """The script or manifest that starts a job.

    Args:
      target: one of `TEMPLATES`.
      job: what to run.
      templates: the folder that holds them.

    Raises:
      LaunchError: what the target needs is missing or wrong.
    """
    values = {"host": _host, "tpu": _tpu, "gke": _gke, "slurm": _slurm}[target](job)
    if target == "tpu":
        values["project_root"] = shlex.quote(str(templates.parent))
    text = (templates / TEMPLATES[target]).read_text(encoding="utf-8")
    # Placeholders are `@{name}`: `$` belongs to the shell.
    return re.sub(r"@\{(\w+)\}", lambda found: str(values[found[1]]), text)


def starter(target: str, text: str) -> tuple[Sequence[str], str | None]:
    """The command that starts what `render` gave, and what it reads on its standard input."""
    if target == "gke":
        return ("kubectl", "apply", "-f", "-"), text
    if target == "slurm":
        return ("sbatch",), text
    # Not on standard input: the programs that the script starts would read it.
    return ("bash", "-c", text), None


def _host(job: Job) -> dict[str, Any]:
    return {"command": shlex.join(job.command), "processes": job.processes, "port": job.port}


def _tpu(job: Job) -> dict[str, Any]:
    part = Slice.parse(job.topology)
    place = [f"--{name}={value}" for name in ("zone", "project") if (value := getattr(job, name))]
    nodes = ["--node-id=" + job.name]
    if job.slices > 1:
        nodes = [f"--node-count={job.slices}", "--node-prefix=" + job.name]
    return {
        "name": job.name,
        # Twice: once for this machine's shell, once for that of the hosts.
        "command": shlex.quote(shlex.join(job.command)),
        "bucket": shlex.quote(job.bucket),
        "mount": MOUNT,
        "attempts": job.attempts,
        "place": shlex.join(place),
        "accelerator": f"{part.generation.accelerator}-{part.chips * part.generation.units}",
        "runtime": part.generation.runtime,
        "capacity": shlex.join([*nodes, *(["--spot"] if job.spot else [])]),
    }


def _gke(job: Job) -> dict[str, Any]:
    if not job.image:
        raise LaunchError("--image: expected a container image with the project installed")
    part = Slice.parse(job.topology)
    labels = {
        "cloud.google.com/gke-tpu-accelerator": part.generation.gke,
        "cloud.google.com/gke-tpu-topology": part.topology,
    }
    tolerations = [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}]
    if job.spot:
        spot = "cloud.google.com/gke-spot"
        labels[spot] = "true"
        tolerations.append(
            {"key": spot, "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        )
    volume = {
        "name": "bucket",
        "csi": {
            "driver": "gcsfuse.csi.storage.gke.io",
            "volumeAttributes": {
                "bucketName": job.bucket,
                # A host has to see at once what another one wrote.
                "mountOptions": "implicit-dirs,rename-dir-limit=100000,metadata-cache:ttl-secs:0",
            },
        },
    }
    mount = {"name": "bucket", "mountPath": MOUNT}
    # JSON is YAML, whatever the strings hold. Kubernetes would fill $(NAME) in; $$(NAME) stays.
    return {
        "name": json.dumps(job.name),
        "attempts": job.attempts,
        "slices": job.slices,
        "hosts": part.hosts,
        "chips_a_host": part.chips // part.hosts,
        "node_selector": json.dumps(labels),
        "tolerations": json.dumps(tolerations),
        "annotations": json.dumps({"gke-gcsfuse/volumes": "true"} if job.bucket else {}),
        "volumes": json.dumps([volume] if job.bucket else []),
        "mounts": json.dumps([mount] if job.bucket else []),
        "image": json.dumps(job.image),
        "command": json.dumps([word.replace("$(", "$$(") for word in job.command]),
    }


def _slurm(job: Job) -> dict[str, Any]:
    if job.task not in ("node", "gpu"):
        raise LaunchError(f"--task: expected node or gpu, found {job.task!r}")
    everything = ",".join(map(str, range(job.gpus)))
    return {
        "name": job.name,
        "nodes": job.nodes,
        "tasks_a_node": job.gpus if job.task == "gpu" else 1,
        "gpus": job.gpus,
        "time": job.time,
        # JAX takes the GPU of a task's own number, unless it is told otherwise.
        "devices": f"export JAX_LOCAL_DEVICE_IDS={everything}" if job.task == "node" else "",
        "attempts": job.attempts,
        "command": shlex.join(job.command),
    }
