"""values.yaml, its schema, the README and the templates agree, and wrong values are rejected with a reason."""

from __future__ import annotations

import copy
import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest
import yaml

from controller.settings import Settings
from tests.chart.golden import TABLE, default_values, described, schema, values_table
from tests.chart.toolbox import (
    CHART,
    MINIMAL,
    Manifest,
    Values,
    controller,
    environment,
    leaves,
    refusal,
    render,
    template,
)

#: Values that only a parent chart uses.
PARENT_VALUES = {"global", "enabled"}

#: Settings that the platform provides: Kubernetes, systemd and terminals.
PLATFORM_SETTINGS = {"KUBERNETES_SERVICE_HOST", "NOTIFY_SOCKET", "NO_COLOR", "WATCHDOG_USEC"}

#: Settings that the chart computes, so no value has the same bounds.
COMPUTED_SETTINGS = {
    "DATABASE_URL", "DATABASE_DIRECT_URL", "BILLING_CONTROL_SOCKET", "BILLING_DEPLOYMENT_NAME", "BILLING_KUBERNETES",
    "BILLING_HTTP_ADDRESS", "BILLING_PAGE_ADDRESS", "DATABASE_URL_FILE", "DATABASE_DIRECT_URL_FILE",
    "DATABASE_USERNAME_FILE", "DATABASE_PASSWORD_FILE", "DATABASE_CA_FILE",
    "POD_NAME", "POD_NAMESPACE", "POD_UID", "NODE_NAME",
}  # fmt: skip


def schema_leaves(node: Manifest, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of the values. Deprecated ones only make older values acceptable; they have no default."""
    if node.get("deprecated"):
        return []
    if "properties" not in node:
        return [path]
    return [leaf for key, child in node["properties"].items() for leaf in schema_leaves(child, (*path, key))]


def lookup(tree: Any, path: tuple[str, ...]) -> Any:  # noqa: ANN401 - any YAML
    for key in path:
        tree = tree[key]
    return tree


def with_value(path: tuple[str, ...], value: Any, base: Values) -> Manifest:  # noqa: ANN401 - any YAML
    values: Manifest = copy.deepcopy(dict(base))
    node = values
    for key in path[:-1]:
        node = node.setdefault(key, {})
    node[path[-1]] = value
    return values


SCHEMA_LEAVES = [leaf for leaf in schema_leaves(schema()) if leaf[0] not in PARENT_VALUES]


def test_schema_is_valid_and_accepts_the_defaults() -> None:
    jsonschema.Draft7Validator.check_schema(schema())
    jsonschema.validate(default_values(), schema())


def test_schema_and_defaults_name_the_same_values() -> None:
    defaults = default_values()
    for leaf in SCHEMA_LEAVES:
        lookup(defaults, leaf)
    for path, _ in leaves(defaults):
        assert any(path[: len(leaf)] == leaf for leaf in SCHEMA_LEAVES), path


def test_schema_describes_every_value_and_rejects_unknown_names() -> None:
    def check(node: Manifest, path: str) -> None:
        if "properties" in node:
            assert path == ".global" or node["additionalProperties"] is False, path
            for key, child in node["properties"].items():
                assert child["description"].endswith("."), f"{path}.{key}"
                check(child, f"{path}.{key}")

    check({**schema(), "description": "."}, "")


@pytest.mark.parametrize("path", sorted(PARENT_VALUES))
def test_schema_accepts_what_a_parent_chart_sets(path: str) -> None:
    render({**MINIMAL, path: {"anything": 1} if path == "global" else True})


def test_templates_use_only_values_in_the_schema() -> None:
    used = set()
    for file in (CHART / "templates").rglob("*.*"):
        used |= set(re.findall(r"(?:\$|\.)\.?Values\.([A-Za-z0-9.]+)", file.read_text("utf-8")))
    assert used
    for path in used - {"global", "networkPolicy.databasePort"}:  # a parent chart's, and a deprecated one
        keys = tuple(path.rstrip(".").split("."))
        assert any(leaf[: len(keys)] == keys or keys[: len(leaf)] == leaf for leaf in SCHEMA_LEAVES), path


#: A URL whose credentials are in a Secret.
CREDENTIALS: Manifest = {"database": {"url": "postgresql://b/c", "existingSecret": "a", "passwordKey": "p"}}

#: Other values that a value needs to have an effect, by prefix of its name.
CONTEXT: list[tuple[str, Manifest]] = [
    ("database.usernameKey", CREDENTIALS),
    ("database.passwordKey", {"database": {"url": "postgresql://b/c", "existingSecret": "a"}}),
    ("database.existingFile", {}),
    ("database.existingDirectFile", {"database": {"existingFile": "/a"}}),
    ("database.ca.key", {"database": {"existingSecret": "a", "ca": {"existingSecret": "b"}}}),
    ("migrations.usernameKey", {**CREDENTIALS, "migrations": {"existingSecret": "owner", "passwordKey": "p"}}),
    ("migrations.passwordKey", {**CREDENTIALS, "migrations": {"existingSecret": "owner"}}),
    ("database.url", {}),
    ("database.directUrl", {"database": {"url": "postgresql://a@b/c"}}),
    ("migrations.existingSecretKey", {**MINIMAL, "migrations": {"existingSecret": "owner"}}),
    ("metrics.serviceMonitor", {**MINIMAL, "metrics": {"serviceMonitor": {"enabled": True}}}),
    ("metrics.podMonitor", {**MINIMAL, "metrics": {"podMonitor": {"enabled": True}}}),
    ("metrics.prometheusRule", {**MINIMAL, "metrics": {"prometheusRule": {"enabled": True}}}),
    ("metrics.dashboard", {**MINIMAL, "metrics": {"dashboard": {"enabled": True}}}),
    ("serviceAccount.create", {**MINIMAL, "kubernetes": {"enabled": False}}),
    ("networkPolicy", {**MINIMAL, "networkPolicy": {"enabled": True}}),
    ("demo.enabled", {}),
    ("demo.postgresql", {"demo": {"enabled": True}}),
]  # fmt: skip


def with_and_without(leaf: tuple[str, ...]) -> tuple[Manifest, Manifest]:
    name = ".".join(leaf)
    context = next((c for prefix, c in CONTEXT if name.startswith(prefix)), dict(MINIMAL))
    node = described(leaf)
    default = lookup(default_values(), leaf)
    # Most contexts don't name the value. Their rendering with its default is then the same, and is made once.
    before = with_value(leaf, default, context) if leaf in dict(leaves(context)) else dict(context)
    other = not default if node.get("type") == "boolean" else node["examples"][0]
    return before, with_value(leaf, other, context)


def test_every_value_has_an_effect() -> None:
    def effect(leaf: tuple[str, ...]) -> tuple[str, bool]:
        before, after = with_and_without(leaf)
        if leaf in {("demo", "enabled"), ("database", "url")}:
            before = dict(MINIMAL)
        return ".".join(leaf), template(before).stdout != render_text(after)

    def render_text(values: Values) -> str:
        done = template(values)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with ThreadPoolExecutor(4) as pool:
        dead = [name for name, effective in pool.map(effect, SCHEMA_LEAVES) if not effective]
    assert dead == []


def test_examples_in_the_schema_are_valid() -> None:
    for leaf in SCHEMA_LEAVES:
        for example in described(leaf).get("examples", []):
            jsonschema.validate(example, described(leaf))


def test_readme_lists_every_value_with_its_default() -> None:
    found = TABLE.search((CHART / "README.md").read_text("utf-8"))
    assert found, "README.md has no table of values"
    assert found[0] == values_table(), "run: python -m tests.chart.golden"
    for leaf in SCHEMA_LEAVES:
        assert f"| `{'.'.join(leaf)}` |" in found[0]


def variables() -> dict[str, Any]:
    """The controller's settings, by environment variable."""
    return {field.validation_alias.choices[0]: field for field in Settings.model_fields.values()}  # type: ignore[union-attr,misc]


def test_exceptions_name_only_settings_that_exist() -> None:
    assert (COMPUTED_SETTINGS | PLATFORM_SETTINGS) - variables().keys() == set()


def test_chart_sets_every_setting_of_the_controller_and_no_other() -> None:
    container = controller(render(MINIMAL))
    assert {v["name"] for v in container["env"]} == variables().keys() - {
        "DATABASE_URL", "DATABASE_DIRECT_URL", "DATABASE_DIRECT_URL_FILE", "DATABASE_USERNAME_FILE",
        "DATABASE_PASSWORD_FILE", "DATABASE_CA_FILE", *PLATFORM_SETTINGS,
    }  # fmt: skip


def test_controller_accepts_the_charts_settings_and_shares_its_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(controller(render(MINIMAL))).items():
        monkeypatch.setenv(name, value)
    settings = Settings(_env_file=None)
    plain = Settings.model_construct()
    for name in ("interval_minutes", "workers", "batch_size", "default_hourly_rate", "currency", "lock_name", "bounds"):
        assert getattr(settings, name) == getattr(plain, name), (
            f"the chart's default of {name} differs from the controller's"
        )


@pytest.mark.parametrize("variable", sorted(variables().keys() - COMPUTED_SETTINGS - PLATFORM_SETTINGS))
def test_schema_accepts_no_value_that_the_controller_rejects(variable: str) -> None:
    """A wrong value must fail the installation, not the pod."""
    by_variable = {
        _variable(leaf): leaf for leaf in SCHEMA_LEAVES if leaf[0] in {"billing", "election", "log", "drain"}
    }
    node = described(by_variable[variable])
    metadata = variables()[variable].metadata
    for bound, keys in {"ge": ("minimum",), "gt": ("exclusiveMinimum",), "le": ("maximum",)}.items():
        for limit in (getattr(m, bound) for m in metadata if hasattr(m, bound)):
            declared = node[keys[0]]
            if bound == "le":
                assert declared <= limit
            else:
                assert declared >= limit


def _variable(leaf: tuple[str, ...]) -> str:
    """Maps drain.timeoutSeconds to BILLING_DRAIN_TIMEOUT_SECONDS, and log.level to LOG_LEVEL."""
    words = re.sub(r"([A-Z])", r"_\1", leaf[-1]).upper()
    prefix = {"log": "LOG_", "drain": "BILLING_DRAIN_"}.get(leaf[0], "BILLING_")
    return prefix + words


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, "No database is set. Set exactly one of"),
        ({"database": {"existingSecret": "a", "url": "postgresql://a@b/c"}}, "Keep one of them"),
        ({"database": {"url": "mysql://a@b/c"}}, "at '/database/url'"),
        ({"database": {"existingSecret": "Not_A_Name"}}, "at '/database/existingSecret'"),
        ({"database": {"existingSecret": "a", "directUrl": "postgresql://a@b/c"}}, "database.existingSecretDirectKey"),
        ({"database": {"url": "postgresql://a@b/c", "existingSecretDirectKey": "d"}}, "set database.directUrl"),
        ({**MINIMAL, "demo": {"enabled": True}}, "Unset database.*"),
        ({"demo": {"enabled": True}, "migrations": {"mode": "job"}}, "demo.enabled needs migrations.mode: init"),
        ({"demo": {"enabled": True}, "migrations": {"existingSecret": "a"}}, "fills it with sample data"),
        ({**MINIMAL, "drain": {"timeoutSeconds": 571}}, "at '/drain/timeoutSeconds': maximum: got 571, want 570"),
        ({**MINIMAL, "drain": {"timeoutSeconds": 0}}, "at '/drain/timeoutSeconds': minimum: got 0, want 1"),
        ({**MINIMAL, "election": {"leaderDeadlineSeconds": 3}}, "at least twice pingIntervalSeconds"),
        (
            {**MINIMAL, "election": {"leaderDeadlineSeconds": 1.1, "pingIntervalSeconds": 0.2}},
            "and more than 0.9 s longer",
        ),
        ({**MINIMAL, "election": {"sessionTimeoutSeconds": 5.5}}, "at least a second more than leaderDeadlineSeconds"),
        ({**MINIMAL, "log": {"level": "warning"}}, "value must be one of 'error', 'warn', 'info', 'debug'"),
        ({**MINIMAL, "billing": {"currency": "usd"}}, "at '/billing/currency'"),
        ({**MINIMAL, "billing": {"defaultHourlyRate": "nothing"}}, "at '/billing/defaultHourlyRate'"),
        ({**MINIMAL, "billing": {"intervalMinutes": 0}}, "exclusiveMinimum: got 0, want 0"),
        ({**MINIMAL, "billing": {"workers": 2.5}}, "got number, want integer"),
        ({**MINIMAL, "migrations": {"mode": "hook"}}, "value must be one of 'init', 'job', 'none'"),
        ({**MINIMAL, "replicaCount": 3}, "additional properties 'replicaCount' not allowed"),
        ({**MINIMAL, "image": {"name": "x"}}, "at '/image': additional properties 'name' not allowed"),
        ({**MINIMAL, "image": {"digest": "sha256:abc"}}, "at '/image/digest'"),
        ({**MINIMAL, "replicas": -1}, "at '/replicas': minimum: got -1, want 0"),
        ({**MINIMAL, "podDisruptionBudget": {"maxUnavailable": 0}}, "at '/podDisruptionBudget/maxUnavailable'"),
        (
            {**MINIMAL, "extraEnv": [{"name": "LOG_LEVEL", "value": "debug"}]},
            "extraEnv sets LOG_LEVEL, which the chart already sets",
        ),
        ({**MINIMAL, "extraEnv": [{"name": "DATABASE_URL", "value": "x"}]}, "extraEnv sets DATABASE_URL"),
        ({**MINIMAL, "serviceAccount": {"create": False}}, "Name the account to use"),
        (
            {**MINIMAL, "metrics": {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}}},
            "scrape every replica twice",
        ),
        (
            {**MINIMAL, "metrics": {"prometheusRule": {"disabledAlerts": ["NoSuchAlert"]}}},
            "at '/metrics/prometheusRule",
        ),
        ({**MINIMAL, "http": {"port": 80}}, "at '/http/port': minimum: got 80, want 1,024"),
    ],
)
def test_wrong_value_is_rejected_with_a_reason(values: Manifest, reason: str) -> None:
    assert reason in refusal(values)


def test_null_that_leaves_a_gap_is_refused_by_name() -> None:
    """A key without a value, such as `probes:` with all its lines commented out, is a null and removes the default."""
    sections = [name for name, value in default_values().items() if isinstance(value, dict) and value]
    gaps = [name for name in sections if name not in {"resources", "securityContext"}]
    message = refusal(dict.fromkeys(gaps))
    assert [name for name in gaps if f"'{name}'" not in message] == []
    assert "at '/image': missing property 'repository'" in refusal({**MINIMAL, "image": {"repository": None}})
    assert "at '/probes': missing property 'startup'" in refusal({**MINIMAL, "probes": {"startup": None}})


def test_default_rate_reaches_the_controller_exactly() -> None:
    """The value may be a string or a number."""
    for written, read in (
        ("0.027", "0.027"),
        (0.027, "0.027"),
        ("none", "none"),
        (0, "0"),
        (0.00001, "1e-05"),
        (3, "3"),
    ):
        container = controller(render({**MINIMAL, "billing": {"defaultHourlyRate": written}}))
        assert environment(container)["BILLING_DEFAULT_HOURLY_RATE"] == read


def test_large_numbers_reach_the_controller_without_an_exponent() -> None:
    billing = {"batchSize": 20000, "intervalMinutes": 10080, "takeoverDelaySeconds": 86400}
    values = environment(controller(render({**MINIMAL, "billing": billing})))
    assert (values["BILLING_BATCH_SIZE"], values["BILLING_INTERVAL_MINUTES"]) == ("20000", "10080")
    assert values["BILLING_TAKEOVER_DELAY_SECONDS"] == "86400"


def test_schema_file_is_formatted() -> None:
    text = (CHART / "values.schema.json").read_text("utf-8")
    assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n"


def test_values_in_the_documents_render() -> None:
    documents = [CHART / "README.md", CHART.parents[1] / "docs" / "kubernetes.md"]
    block = re.compile(r"^```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    blocks = [yaml.safe_load(text) for document in documents for text in block.findall(document.read_text("utf-8"))]
    found = [values for values in blocks if "database" in values]
    assert len(found) > 3
    for values in found:
        assert render(values)
