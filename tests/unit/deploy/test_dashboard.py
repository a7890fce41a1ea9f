"""Grafana's dashboard asks for metrics that the services export."""

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from tests.unit.deploy import compose

FOLDER = compose.ROOT / "deploy/grafana"
DASHBOARD = FOLDER / "dashboards/downstack.json"
# Words of the query language, and the name that Prometheus itself gives each target.
NOT_METRICS = {"sum", "rate", "by", "le", "histogram_quantile", "max", "min", "avg", "clamp_min", "increase", "on"}
TARGET_METRICS = {"up"}
SUFFIXES = {"Counter": ("_total",), "Gauge": ("",), "Histogram": ("_bucket", "_count", "_sum")}
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")


def panels() -> list[dict[str, Any]]:
    found = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    assert isinstance(found, list)
    return found


def queries() -> Iterator[str]:
    for panel in panels():
        for target in panel.get("targets", []):
            yield target["expr"]


def exported() -> set[str]:
    """Every sample's name that the services declare. Read from the source: some modules need an engine to import."""
    found: set[str] = set()
    for file in (compose.ROOT / "services").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if "from prometheus_client import" in text:
            calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
            found |= {name for call in calls for name in samples_of(call)}
    return found


def samples_of(call: ast.Call) -> set[str]:
    """The names of the samples that a metric's constructor makes."""
    kind = call.func.id if isinstance(call.func, ast.Name) else ""
    if kind not in SUFFIXES or not isinstance(call.args[0], ast.Constant):
        return set()
    return {f"{call.args[0].value}{suffix}" for suffix in SUFFIXES[kind]}


def names_in(query: str) -> set[str]:
    """The metrics that a query names: without label matchers, groupings, ranges and functions."""
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\b(by|without|on)\s*\([^)]*\)", " ", query)
    return {name for name in _NAME.findall(bare) if name not in NOT_METRICS} - TARGET_METRICS


def test_queries_name_exported_metrics() -> None:
    """No panel asks for a metric that no service has."""
    known = exported()
    asked = {name for query in queries() for name in names_in(query)}

    assert len(asked) > 10
    assert asked - known == set()


def test_every_panel_asks_something_and_says_what() -> None:
    """Panels have a title, a unit, a description and at least one query, or are rows."""
    shown = [panel for panel in panels() if panel["type"] != "row"]

    assert shown
    for panel in shown:
        assert panel["title"]
        assert panel["description"]
        assert panel["targets"]
        assert panel["fieldConfig"]["defaults"]["unit"]


def test_panels_do_not_overlap() -> None:
    """No two panels share a cell of the grid."""
    cells = Counter(
        (x, y)
        for place in (panel["gridPos"] for panel in panels())
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    )

    assert max(cells.values()) == 1
    assert max(x for x, _ in cells) < 24


def test_provisioning_names_the_folders_that_are_mounted() -> None:
    """The provider's path and the data source's address are those of the compose file."""
    mounts = " ".join(compose.containers()["grafana"]["volumes"])
    provider = (FOLDER / "provisioning/dashboards/downstack.yml").read_text(encoding="utf-8")
    source = (FOLDER / "provisioning/datasources/prometheus.yml").read_text(encoding="utf-8")
    (path,) = re.findall(r"path: (\S+)", provider)

    assert f"./deploy/grafana/dashboards:{path}" in mounts
    assert f"http://prometheus:{9090}" in source
