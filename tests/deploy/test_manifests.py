"""The Kubernetes manifests: each renders, each object is what its schema says, and they fit together."""

import functools
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from server.fetch import addresses
from server.settings import ENV_PREFIX, Settings
from tests.support.tools import ROOT, run_tool

FOLDER = ROOT / "deploy" / "kubernetes"
SCHEMAS = ROOT / "tests" / "data" / "schemas"
OLDEST = "1.30"
"""The oldest Kubernetes that has what the manifests ask for."""

OVERLAYS = [".", *(f"examples/{path.name}" for path in sorted((FOLDER / "examples").iterdir()))]
COMPONENTS = sorted(path.name for path in (FOLDER / "components").iterdir())

# checkov's findings that are meant: every other one fails the test.
MEANT = {
    "CKV_K8S_11": "no CPU limit: throttling stalls streams",
    "CKV_K8S_15": "pulling an unchanged image of gigabytes at each start gains nothing with a versioned tag",
    "CKV_K8S_21": "the namespace is the user's",
    "CKV_K8S_38": "the endpoint picker alone has a token: it asks which pods there are",
    "CKV_K8S_43": "a digest belongs to the user's own build",
    "CKV2_K8S_6": "the network policy is a component: an example without it says so",
}


NUMBERS = itertools.count()


@functools.cache
def rendered(path: str) -> str:
    return run_tool("kubectl", "kustomize", str(FOLDER / path))


def objects(path: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(rendered(path)))


def find(path: str, kind: str, name: str = "minicpmv") -> dict[str, Any]:
    (found,) = [one for one in objects(path) if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def container(path: str) -> dict[str, Any]:
    (only,) = find(path, "Deployment")["spec"]["template"]["spec"]["containers"]
    return only


def has_schema(kind: str) -> bool:
    return (SCHEMAS / f"{kind}.json").exists()


def pods_of(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod specs in an object, KServe's included."""
    spec = manifest.get("spec", {})
    if manifest["kind"] == "ServingRuntime":
        return [{"containers": spec["containers"], "volumes": spec["volumes"]}]
    return [spec["template"]["spec"]] if "template" in spec else []


@pytest.fixture
def overlay() -> Any:
    """Makes an overlay of the base and these components, beside the others; removes it afterwards."""
    made: list[Path] = []

    def make(*components: str) -> str:
        folder = FOLDER / "examples" / f"test-{next(NUMBERS)}"  # never twice: what is rendered is remembered
        folder.mkdir()
        made.append(folder)
        text = {"resources": ["../../base"], "components": [f"../../components/{name}" for name in components]}
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(text), encoding="utf-8")
        return str(folder)

    yield make
    for folder in made:
        shutil.rmtree(folder)


@pytest.mark.parametrize("path", OVERLAYS)
def test_every_object_is_what_its_schema_says(path, tmp_path):
    own = [one for one in objects(path) if not has_schema(one["kind"])]
    # KServe's containers are free in its schema: they are held against that of a pod.
    own += [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"pod-{number}"}, "spec": pod}
        for number, pod in enumerate(pod for one in objects(path) for pod in pods_of(one) if has_schema(one["kind"]))
    ]
    file = tmp_path / "objects.yaml"
    file.write_text(yaml.safe_dump_all(own), encoding="utf-8")
    run_tool("kubernetes-validate", "--strict", "-k", OLDEST, "--quiet", str(file))
    for one in objects(path):
        if has_schema(one["kind"]):
            schema = json.loads((SCHEMAS / f"{one['kind']}.json").read_text(encoding="utf-8"))
            jsonschema.validate(one, schema)


@pytest.mark.parametrize("kind", sorted(path.stem for path in SCHEMAS.glob("*.json")))
def test_a_schema_refuses_what_it_does_not_know(kind):
    (example,) = [one for path in OVERLAYS for one in objects(path) if one["kind"] == kind][:1]
    schema = json.loads((SCHEMAS / f"{kind}.json").read_text(encoding="utf-8"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(example | {"spec": example["spec"] | {"replicsa": 1}}, schema)


def test_every_component_is_in_an_example():
    text = "".join(path.read_text(encoding="utf-8") for path in (FOLDER / "examples").glob("*/kustomization.yaml"))
    assert [name for name in COMPONENTS if f"components/{name}\n" not in text] == []


@pytest.mark.parametrize("path", OVERLAYS)
def test_checkov_finds_only_what_is_meant(path, tmp_path):
    file = tmp_path / "objects.yaml"
    file.write_text(rendered(path), encoding="utf-8")
    skipped = ",".join(MEANT)
    run_tool(
        *("checkov", "-f", str(file), "--framework", "kubernetes", "--skip-download", "--compact", "--quiet"),
        *("--skip-check", skipped),
    )


@pytest.mark.parametrize("path", OVERLAYS)
def test_every_environment_variable_is_a_setting(path):
    names = {
        variable["name"]
        for one in objects(path)
        for pod in pods_of(one)
        for each in pod["containers"]
        for variable in each.get("env", ())
        if variable["name"].startswith(ENV_PREFIX)
    }
    assert {name.removeprefix(ENV_PREFIX).lower() for name in names} - set(Settings.model_fields) == set()


@pytest.mark.parametrize("path", [path for path in OVERLAYS if path != "examples/kserve"])
def test_a_stop_leaves_time_to_drain(path):
    pod = find(path, "Deployment")["spec"]["template"]["spec"]
    pause = container(path)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > pause + Settings.model_fields["drain_timeout_s"].default


@pytest.mark.parametrize("path", [path for path in OVERLAYS if path != "examples/kserve"])
def test_selectors_find_the_server_and_nothing_else(path):
    pods = {
        one["metadata"]["name"]: one["spec"]["template"]["metadata"]["labels"]
        for one in objects(path)
        if one["kind"] in ("Deployment", "Job")
    }
    for kind in ("Service", "PodDisruptionBudget", "InferencePool", "PodMonitor"):
        for one in objects(path):
            if one["kind"] == kind and one["metadata"]["name"] == "minicpmv":
                selector = one["spec"]["selector"]
                wanted = selector.get("matchLabels", selector)
                assert [name for name, labels in pods.items() if wanted.items() <= labels.items()] == ["minicpmv"]


def test_mounted_weights_need_no_network_and_are_only_read():
    for path in ("examples/autoscaled", "examples/replicas"):
        environment = {one["name"]: one.get("value") for one in container(path)["env"]}
        assert environment["HF_HUB_OFFLINE"] == "1"
        (mount,) = [one for one in container(path)["volumeMounts"] if one["name"] == "weights"]
        assert mount["readOnly"] is True
        assert [one for one in objects(path) if one["metadata"]["name"] == "minicpmv-cache"] == []
    assert (
        environment["MINICPMV_MODEL"]
        in find("examples/replicas", "Job", "minicpmv-download")["spec"]["template"]["spec"]["containers"][0]["args"]
    )


@pytest.mark.parametrize("component", ["hpa", "keda"])
def test_an_autoscaler_owns_the_number_of_replicas(overlay, component):
    path = overlay(component)
    assert "replicas" not in find(path, "Deployment")["spec"]


def test_two_autoscalers_do_not_go_together(overlay):
    path = overlay("hpa", "keda")
    with pytest.raises(AssertionError, match="replicas"):
        rendered(path)


def test_a_slice_takes_the_place_of_the_whole_card():
    limits = container("examples/slice")["resources"]["limits"]
    assert [name for name in limits if name.startswith("nvidia.com/")] == ["nvidia.com/mig-1g.10gb"]


def test_the_closed_policy_lets_nothing_out():
    policy = find("examples/autoscaled", "NetworkPolicy")["spec"]
    assert policy["egress"] == []
    assert "Egress" in policy["policyTypes"]


def test_the_open_policy_blocks_what_the_servers_guard_blocks():
    """A second line that lets through more than the first, or less, would be a surprise either way."""
    blocks = [
        rule["ipBlock"]
        for egress in find("examples/replicas", "NetworkPolicy")["spec"]["egress"]
        for rule in egress["to"]
        if "ipBlock" in rule
    ]
    assert {block["cidr"]: sorted(block["except"]) for block in blocks} == {
        "0.0.0.0/0": sorted(map(str, addresses._NOT_PUBLIC_V4)),
        str(addresses._PUBLIC_V6): sorted(map(str, addresses._NOT_PUBLIC_V6)),
    }


def test_the_picker_reads_metrics_that_the_server_has():
    config = yaml.safe_load((FOLDER / "components/gateway/picker-config.yaml").read_text(encoding="utf-8"))
    (engine,) = next(one for one in config["plugins"] if one["type"] == "core-metrics-extractor")["parameters"][
        "engineConfigs"
    ]
    source = (ROOT / "server" / "metrics.py").read_text(encoding="utf-8")
    names = [value.removeprefix("minicpmv_") for key, value in engine.items() if key.endswith("Spec")]
    assert len(names) == 4
    assert [name for name in names if f'"{name}"' not in source] == []
    used = {one["pluginRef"] for profile in config["schedulingProfiles"] for one in profile["plugins"]}
    assert used <= {one["type"] for one in config["plugins"]}
