"""What exported detectors with random weights lose before their boxes are decoded; run by hand.

    python tests/benchmarks/export_torchvision.py --output DIR --exporter torchscript \
        --only ssdlite320_mobilenet_v3_large,retinanet_resnet50_fpn,fasterrcnn_resnet50_fpn
    python tests/benchmarks/raw_heads.py --models DIR --settings W8A8,W4A8 --output FOLDER

With random weights the boxes that are kept are chance: every score is about the same, and a hair
decides which survive. So the layers are compared whose outputs are decoded: those of the heads that
no other layer of its head follows. Of scores and of boxes apart, the least SQNR of all levels. What
a head reads after boxes were chosen (the second stage of Faster R-CNN) is not comparable.
"""

import argparse
import re
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import rows
import torch
from export_torchvision import DETECTORS, images
from real_models import Job as RealJob
from rows import Row

import onnxbrecq
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.graph.load import load
from onnxbrecq.validation.tensors import tensor_errors

# Of the last layers' names, in torchvision's modules.
_SCORES = re.compile(
    r"/(cls_logits(?:_\d+)?|classification_head/module_list\.\d+/module_list\.\d+\.1)/"
)
_BOXES = re.compile(
    r"/(bbox_reg(?:_\d+)?|rpn/head/bbox_pred(?:_\d+)?|regression_head/module_list\.\d+/module_list\.\d+\.1)/"
)


@dataclass(frozen=True)
class Job:
    """A detector with a setting."""

    model: str
    setting: str
    effort: str
    calibration: int
    threads: int

    def columns(self) -> Row:
        """What tells the row from all others."""
        names = ("model", "setting", "effort", "calibration")
        return {name: getattr(self, name) for name in names}

    def recipe(self) -> onnxbrecq.Recipe:
        """What it is quantized with."""
        return RealJob(
            self.model, "onnxbrecq", self.setting, self.effort, self.calibration, 0, self.threads
        ).recipe()


def make_row(job: Job, folder: Path) -> Row:
    """The finished row of `job`."""
    source = folder / f"{job.model}-torchscript.onnx"
    torch.manual_seed(7)
    made = images(job.calibration, DETECTORS[job.model]).numpy()
    model = load(source)
    data = Dataset({model.inputs[0]: made})
    with tempfile.TemporaryDirectory() as place:
        output, start = Path(place) / "quantized.onnx", time.perf_counter()
        result = onnxbrecq.quantize(source, data, job.recipe(), output=output).as_json()
        seconds = time.perf_counter() - start
        quantized = onnx.load(output)
    row: Row = {
        "integer_macs": result["execution"][0]["integer_macs_fraction"],
        "size_ratio": result["size"]["ratio"],
        "latency_ratio": 1 / result["execution"][0]["speedup"],
        "peak_gib": result["memory"]["peak_bytes"] / 2**30,
        "seconds": seconds,
    }
    for head, pattern in (("scores", _SCORES), ("boxes", _BOXES)):
        names = [node.output[0] for node in model.nodes if pattern.search(node.name)]
        found = tensor_errors(model, quantized, names, data.head(8), threads=job.threads)
        row[f"{head}_levels"] = f"{len(found)} of {len(names)}"
        if found:
            row[f"{head}_db"] = -10 * float(np.log10(max(found.values())))
    return row


def missing(job: Job, folder: Path) -> str | None:
    """Why the row cannot be made."""
    path = folder / f"{job.model}-torchscript.onnx"
    return None if path.exists() else f"{path} is missing: export_torchvision.py makes it"


COLUMNS = {
    "model": "{}", "setting": "{}", "effort": "{}", "scores_db": "{:.1f}", "scores_levels": "{}",
    "boxes_db": "{:.1f}", "boxes_levels": "{}", "integer_macs": "{:.3f}", "size_ratio": "{:.3f}",
    "latency_ratio": "{:.2f}", "peak_gib": "{:.1f}", "seconds": "{:.0f}",
}  # fmt: skip


def main() -> None:
    """Reads the command line and makes the table."""
    parser = argparse.ArgumentParser(description="Raw heads of detectors, float and quantized.")
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--only", default=",".join(DETECTORS))
    parser.add_argument("--settings", default="W8A8,W4A8")
    parser.add_argument("--effort", default="balanced")
    parser.add_argument("--calibration", type=int, default=32, help="images")
    arguments = rows.arguments(parser)
    jobs = [
        Job(model, setting, arguments.effort, arguments.calibration, arguments.threads)
        for model in arguments.only.split(",") for setting in arguments.settings.split(",")
    ]  # fmt: skip
    for job in jobs:
        job.recipe()  # a wrong setting ends the run here, not after the first row
    rows.run(
        jobs, partial(make_row, folder=arguments.models), partial(missing, folder=arguments.models),
        partial(rows.table, COLUMNS), arguments.output,
    )  # fmt: skip


if __name__ == "__main__":
    main()
