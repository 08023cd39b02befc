import numpy as np
import pytest

from onnxbrecq.data.boxes import Boxes
from onnxbrecq.data.dataset import Dataset
from onnxbrecq.errors import DataError
from onnxbrecq.validation.detection import MeanAveragePrecision, decoded
from onnxbrecq.validation.metrics import CustomMetric, metric_for

COUNT = 12


@pytest.fixture
def labelled() -> Dataset:
    random = np.random.default_rng(0)
    x = random.normal(size=(COUNT, 3)).astype(np.float32)
    return Dataset({"x": x}, random.integers(0, 3, COUNT), "d.npz")


def one_hot(classes: np.ndarray) -> np.ndarray:
    return np.eye(3, dtype=np.float32)[classes]


def right(outputs: dict[str, np.ndarray], samples: dict[str, np.ndarray]) -> np.ndarray:
    return 100.0 * (outputs["y"].argmax(axis=1) == samples["labels"])


def share_right(outputs: dict[str, np.ndarray], samples: dict[str, np.ndarray]) -> float:
    return float(right(outputs, samples).mean())


@pytest.mark.parametrize("function", [right, share_right], ids=["scores", "number"])
def test_a_function_of_the_users_is_the_metric(labelled: Dataset, function: object) -> None:
    metric = metric_for(labelled, function, None)  # type: ignore[arg-type]
    assert metric is not None
    assert labelled.labels is not None
    worse = labelled.labels.copy()
    worse[:3] = (worse[:3] + 1) % 3
    for part in (slice(0, 8), slice(8, COUNT)):
        metric.add({"y": one_hot(labelled.labels[part])}, {"y": one_hot(worse[part])})
    found = metric.accuracy()
    assert (found.float, found.quantized, found.drop) == (100.0, 75.0, 25.0)
    assert found.metric == function.__name__  # type: ignore[attr-defined]
    assert 0 <= found.interval_95[0] < 25 < found.interval_95[1] <= 60


def test_both_forms_of_a_metric_have_the_same_interval(labelled: Dataset) -> None:
    assert labelled.labels is not None
    outputs = {"y": one_hot(labelled.labels)}, {"y": one_hot(np.zeros(COUNT, int))}
    found = []
    for function in (right, share_right):
        metric = CustomMetric("m", function, labelled)
        metric.add(*outputs)
        found.append(metric.accuracy())
    np.testing.assert_allclose(found[0].interval_95, found[1].interval_95, rtol=1e-12)


def test_a_metric_that_fails_is_named(labelled: Dataset) -> None:
    def broken(outputs: object, samples: dict[str, np.ndarray]) -> object:
        return samples["masks"]

    def vector(outputs: object, samples: object) -> object:
        return np.zeros(5)

    for function, says in ((broken, "broken: raised KeyError"), (vector, "one for each sample")):
        metric = CustomMetric(function.__name__, function, labelled)
        metric.add({"y": np.zeros((COUNT, 3))}, {"y": np.zeros((COUNT, 3))})
        with pytest.raises(DataError, match=says):
            metric.accuracy()


def test_outputs_without_rows_come_one_by_one(labelled: Dataset) -> None:
    def count(outputs: dict[str, list[np.ndarray]], samples: object) -> list[float]:
        return [float(len(found)) for found in outputs["found"]]

    metric = CustomMetric("count", count, labelled)
    for i in range(COUNT):
        metric.add({"found": np.zeros((i, 4))}, {"found": np.zeros((0, 4))})
    assert metric.accuracy().float == pytest.approx(np.arange(COUNT).mean())


@pytest.mark.parametrize(
    ("wanted", "says"),
    [("mAP", "has no boxes"), ("auc", "give mAP or mAP50"), ("no_module:f", "cannot be imported")],
)
def test_metrics_that_are_none(labelled: Dataset, wanted: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        metric_for(labelled, wanted, None)


def test_a_metric_needs_data() -> None:
    assert metric_for(None, None, None) is None
    with pytest.raises(DataError, match="pass them with -e"):
        metric_for(None, "mAP", None)


def detection_data() -> Dataset:
    """Two boxes in each of four images, of classes 3 and 8."""
    boxes = np.tile(np.array([[0.0, 0, 10, 10], [20, 20, 40, 40]]), (4, 1))
    truth = Boxes(boxes, np.tile([3, 8], 4), np.repeat(np.arange(4), 2))
    return Dataset({"x": np.zeros((4, 1), np.float32)}, None, "d.npz", truth)


def outputs_of(boxes: np.ndarray, scores: list[float]) -> dict[str, np.ndarray]:
    """What a model with its own post-processing gives for one image."""
    return {
        "dets": boxes.astype(np.float32),
        "scores": np.array(scores, np.float32),
        "labels": np.array([3, 8][: len(scores)]),
    }


def test_mean_average_precision_by_hand() -> None:
    """The float model is perfect; the other moves the first box to an overlap of 0.6, so that it
    counts at 0.50, 0.55 and 0.60 of ten overlaps, and misses the second.
    """
    data = detection_data()
    assert data.boxes is not None
    perfect, moved = MeanAveragePrecision("mAP", data), MeanAveragePrecision("mAP50", data)
    true = data.boxes.boxes[:2]
    shifted = np.array([[2.5, 0, 12.5, 10]])  # 75 in common of 125
    for metric in (perfect, moved):
        for _ in range(4):
            metric.add(outputs_of(true, [0.9, 0.8]), outputs_of(shifted, [0.9]))
    found = perfect.accuracy()
    assert found.float == pytest.approx(100)
    assert found.quantized == pytest.approx(100 * 0.3 / 2)
    assert found.interval_95 == pytest.approx((85, 85))  # all images are alike
    assert moved.accuracy().quantized == pytest.approx(50)


def test_boxes_from_raw_outputs() -> None:
    data = detection_data()
    assert data.boxes is not None
    true = data.boxes.boxes[:2]

    def decode(outputs: dict[str, np.ndarray]) -> list[object]:
        return [(row[:, :4], row[:, 4], row[:, 5]) for row in outputs["raw"]]

    metric = MeanAveragePrecision("mAP", data, decode)
    raw = np.tile(np.concatenate([true, [[0.9, 3], [0.8, 8]]], axis=1), (2, 1, 1))
    for _ in range(2):
        metric.add({"raw": raw}, {"raw": raw[:, :0]})
    found = metric.accuracy()
    assert (found.float, found.quantized) == (pytest.approx(100), 0)


def test_outputs_that_are_no_boxes_are_told() -> None:
    with pytest.raises(DataError, match=r"raw \[2, 10\]; pass --detections"):
        decoded(None, {"raw": np.zeros((2, 10))})
    with pytest.raises(DataError, match="the function must return boxes"):
        decoded(lambda outputs: [outputs["raw"]], {"raw": np.zeros((2, 10))})
    batch = {"b": np.zeros((2, 5, 4)), "s": np.zeros((2, 5)), "class_ids": np.ones((2, 5))}
    assert [len(found.scores) for found in decoded(None, batch)] == [5, 5]
