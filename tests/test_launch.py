"""Launching: every target rendered and parsed; what runs here is run with stub programs."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from rewardjax.cli import main
from rewardjax.launch import TEMPLATES, Job, LaunchError, render, templates_folder
from rewardjax.tpu_slices import Slice, TopologyError

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
NASTY = "a b'c\"d$(touch pwned)`touch pwned`\n;#@{name}\\é"
ECHO = """
import json, os, sys
sys.stdout.write(json.dumps([sys.argv[1:], os.environ.get("REWARDJAX_PROCESS")]) + "\\n")
"""


def job(**settings):
    command = settings.pop("command", ("rewardjax", "run", "par", "--set", f"x={NASTY}"))
    return Job(**{"command": command, "name": "toy", "image": "i:1", **settings})


def bash(text, *, folder, path=None, wait=60, **variables):
    environment = {**os.environ, "PATH": path or os.environ["PATH"], **variables}
    return subprocess.run(
        ["bash", "-c", text],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=wait,
        env=environment,
    )


def program(folder, name, text):
    """A stub on the path, which then holds nothing else but the usual tools."""
    path = folder / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)
    return f"{path.parent}:/usr/bin:/bin"


@pytest.mark.parametrize("settings", [{}, {"spot": True, "slices": 3, "processes": 2}])
@pytest.mark.parametrize("target", ["host", "tpu", "slurm"])
def test_scripts_are_valid_bash(target, settings, tmp_path):
    text = render(target, job(**settings), LAUNCH)
    assert subprocess.run(["bash", "-n", "-c", text], check=False).returncode == 0
    assert text.startswith("#!/usr/bin/env bash\n")


def test_a_jobset_holds_the_command_and_the_slices():
    loaded = yaml.safe_load(render("gke", job(slices=2, spot=True, topology="v6e:4x8"), LAUNCH))
    assert (loaded["kind"], loaded["metadata"]["name"]) == ("JobSet", "toy")
    (replicated,) = loaded["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 2
    spec = replicated["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == 8  # 32 chips, 4 a host
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    # Kubernetes turns $$( into $( and leaves the rest alone.
    assert container["command"][-1].replace("$$(", "$(") == f"x={NASTY}"
    assert "$$(touch" in container["command"][-1]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x8",
        "cloud.google.com/gke-spot": "true",
    }
    assert "cloud.google.com/gke-spot" in [t["key"] for t in pod["tolerations"]]
    assert pod["restartPolicy"] == "Never"
    exits = spec["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert exits["containerName"] == container["name"]
    assert 143 not in exits["values"]


def test_on_demand_capacity_is_not_spot():
    loaded = yaml.safe_load(render("gke", job(), LAUNCH))
    pod = loaded["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert "cloud.google.com/gke-spot" not in json.dumps(pod)
    assert "--spot" not in render("tpu", job(), LAUNCH)


@pytest.mark.parametrize(
    ("topology", "accelerator", "chips", "hosts"),
    [
        ("v5e:1x1", "v5litepod-1", 1, 1),
        ("v5e:2x4", "v5litepod-8", 8, 1),
        ("v5e:4x4", "v5litepod-16", 16, 4),
        ("v5p:2x2x4", "v5p-32", 16, 4),
        ("v4:2x2x1", "v4-8", 4, 1),
        ("v6e:16x16", "v6e-256", 256, 64),
    ],
)
def test_slices_by_the_published_tables(topology, accelerator, chips, hosts):
    part = Slice.parse(topology)
    assert (part.chips, part.hosts) == (chips, hosts)
    assert f"--accelerator-type={accelerator} " in render("tpu", job(topology=topology), LAUNCH)


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v9:4x4", "one of v4, v5e, v5p, v6e, found 'v9'"),
        ("v5e:4x4x4", "such as v5e:4x4"),
        ("v5p:4x0x4", "such as v5p:4x4x4"),
        ("v5e", "such as v5e:4x4"),
        ("v5e:3x3", "a multiple of 4 chips, found 9"),
    ],
)
def test_topologies_that_do_not_exist(topology, message):
    with pytest.raises(TopologyError, match=message):
        Slice.parse(topology)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "a;b"}, "--name"),
        ({"time": "1\n#SBATCH"}, "--time"),
        ({"slices": 0}, "--slices: expected 1 or more, found 0"),
    ],
)
def test_jobs_that_cannot_be(settings, message):
    with pytest.raises(LaunchError, match=message):
        job(**settings)


def test_slurm_takes_the_command_as_it_is(tmp_path):
    path = program(tmp_path, "rewardjax", f'exec {sys.executable} -c {shlex.quote(ECHO)} "$@"')
    program(tmp_path, "srun", 'shift; exec "$@"')
    done = bash(render("slurm", job(), LAUNCH), folder=tmp_path, path=path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0] == ["run", "par", "--set", f"x={NASTY}"]
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(("code", "restarts", "queued"), [(143, 0, 1), (143, 20, 0), (1, 0, 0)])
def test_slurm_queues_again_what_was_preempted(tmp_path, code, restarts, queued):
    path = program(tmp_path, "srun", f"exit {code}")
    program(tmp_path, "scontrol", 'echo "$@" >> requeued')
    variables = {"SLURM_JOB_ID": "77", "SLURM_RESTART_COUNT": str(restarts)}
    done = bash(render("slurm", job(), LAUNCH), folder=tmp_path, path=path, **variables)
    assert done.returncode == code
    found = tmp_path / "requeued"
    assert (found.read_text() if found.exists() else "") == "requeue 77\n" * queued


def test_slurm_tasks():
    by_node = render("slurm", job(gpus=4), LAUNCH)
    assert "--ntasks-per-node=1\n" in by_node
    assert "export JAX_LOCAL_DEVICE_IDS=0,1,2,3\n" in by_node
    by_gpu = render("slurm", job(gpus=4, task="gpu"), LAUNCH)
    assert "--ntasks-per-node=4\n" in by_gpu
    assert "JAX_LOCAL_DEVICE_IDS" not in by_gpu


# Keeps the resource's state in a file; the first run on the hosts is cut off by a preemption.
GCLOUD = r"""
shift 4
echo "$*" | head -1 >> calls
case "$1" in
  describe) cat state 2>/dev/null || exit 1 ;;
  create) echo ACTIVE > state ;;
  delete) rm state ;;
  ssh)
    for word; do case "$word" in --command=*) command=${word#--command=} ;; esac; done
    case "$command" in *"run par"*) ;; *) exit 0 ;; esac
    if [ -e preempted ]; then HOME=$PWD bash -c "${command#cd rewardjax && }"; exit; fi
    touch preempted; echo SUSPENDED > state; exit 255 ;;
esac
"""


def test_a_preempted_slice_is_asked_for_again(tmp_path):
    project = tmp_path / "project"
    shutil.copytree(LAUNCH, project / "launch")
    path = program(tmp_path, "gcloud", GCLOUD)
    program(tmp_path, "rewardjax", f'exec {sys.executable} -c {shlex.quote(ECHO)} "$@"')
    text = render("tpu", job(spot=True, slices=2, zone="z"), project / "launch")
    done = bash(text, folder=tmp_path, path=path, POLL_SECONDS="0")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])[0] == ["run", "par", "--set", f"x={NASTY}"]
    assert not (tmp_path / "pwned").exists()
    calls = (tmp_path / "calls").read_text().splitlines()
    verbs = [call.split()[0] for call in calls if not call.startswith("describe")]
    once = ["create", "scp", "ssh", "ssh", "ssh"]
    assert verbs == [*once, "delete", *once, "delete"]
    (create, _) = [call for call in calls if call.startswith("create")]
    assert "--node-count=2 --node-prefix=toy --spot --zone=z" in create
    assert all("--node=all --worker=all" in call for call in calls if call.startswith("s"))


def test_a_run_that_fails_on_a_pod_is_not_tried_again(tmp_path):
    project = tmp_path / "project"
    shutil.copytree(LAUNCH, project / "launch")
    path = program(tmp_path, "gcloud", GCLOUD)
    program(tmp_path, "rewardjax", "exit 3")
    (tmp_path / "preempted").touch()
    text = render("tpu", job(), project / "launch")
    assert bash(text, folder=tmp_path, path=path, POLL_SECONDS="0").returncode == 3
    assert (tmp_path / "calls").read_text().count("create") == 1
    assert not (tmp_path / "state").exists()


def test_several_processes_on_a_host(tmp_path):
    command = (sys.executable, "-c", ECHO, NASTY)
    done = bash(render("host", job(command=command, processes=3), LAUNCH), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found = sorted(map(json.loads, done.stdout.splitlines()), key=lambda row: row[1])
    assert found == [[[NASTY], index] for index in "012"]


def test_a_process_that_fails_stops_the_others(tmp_path):
    text = 'test "$REWARDJAX_PROCESS" = 1 && exit 7; exec sleep 60'
    done = bash(
        render("host", job(command=("bash", "-c", text), processes=3), LAUNCH), folder=tmp_path
    )
    assert done.returncode == 7


def test_sigterm_reaches_every_process_once(tmp_path):
    text = "trap 'echo told; sleep 0.2; exit 143' TERM; echo up; while :; do sleep 0.05; done"
    script = render("host", job(command=("bash", "-c", text), processes=2), LAUNCH)
    with subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, text=True) as running:
        assert [running.stdout.readline() for _ in range(2)] == ["up\n"] * 2
        running.send_signal(signal.SIGTERM)
        assert running.stdout.read() == "told\n" * 2
    assert running.returncode == 143


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A folder with an experiment, and a path without gcloud, kubectl and sbatch."""
    place = tmp_path / "experiments" / "preferences"
    place.mkdir(parents=True)
    (place / "toy.py").write_text("raise RuntimeError('an experiment is not imported here')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", program(tmp_path, "rewardjax", 'echo "$@" > started').split(":")[0])
    (tmp_path / "bin" / "bash").symlink_to("/bin/bash")
    return tmp_path


FLAGS = ["--scale", "paper", "--set", "a=b c", "--image", "i"]
BUCKET = [*FLAGS, "--workdir", "gs://bucket/runs"]
SHARED = [*FLAGS, "--workdir", "/shared/runs"]


@pytest.mark.parametrize("target", list(TEMPLATES))
def test_a_dry_run_prints_and_starts_nothing(toy, target, capfd):
    assert main(["launch", target, "toy", *SHARED, "--dry-run"]) == 0
    printed = capfd.readouterr()
    assert "/shared/runs" in printed.out
    assert printed.err.startswith("would run `")
    if target == "gke":
        yaml.safe_load(printed.out)
    assert not (toy / "started").exists()


def test_the_host_target_really_runs(toy, capfd):
    assert main(["launch", "host", "toy", *SHARED, "--arms", "a,b", "--seeds", "2"]) == 0
    assert (toy / "started").read_text() == (
        "run toy --scale paper --arms a,b --seeds 2 --set a=b c --workdir /shared/runs --quiet\n"
    )
    program(toy, "rewardjax", "exit 5")
    assert main(["launch", "host", "toy"]) == 5
    assert "host: bash ended with exit code 5" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("target", "stub", "starts"),
    [("gke", "kubectl", "apply -f -"), ("slurm", "sbatch", "")],
)
def test_what_is_submitted_is_what_a_dry_run_prints(toy, target, stub, starts, capfd):
    program(toy, stub, 'echo "$*" > flags; while IFS= read -r line; do echo "$line"; done; exit 4')
    assert main(["launch", target, "toy", *SHARED]) == 4
    submitted = capfd.readouterr().out
    assert (toy / "flags").read_text() == starts + "\n"
    assert main(["launch", target, "toy", *SHARED, "--dry-run"]) == 0
    assert capfd.readouterr().out == submitted


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["slurm", "toy"], "slurm: sbatch not found"),
        (["gke", "toy", *SHARED], "gke: kubectl not found"),
        (["tpu", "toy", *SHARED], "tpu: gcloud, tar not found"),
        (["tpu", "toy"], "--workdir: expected gs://bucket/folder or a folder mounted"),
        (["slurm", "toy", *BUCKET], "--workdir: expected a folder that all processes see"),
        (["gke", "toy", "--workdir", "/x"], "--image: expected a container image"),
        (["host", "tox"], "no experiment 'tox'"),
        (["tpu", "toy", *SHARED, "--topology", "v5e:5"], "--topology v5e:5"),
    ],
)
def test_mistakes_are_named(toy, words, message, capfd):
    assert main(["launch", *words]) == 2
    assert message in capfd.readouterr().err


def test_a_bucket_is_mounted_on_every_host(toy, capfd):
    assert main(["launch", "gke", "toy", *BUCKET, "--dry-run"]) == 0
    loaded = yaml.safe_load(capfd.readouterr().out)
    template = loaded["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    assert template["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    (volume,) = template["spec"]["volumes"]
    assert volume["csi"]["volumeAttributes"]["bucketName"] == "bucket"
    (container,) = template["spec"]["containers"]
    (mount,) = container["volumeMounts"]
    assert mount["name"] == volume["name"]
    assert container["command"][-3:-1] == ["--workdir", mount["mountPath"] + "/runs"]
    assert main(["launch", "tpu", "toy", *BUCKET, "--dry-run"]) == 0
    text = capfd.readouterr().out
    assert "--workdir /tmp/rewardjax-bucket/runs" in text
    head, _ = text.split("\nrun=")
    printed = subprocess.run(
        [
            "/bin/bash",
            "-c",
            head.split("\nsource=")[0] + "\nmount=" + head.split("\nmount=")[1] + '\necho "$mount"',
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert printed.stdout.endswith("ttl-secs=0 bucket /tmp/rewardjax-bucket\n")


def test_templates_that_are_not_there(tmp_path):
    with pytest.raises(LaunchError, match=r"launch: no host\.sh, tpu_pod\.sh.*pip install -e"):
        templates_folder(tmp_path / "rewardjax")
    assert templates_folder(ROOT / "rewardjax") == LAUNCH


def test_sigterm_is_passed_on_to_what_was_started(toy):
    program(toy, "rewardjax", "trap 'exit 143' TERM; echo up; while :; do read -t 0.1 < <(:); done")
    words = [sys.executable, "-m", "rewardjax.cli", "launch", "host", "toy"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as running:
        assert running.stdout.readline() == "up\n"
        time.sleep(0.1)
        running.send_signal(signal.SIGTERM)
    assert running.returncode == 143
