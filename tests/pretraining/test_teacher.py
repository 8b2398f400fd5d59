"""The teacher's average in closed form."""

import pytest
import torch
from torch import nn

from s2kit.models import create_backbone
from s2kit.models.projection_head import ProjectionHead
from s2kit.pretraining.teacher import check_alike, make_teacher, update_teacher


def test_average_has_its_closed_form_after_k_steps():
    torch.manual_seed(0)
    student = nn.Linear(3, 2)
    teacher = make_teacher(student)
    states, momentum = [student.weight.detach().clone()], 0.9
    for _ in range(5):
        with torch.no_grad():
            student.weight.add_(torch.randn(2, 3))
        states.append(student.weight.detach().clone())
        update_teacher(teacher, student, momentum)
    expected = momentum**5 * states[0] + sum((1 - momentum) * momentum ** (5 - k) * states[k] for k in range(1, 6))
    torch.testing.assert_close(teacher.weight, expected)
    assert not teacher.weight.requires_grad and not teacher.training


def test_a_backbone_and_its_head_are_averaged_and_the_student_is_left_alone():
    torch.manual_seed(0)
    fields = {"patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 2, "mlp_dim": 64}
    student = nn.ModuleDict(
        {"backbone": create_backbone("sapiens2_nano", (32, 24), **fields), "head": ProjectionHead(32, 16, 8, 10)}
    )
    teacher = make_teacher(student)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1.0)
    check_alike(teacher, student)
    update_teacher(teacher, student, 0.75)
    for name, value in teacher.named_parameters():
        torch.testing.assert_close(value, before[name] + 0.25)
        torch.testing.assert_close(dict(student.named_parameters())[name], before[name] + 1)


def test_modules_that_are_not_alike_are_refused():
    with pytest.raises(RuntimeError, match="not laid out alike: weight is"):
        check_alike(nn.Linear(3, 2), nn.Linear(3, 4))
    with pytest.raises(RuntimeError, match="differ in bias"):
        check_alike(nn.Linear(3, 2), nn.Linear(3, 2, bias=False))


def test_logits_are_cosines():
    torch.manual_seed(0)
    head = ProjectionHead(6, 12, 5, 9)
    logits = head(torch.randn(4, 6) * 100)
    assert logits.shape == (4, 9) and logits.abs().max() <= 1 + 1e-6
    middle = head.mlp(torch.ones(1, 6))[0]
    weight = head.prototypes.weight[3]
    cosine = torch.dot(middle, weight) / middle.norm() / weight.norm()
    torch.testing.assert_close(head(torch.ones(6))[3], cosine)
