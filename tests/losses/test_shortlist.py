"""The losses of a shortlist against loops over its labels."""

import math

import pytest
import torch

from losses.shortlist import path_loss, shortlist_bce, shortlist_decoupled_softmax


def slow_losses(logits, log_paths, positive, counted):
    bce = decoupled = paths = 0.0
    for z_row, path_row, y_row, c_row in zip(logits, log_paths, positive, counted, strict=True):
        scores = [
            (1 / (1 + math.exp(-z)) * math.exp(path), y)
            for z, path, y, c in zip(
                z_row.tolist(), path_row.tolist(), y_row.tolist(), c_row.tolist(), strict=True
            )
            if c
        ]
        bce += sum(-math.log(p if y else 1 - p) for p, y in scores)
        negatives = sum(p for p, y in scores if not y)
        terms = [-math.log(p / (p + negatives)) for p, y in scores if y]
        decoupled += sum(terms) / max(len(terms), 1)
        paths -= sum(
            path
            for path, y, c in zip(path_row.tolist(), y_row.tolist(), c_row.tolist(), strict=True)
            if y and c
        )
    return bce, decoupled, paths


def test_losses_equal_the_formulas():
    torch.manual_seed(0)
    logits = torch.randn(6, 9).double() * 3
    log_paths = torch.rand(6, 9).double().log()
    positive, counted = torch.rand(6, 9) < 0.3, torch.rand(6, 9) < 0.8
    positive[0] = False  # a row without positives
    counted[1] = False  # a row without labels
    positive[3] = torch.arange(9) == 4  # a row with one
    counted[3] = True
    log_paths = torch.where(counted, log_paths, -torch.inf)
    log_paths[2, 0] = 0.0
    arguments = {"logits": logits, "log_paths": log_paths, "positive": positive, "counted": counted}
    expected = slow_losses(**arguments)
    for loss, value in zip(
        (shortlist_bce, shortlist_decoupled_softmax, path_loss), expected, strict=True
    ):
        given = {n: v for n, v in arguments.items() if loss is not path_loss or n != "logits"}
        assert loss(**given).item() == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("loss", [shortlist_bce, shortlist_decoupled_softmax])
def test_losses_stay_finite_at_both_ends(loss):
    logits = torch.tensor([[80.0, -80.0, 80.0, -80.0]]).repeat(2, 1).requires_grad_()
    log_paths = torch.tensor(
        [[0.0, 0.0, -90.0, -90.0], [0.0, -1e-6, -1e-3, -30.0]]
    ).requires_grad_()
    for positive in (
        torch.tensor([[True, True, False, False]]),
        torch.tensor([[False, False, True, True]]),
    ):
        value = loss(
            logits=logits,
            log_paths=log_paths,
            positive=positive.repeat(2, 1),
            counted=torch.ones(2, 4, dtype=torch.bool),
        )
        gradients = torch.autograd.grad(value, (logits, log_paths))
        assert torch.isfinite(value)
        assert all(torch.isfinite(g).all() for g in gradients)


def test_gradients_of_the_losses():
    torch.manual_seed(0)
    logits, log_paths = (
        torch.randn(3, 4).double().requires_grad_(),
        torch.rand(3, 4).double().log().requires_grad_(),
    )
    marks = {"positive": torch.rand(3, 4) < 0.4, "counted": torch.rand(3, 4) < 0.8}
    for loss in (shortlist_bce, shortlist_decoupled_softmax):
        assert torch.autograd.gradcheck(
            lambda z, s, loss=loss: loss(logits=z, log_paths=s, **marks), (logits, log_paths)
        )


def test_cross_entropy_keeps_its_digits_where_p_is_close_to_1():
    """float32: 1 - p itself would be 0 where p is close to 1."""
    for logit, path, slow in (
        (40.0, 0.0, 40.0),  # p = 1 - e^-40: log(1 - p) = -40
        (30.0, -1e-6, -math.log(1e-6)),
    ):
        got = shortlist_bce(
            logits=torch.tensor([[logit]]),
            log_paths=torch.tensor([[path]]),
            positive=torch.tensor([[False]]),
            counted=torch.tensor([[True]]),
        )
        assert got.item() == pytest.approx(slow, rel=1e-4, abs=0)


def test_what_underflows_has_a_finite_loss():
    sure = {"logits": torch.tensor([[200.0]]), "log_paths": torch.tensor([[0.0]])}
    one = torch.tensor([[True]])
    assert shortlist_bce(**sure, positive=~one, counted=one).item() == pytest.approx(
        -math.log(1e-30)
    )
