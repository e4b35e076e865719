"""`python -m bench.trainer.worker JOB`: one contender in a process of its own; the last line on stdout is its Result.

JOB is JSON: contender, kind, model (directory), material (file) and workload (its fields).
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from bench.trainer.material import Material
from bench.trainer.plan import OURS, Workload
from bench.trainer.result import peak_rss


def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    job = json.loads(sys.argv[1])
    workload = Workload(**job["workload"])
    material = Material.load(Path(job["material"]))
    # Each side imports its own libraries only: they count in its memory.
    if job["contender"] == OURS:
        from bench.trainer.ours import RUNS
    else:
        from bench.trainer.peer import RUNS, import_all

        import_all(job["kind"])
    base = base_rss(Path(job["model"]))
    result = RUNS[job["kind"]](Path(job["model"]), material, workload)
    result.base_rss = base
    print(json.dumps(result.to_json()))


def base_rss(model: Path) -> int:
    """The peak so far, once the model has been loaded and let go: the same point on both sides."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True)
    return peak_rss()


if __name__ == "__main__":
    main()
