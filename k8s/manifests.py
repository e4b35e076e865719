"""Plain manifests from the Helm chart, for those without Helm: `python -m k8s.manifests` writes k8s/base.

The chart is the one source: what is written is what `helm template` makes of its values, one file for each component,
and a kustomization.yaml that lists them. Needs the package helm-python-sdk.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml
from helm_python import Chart, HelmError

CHART = Path(__file__).parents[1] / "charts" / "anyloop"
BASE = Path(__file__).parent / "base"
_HEADER = "# Made by `python -m k8s.manifests` from charts/anyloop: change the chart, not this file.\n"
_HOOK = "helm.sh/hook"  # pods of `helm test`, which nobody would remove here


class _Dumper(yaml.SafeDumper):
    """Long texts as blocks, as a person would write them."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def manifests(values: dict[str, Any], release: str = "anyloop", namespace: str = "anyloop") -> dict[str, str]:
    """File name -> content, of the release that `values` make. Raises HelmError for values that the chart refuses."""
    with Chart.load(CHART) as chart:
        rendered = chart.render(values, name=release, namespace=namespace)
        definitions = [definition["data"] for definition in chart.crds]
    files: dict[str, list[dict[str, Any]]] = {}
    for path, text in sorted(rendered.items()):
        if path.endswith("NOTES.txt"):
            continue
        objects = [each for each in yaml.safe_load_all(text) if each]
        kept = [_plain(each) for each in objects if _HOOK not in each["metadata"].get("annotations", {})]
        if kept:
            files[f"{Path(path).stem}.yaml"] = kept
    files["definitions.yaml"] = [each for text in definitions for each in yaml.safe_load_all(text)]
    files["namespace.yaml"] = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}]
    files["kustomization.yaml"] = [
        {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": namespace,
            "resources": sorted(files),
        }
    ]
    return {name: _HEADER + "---\n".join(map(_dump, objects)) for name, objects in sorted(files.items())}


def _plain(each: dict[str, Any]) -> dict[str, Any]:
    """Without what speaks of Helm."""
    labels = each["metadata"]["labels"]
    labels.pop("helm.sh/chart", None)
    labels["app.kubernetes.io/managed-by"] = "kustomize"
    template = each.get("spec", {}).get("template", {}).get("metadata", {}).get("labels", {})
    template.pop("helm.sh/chart", None)
    if "app.kubernetes.io/managed-by" in template:
        template["app.kubernetes.io/managed-by"] = "kustomize"
    annotations = each["metadata"].get("annotations", {})
    annotations.pop("helm.sh/resource-policy", None)
    if not annotations:
        each["metadata"].pop("annotations", None)
    return each


def _dump(each: dict[str, Any]) -> str:
    return str(yaml.dump(each, Dumper=_Dumper, sort_keys=False, width=120))


def write(folder: Path, files: dict[str, str]) -> None:
    """Writes the files and removes manifests of an earlier run that are no longer made."""
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.yaml"):
        if stale.name not in files and stale.read_text(encoding="utf-8").startswith(_HEADER):
            stale.unlink()
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 2 when the chart refuses the values."""
    parser = argparse.ArgumentParser(prog="python -m k8s.manifests", description=__doc__)
    parser.add_argument("--values", type=Path, help="a values file of the chart (default: its own values)")
    parser.add_argument("--output", type=Path, default=BASE, help="folder to write to (default: k8s/base)")
    parser.add_argument("--release", default="anyloop", help="what all names begin with")
    parser.add_argument("--namespace", default="anyloop", help="where it will run")
    options = parser.parse_args(arguments)
    try:
        values = yaml.safe_load(options.values.read_text(encoding="utf-8")) or {} if options.values else {}
        files = manifests(values, options.release, options.namespace)
    except (HelmError, OSError, yaml.YAMLError) as error:
        print(f"manifests: {error}", file=sys.stderr)
        return 2
    write(options.output, files)
    print(f"{len(files)} files in {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
