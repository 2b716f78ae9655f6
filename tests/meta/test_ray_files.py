"""``deploy/ray``: the cluster files say what Ray's launcher, KubeRay's autoscaler and our own command understand, and leave nothing open."""

from __future__ import annotations

import copy
import shlex
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "ray"
SSH = sorted(FOLDER.glob("ssh-*.yaml"))
KUBERAY = sorted(FOLDER.glob("kuberay-*.yaml"))


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


def test_there_is_a_file_for_each_way_and_kind_of_machine() -> None:
    assert [path.stem for path in SSH] == ["ssh-cpu", "ssh-cuda", "ssh-rocm"]
    assert [path.stem for path in KUBERAY] == ["kuberay-cluster", "kuberay-job"]


# Machines reached by SSH


@pytest.mark.parametrize("path", SSH, ids=lambda path: path.stem)
def test_the_launcher_takes_an_ssh_file(path: Path) -> None:
    util = pytest.importorskip("ray.autoscaler._private.util", reason="Ray is not installed")
    config = load(path)
    prepared = util.prepare_config(copy.deepcopy(config))
    util.validate_config(prepared)
    (node_type,) = prepared["available_node_types"].values()
    assert (node_type["min_workers"], node_type["max_workers"]) == (config["min_workers"], config["max_workers"])
    assert 0 < config["min_workers"] <= config["max_workers"] <= len(config["provider"]["worker_ips"])


@pytest.mark.parametrize("path", SSH, ids=lambda path: path.stem)
def test_an_ssh_cluster_asks_for_a_token_and_shows_its_dashboard_to_itself_alone(path: Path) -> None:
    config = load(path)
    starts = [[c for c in config[f"{kind}_start_ray_commands"] if "ray start" in c] for kind in ("head", "worker")]
    assert [len(commands) for commands in starts] == [1, 1]
    for command in (starts[0][0], starts[1][0]):
        assert "RAY_AUTH_MODE=token" in command
        assert "RAY_AUTH_TOKEN_PATH=~/.ray/auth_token" in command
        assert "~/.ray/auth_token" in config["file_mounts"]
    assert "--dashboard-host=127.0.0.1" in starts[0][0]


def test_the_ssh_files_differ_in_what_the_machines_are_alone() -> None:
    cpu, cuda, rocm = map(load, SSH)
    differing = {"cluster_name", "setup_commands", "docker", "file_mounts", "rsync_exclude", "head_start_ray_commands", "worker_start_ray_commands"}
    for other in (cuda, rocm):
        assert {k: v for k, v in other.items() if k not in differing} == {k: v for k, v in cpu.items() if k not in differing}
    assert cuda["head_start_ray_commands"] == cpu["head_start_ray_commands"]
    assert cuda["worker_start_ray_commands"] == cpu["worker_start_ray_commands"]


# Kubernetes. The fields of ray.io/v1 as KubeRay 1.6 documents them, and of a pod as far as these files use them: a name with a slip in it
# would be dropped in silence, or refused on the cluster.


def record(required: str = "", **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": required.split(), "properties": properties}


def array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": items}


TEXT, COUNT, FLAG = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
QUANTITIES = {"type": "object", "additionalProperties": {"type": "string", "pattern": r"^\d+(m|Mi|Gi)?$"}}
RESOURCES = record("requests limits", requests=QUANTITIES, limits=QUANTITIES)
METADATA = record("name", name={"type": "string", "pattern": r"^[a-z]([-a-z0-9]*[a-z0-9])?$"}, labels=TEXTS, annotations=TEXTS)
CONTAINER = record(
    "name image resources securityContext",
    name=TEXT,
    image=TEXT,
    resources=RESOURCES,
    ports=array(record("name containerPort", name={"type": "string", "maxLength": 15}, containerPort=COUNT)),
    envFrom=array(record("secretRef", secretRef=record("name", name=TEXT))),
    volumeMounts=array(record("name mountPath", name=TEXT, mountPath=TEXT)),
    securityContext=record("allowPrivilegeEscalation", allowPrivilegeEscalation={"const": False}, capabilities=record("drop", drop={"const": ["ALL"]})),
)
POD = record(
    "containers securityContext automountServiceAccountToken",
    automountServiceAccountToken=FLAG,
    containers=array(CONTAINER),
    securityContext=record("runAsNonRoot", runAsNonRoot={"const": True}, runAsUser=COUNT, fsGroup=COUNT, supplementalGroups=array(COUNT)),
    terminationGracePeriodSeconds=COUNT,
    tolerations=array(record("key operator effect", key=TEXT, operator=TEXT, effect=TEXT)),
    volumes=array(
        record("name", name=TEXT, emptyDir=record(medium={"const": "Memory"}, sizeLimit=TEXT), persistentVolumeClaim=record("claimName", claimName=TEXT))
    ),
)
TEMPLATE = record("spec", spec=POD)
CLUSTER = record(
    "rayVersion authOptions enableInTreeAutoscaling headGroupSpec workerGroupSpecs",
    rayVersion=TEXT,
    authOptions=record("mode secretName", mode={"const": "token"}, secretName=TEXT),
    enableInTreeAutoscaling={"const": True},
    autoscalerOptions=record(upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]}, idleTimeoutSeconds=COUNT, resources=RESOURCES),
    headGroupSpec=record("serviceType rayStartParams template", serviceType={"const": "ClusterIP"}, rayStartParams=TEXTS, template=TEMPLATE),
    workerGroupSpecs=array(
        record(
            "groupName replicas minReplicas maxReplicas rayStartParams template",
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            rayStartParams=TEXTS,
            template=TEMPLATE,
        )
    ),
)
JOB = record(
    "entrypoint submissionMode shutdownAfterJobFinishes rayClusterSpec",
    entrypoint=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
    backoffLimit=COUNT,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=COUNT,
    rayClusterSpec=CLUSTER,
)
KINDS = {"RayCluster": CLUSTER, "RayJob": JOB}


def cluster_of(document: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = document["spec"]
    return spec if document["kind"] == "RayCluster" else spec["rayClusterSpec"]


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_a_kuberay_file_has_the_fields_that_kuberay_knows(path: Path) -> None:
    document = load(path)
    schema = record("apiVersion kind metadata spec", apiVersion={"const": "ray.io/v1"}, kind=TEXT, metadata=METADATA, spec=KINDS[document["kind"]])
    jsonschema.validate(document, schema)
    document["spec"]["workergroupSpecs"] = []
    with pytest.raises(jsonschema.ValidationError, match="workergroupSpecs"):
        jsonschema.validate(document, schema)


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_the_autoscaler_reads_a_kuberay_file(path: Path) -> None:
    reader = pytest.importorskip("ray.autoscaler._private.kuberay.autoscaling_config", reason="Ray is not installed")
    document = load(path)
    spec = cluster_of(document)
    config = reader._derive_autoscaling_config_from_ray_cr({"metadata": {"name": "scanvit", "namespace": "default"}, "spec": spec})
    node_types = config["available_node_types"]
    assert node_types["headgroup"]["resources"]["CPU"] == 0, "no training beside the head"
    for group in spec["workerGroupSpecs"]:
        node_type = node_types[group["groupName"]]
        assert 0 <= node_type["min_workers"] <= group["replicas"] <= node_type["max_workers"]
        assert node_type["max_workers"] > node_type["min_workers"]
        assert node_type["resources"]["CPU"] == 8
        assert node_type["resources"].get("GPU", 0) == (0 if group["groupName"] == "cpu" else 1)


def test_the_cluster_has_groups_of_every_kind_of_machine() -> None:
    spec = cluster_of(load(FOLDER / "kuberay-cluster.yaml"))
    assert [group["groupName"] for group in spec["workerGroupSpecs"]] == ["cpu", "cuda", "rocm"]
    for group in spec["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"].endswith(f":{group['groupName']}")
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (group["groupName"] == "cuda")
        assert ("amd.com/gpu" in container["resources"]["limits"]) == (group["groupName"] == "rocm")


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.stem)
def test_every_volume_that_is_mounted_is_declared(path: Path) -> None:
    spec = cluster_of(load(path))
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        mounted = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", ())}
        assert mounted == {volume["name"] for volume in pod.get("volumes", ())}


def test_the_jobs_command_is_one_that_scanvit_has(commands: dict[str, click.Command]) -> None:
    program, group, name, *arguments = shlex.split(load(FOLDER / "kuberay-job.yaml")["spec"]["entrypoint"])
    assert (program, group, name) == ("scanvit", "ray", "train")
    context = commands["ray train"].make_context("train", arguments)
    assert context.params["num_workers"] == 4
    assert context.params["experiment"] == "tiny"


def test_the_versions_are_those_of_the_lock(repository: Path) -> None:
    lock = (repository / "requirements" / "all.txt").read_text(encoding="utf-8")
    for path in KUBERAY:
        assert f"\nray=={cluster_of(load(path))['rayVersion']} " in lock or f"\nray[default,train]=={cluster_of(load(path))['rayVersion']} " in lock
