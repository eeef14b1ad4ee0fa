"""The Kubernetes manifest against the schemas that the package kubernetes-validate carries: `make test-deployment`."""

import subprocess
from typing import Any

import yaml

from server.environment import variables
from tests.faults.processes import CHECKOUT

MANIFEST = CHECKOUT / "docs/deployment/kubernetes.yaml"
OBJECTS: list[dict[str, Any]] = list(yaml.safe_load_all(MANIFEST.read_text()))
PODS = {
    each["metadata"]["name"]: each["spec"]["template"]["spec"] for each in OBJECTS if "template" in each.get("spec", {})
}


def test_it_fits_the_schemas() -> None:
    validate = CHECKOUT / "build/kubernetes/bin/kubernetes-validate"

    checked = subprocess.run([validate, "--strict", MANIFEST], capture_output=True, text=True, check=False)  # noqa: S603

    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.count(" passed ") + checked.stderr.count(" passed ") == len(OBJECTS)


def test_every_setting_in_it_exists() -> None:
    names = {variable.name for variable in variables()}
    (settings,) = (each["data"] for each in OBJECTS if each["kind"] == "ConfigMap")
    given = {entry["name"] for pod in PODS.values() for each in pod["containers"] for entry in each.get("env", ())}

    assert given
    assert given | settings.keys() <= names


def test_no_pod_gets_variables_that_are_no_settings_or_may_write_to_its_image() -> None:
    for pod in PODS.values():
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_the_probes_ask_what_the_architecture_says() -> None:
    (server,) = PODS["pulsa"]["containers"]

    assert server["livenessProbe"]["grpc"]["service"] == server["startupProbe"]["grpc"]["service"] == "liveness"
    assert server["readinessProbe"]["grpc"]["service"] == "readiness"


def test_a_pod_has_time_to_drain() -> None:
    (settings,) = (each["data"] for each in OBJECTS if each["kind"] == "ConfigMap")
    drain = float(settings["PULSA_LAME_DUCK_SECONDS"]) + float(settings["PULSA_DRAIN_SECONDS"])

    assert PODS["pulsa"]["terminationGracePeriodSeconds"] >= drain + 15


def test_every_deployment_has_a_disruption_budget_for_its_pods() -> None:
    labels = {each["metadata"]["name"]: each["spec"]["selector"] for each in OBJECTS if each["kind"] == "Deployment"}
    budgets = {
        each["metadata"]["name"]: each["spec"]["selector"] for each in OBJECTS if each["kind"] == "PodDisruptionBudget"
    }

    assert budgets == labels
    assert [each["metadata"]["name"] for each in OBJECTS if each["kind"] == "Job"] == ["pulsa-migrate"]
