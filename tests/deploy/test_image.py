"""The image and the compose file: what is installed is pinned by hash, and checkers of their kind find no fault."""

import re
import tomllib

import pytest
import yaml

from tests.support.tools import ROOT, run_tool

LOCKS = ("cpu", "cuda")
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
FINAL_STAGE = DOCKERFILE.rpartition("\nFROM ")[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))


def normal_name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]).lower()


def pins(path: str) -> dict[str, str]:
    """Version by package of a file of pins."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return {normal_name(name): version for name, version in re.findall(r"^([\w.-]+)==([\w.+]+)", text, re.MULTILINE)}


@pytest.mark.parametrize("variant", LOCKS)
def test_the_image_has_the_versions_that_are_tested(variant):
    locked, tested = pins(f"deploy/image/{variant}.txt"), pins("constraints.txt")
    # The wheels without CUDA have a version of their own.
    assert locked["torch"] == tested["torch"] + ("+cpu" if variant == "cpu" else "")
    assert {name: version.partition("+")[0] for name, version in locked.items()} == {
        name: tested.get(name) for name in locked
    }, "run `make lock`"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {normal_name(name) for name in project["dependencies"]} - locked.keys() == set(), "run `make lock`"


@pytest.mark.parametrize("variant", LOCKS)
def test_every_file_of_the_image_is_pinned_by_hash(variant):
    text = (ROOT / f"deploy/image/{variant}.txt").read_text(encoding="utf-8")
    blocks = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert [block.split("\n")[0] for block in blocks if "--hash=sha256:" not in block] == []
    assert "--require-hashes" in DOCKERFILE


def test_only_the_cuda_variant_brings_cuda():
    assert not any(name.startswith(("nvidia-", "triton", "cuda-")) for name in pins("deploy/image/cpu.txt"))
    assert "triton" in pins("deploy/image/cuda.txt")


def test_the_final_stage_installs_nothing_and_has_no_root():
    assert "apt-get" not in FINAL_STAGE
    assert re.findall(r"^USER (.+)$", FINAL_STAGE, re.MULTILINE) == ["10001:10001"]


def test_what_the_dockerfile_copies_reaches_the_builder():
    kept = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    copied = [
        name for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()
    ]
    assert copied
    assert [name for name in copied if not any(name == path or name.startswith(f"{path}/") for path in kept)] == []


def test_hadolint_finds_no_fault():
    run_tool("hadolint", "Dockerfile")


def test_checkov_finds_no_fault_in_the_dockerfile():
    run_tool("checkov", "-f", "Dockerfile", "--framework", "dockerfile", "--skip-download", "--compact", "--quiet")


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_compose_reads_its_file(profile):
    run_tool("docker-compose", "-f", "docker-compose.yml", "--profile", profile, "config", "--quiet")


def test_prometheus_reads_its_file():
    run_tool("promtool", "check", "config", "--syntax-only", "deploy/monitoring/prometheus.yml")


def test_what_compose_mounts_is_there():
    mounts = [mount for service in COMPOSE["services"].values() for mount in service["volumes"]]
    files = [mount.split(":")[0] for mount in mounts if mount.startswith("./")]
    assert len(files) == 5
    assert [file for file in files if not (ROOT / file).is_file()] == []


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_container_is_closed_up(name):
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_prometheus_and_grafana_look_where_the_others_are():
    scrape = yaml.safe_load((ROOT / "deploy/monitoring/prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    (target,) = scrape[0]["static_configs"][0]["targets"]
    for name in ("cpu", "gpu"):
        assert target.partition(":")[0] in COMPOSE["services"][name]["networks"]["default"]["aliases"]
    sources = yaml.safe_load((ROOT / "deploy/monitoring/grafana/datasources.yaml").read_text(encoding="utf-8"))
    assert sources["datasources"][0]["url"] == "http://prometheus:9090"
    assert "prometheus" in COMPOSE["services"]
