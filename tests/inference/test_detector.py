"""People found by a detector: files of weights and what is done with its boxes. No published weights are needed."""

import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.models import detection

from s2kit.errors import UserError
from s2kit.inference.people import open_boxes
from s2kit.inference.people.detector import FILES, Detector, find_weights, load_detector

SMALL = "fasterrcnn_mobilenet_v3_large_fpn"


@pytest.fixture(scope="module")
def random_state() -> dict[str, torch.Tensor]:
    """Weights of the small detector, whose boxes mean nothing; without counters, as published ones."""
    torch.manual_seed(0)
    state = getattr(detection, SMALL)(weights=None, weights_backbone=None).state_dict()
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


@pytest.fixture(scope="module")
def weights(random_state, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("detector") / "small.pth"
    torch.save(random_state, path)
    return path


class Stub(nn.Module):
    """Finds what it is told to, by the width of a picture; keeps the sizes of each call."""

    def __init__(self, found: dict[int, list[tuple]]) -> None:
        super().__init__()
        self.found, self.calls = found, []

    def forward(self, pictures: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        self.calls.append([tuple(picture.shape) for picture in pictures])
        assert all(picture.dtype == torch.float32 and 0 <= picture.min() <= picture.max() <= 1 for picture in pictures)
        rows = [self.found.get(picture.shape[2], []) for picture in pictures]
        return [
            {
                "boxes": torch.tensor([row[0] for row in found], dtype=torch.float32).reshape(-1, 4),
                "labels": torch.tensor([row[1] for row in found], dtype=torch.int64),
                "scores": torch.tensor([row[2] for row in found], dtype=torch.float32),
            }
            for found in rows
        ]


def with_stub(weights: Path, found: dict[int, list[tuple]], **options: object) -> Detector:
    detector = Detector(weights, **options)
    detector.model = Stub(found)
    return detector


def picture(height: int = 60, width: int = 80) -> np.ndarray:
    return np.full((height, width, 3), 255, np.uint8)


def test_only_certain_people_are_taken_each_once(weights):
    found = [
        ([0, 0, 20, 50], 1, 0.9),
        ([1, 0, 21, 50], 1, 0.95),  # the same person, better
        ([40, 0, 60, 50], 1, 0.29),  # too uncertain
        ([40, 0, 60, 50], 3, 0.99),  # a car
        ([60, 0, 80, 50], 1, 0.3),
        ([5, 5, 5, 30], 1, 0.8),  # no area
    ]
    (people,) = with_stub(weights, {80: found})(["a.jpg"], [picture()])
    assert people.boxes.tolist() == [[1, 0, 21, 50], [60, 0, 80, 50]]
    np.testing.assert_allclose(people.scores, [0.95, 0.3])
    (people,) = with_stub(weights, {80: found}, min_score=0.1, nms=None)(["a.jpg"], [picture()])
    np.testing.assert_allclose(people.scores, [0.95, 0.9, 0.3, 0.29])


def test_pictures_of_one_size_go_together_and_come_back_in_order(weights):
    found = {80: [([0, 0, 20, 50], 1, 0.9)], 50: [([0, 0, 30, 30], 1, 0.8), ([30, 30, 50, 60], 1, 0.7)]}
    detector = with_stub(weights, found)
    people = detector(["a", "b", "c", "d"], [picture(), picture(60, 50), picture(), picture(60, 70)])
    assert [one.number for one in people] == [1, 2, 1, 0]
    assert sorted(detector.model.calls) == [[(3, 60, 50)], [(3, 60, 70)], [(3, 60, 80), (3, 60, 80)]]
    assert detector.report() == "the detector found nobody in 1 of 4 pictures: without results"


def test_the_whole_picture_is_taken_only_if_asked_for(weights):
    assert with_stub(weights, {})(["a"], [picture()])[0].boxes.shape == (0, 4)
    detector = with_stub(weights, {}, fallback="whole")
    assert detector(["a"], [picture()])[0].boxes.tolist() == [[0, 0, 80, 60]]
    assert detector.report().endswith("1 of 1 pictures: taken whole")


def test_a_file_of_weights_runs_and_is_loaded_to_the_number(weights, random_state, tmp_path):
    detector = open_boxes("detect", weights=weights, min_score=0.0, nms=0.9)
    assert isinstance(detector, Detector) and not detector.model.training
    for name, value in detector.model.state_dict().items():
        assert name.endswith("num_batches_tracked") or torch.equal(value, random_state[name])
    detector.model.transform.min_size = (96,)  # it would enlarge pictures to 800 pixels
    shown = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    alone = detector(["a"], [shown])[0]
    together = detector(["a", "b", "c"], [shown, shown[::-1], shown[:60]])[0]
    np.testing.assert_allclose(alone.boxes, together.boxes, atol=1e-2)
    save_file(random_state, tmp_path / "small.safetensors")
    torch.save({"model": random_state, "epoch": 3}, tmp_path / "trained.pth")
    for path in tmp_path.iterdir():
        assert torch.equal(load_detector(path).rpn.head.cls_logits.weight, random_state["rpn.head.cls_logits.weight"])


def test_every_named_detector_is_told_by_its_weights(tmp_path):
    for name in FILES:
        state = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=2).state_dict()
        torch.save(state, tmp_path / "w.pth")
        model = load_detector(tmp_path / "w.pth", 0.25)
        assert model.state_dict().keys() == state.keys()
        assert model.roi_heads.score_thresh == 0.25
        eps = {module.eps for module in model.modules() if isinstance(module, nn.BatchNorm2d)}
        assert eps == ({0.0} if name == "fasterrcnn_resnet50_fpn" else {1e-5})


def test_the_published_files_are_those_that_torchvision_knows():
    for name, file in FILES.items():
        assert detection.__dict__[name] and any(
            entry.url.endswith("/models/" + file)
            for weights in vars(detection).values()
            if hasattr(weights, "COCO_V1")
            for entry in weights
        )


def test_wrong_files_are_refused_in_one_line(random_state, weights, tmp_path):
    cases = {}
    torch.save(
        {"backbone.patch_embed.weight": torch.zeros(2, 2), "decode_head.x": torch.zeros(1)}, tmp_path / "pose.pth"
    )
    cases["pose.pth"] = (
        "holds no detector of fasterrcnn_resnet50_fpn_v2, .*; its first entries are backbone.patch_embed"
    )
    lacking = {name: value for name, value in random_state.items() if name != "rpn.head.cls_logits.bias"}
    torch.save(lacking, tmp_path / "lacking.pth")
    cases["lacking.pth"] = rf"does not fit {SMALL}: 1 missing \(rpn.head.cls_logits.bias\)"
    torch.save({**random_state, "extra": torch.zeros(1)}, tmp_path / "more.pth")
    cases["more.pth"] = r"1 unexpected \(extra\)"
    torch.save({**random_state, "rpn.head.cls_logits.bias": torch.zeros(7)}, tmp_path / "shape.pth")
    cases["shape.pth"] = r"1 of another shape \(rpn.head.cls_logits.bias \[7\] for \[15\]\)"
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    cases["text.pth"] = "text.pth"
    (tmp_path / "cut.pth").write_bytes(weights.read_bytes()[:100_000])
    cases["cut.pth"] = "cut.pth"
    (tmp_path / "empty.pth").touch()
    cases["empty.pth"] = "empty"
    cases["none.pth"] = (
        "--detector-weights: .*none.pth: no such file of weights; give a file, or one of fasterrcnn_resnet50"
    )
    for name, said in cases.items():
        with pytest.raises(UserError, match=said) as error:
            Detector(tmp_path / name)
        assert "\n" not in str(error.value), name


def test_weights_come_from_torchs_folder_the_best_first(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    small, large = (tmp_path / "checkpoints" / FILES[name] for name in (SMALL, "fasterrcnn_resnet50_fpn_v2"))
    small.touch()
    assert find_weights() == find_weights(SMALL) == small
    large.touch()
    assert find_weights() == large and find_weights(SMALL) == small
    # A processor would need ten times as long for the large one.
    assert find_weights(small=True) == small


def test_without_a_network_one_line_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def unreachable(url: str, dst: str, hash_prefix: str) -> None:
        assert url.endswith("-" + hash_prefix + ".pth")
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(
        UserError, match=r"/models/fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7\.pth cannot be downloaded"
    ):
        open_boxes("detect")
    with pytest.raises(UserError) as error:
        open_boxes("detect", weights="fasterrcnn_resnet50_fpn_v2")
    text = str(error.value)
    assert "\n" not in text
    assert "https://download.pytorch.org/models/fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth" in text
    assert "--detector-weights FILE" in text and str(tmp_path / "checkpoints") in text and "--boxes whole" in text
