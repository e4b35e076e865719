"""Grafana dashboards as code. `python -m anyloop.telemetry.dashboards` writes them to charts/anyloop/dashboards."""

from anyloop.telemetry.dashboards.learning import learning
from anyloop.telemetry.dashboards.rollout import rollout
from anyloop.telemetry.dashboards.serving import serving

DASHBOARDS = {"serving": serving, "learning": learning, "rollout": rollout}
