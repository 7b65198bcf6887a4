import math

import numpy as np
import pytest
import torch

from gnnrec.losses import bpr_loss, softmax_loss


def case(seed=0, n_users=6, n_items=40, n_known=5):
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.standard_normal((n_users, n_items)) * 2)
    known = np.zeros((n_users, n_items), dtype=bool)
    for row in known:
        row[rng.choice(n_items, n_known, replace=False)] = True
    positives = torch.tensor([int(rng.choice(np.flatnonzero(row))) for row in known])
    return scores, torch.from_numpy(known), positives


def full_softmax(scores, known, positives):
    """Mean -log p of each positive against itself and every item that is no positive."""
    losses = []
    for row, mask, positive in zip(scores, known, positives.tolist(), strict=True):
        others = torch.exp(row)[~mask].sum()
        losses.append(torch.log(torch.exp(row[positive]) + others) - row[positive])
    return torch.stack(losses).mean()


def test_with_all_items_as_negatives_it_is_the_full_softmax():
    scores, known, positives = case()
    scores.requires_grad_(True)
    positive = scores.gather(1, positives[:, None])[:, 0]
    loss = softmax_loss(positive, scores, known, scores.shape[1])
    expected = full_softmax(scores, known, positives)
    torch.testing.assert_close(loss, expected)
    (got,) = torch.autograd.grad(loss, scores, retain_graph=True)
    (gradient,) = torch.autograd.grad(expected, scores)
    torch.testing.assert_close(got, gradient)


def test_uniform_negatives_estimate_the_full_softmax():
    scores, known, positives = case(1, n_users=40, n_items=1000)
    scores = scores / 2  # milder tails: the estimate of a logarithm is biased by its variance
    positive = scores.gather(1, positives[:, None])[:, 0]
    rng = np.random.default_rng(0)
    estimates = []
    for _ in range(200):
        negatives = torch.from_numpy(rng.choice(1000, 250, replace=False))
        sample = softmax_loss(positive, scores[:, negatives], known[:, negatives], 1000)
        estimates.append(float(sample))
    expected = float(full_softmax(scores, known, positives))
    assert np.mean(estimates) == pytest.approx(expected, abs=0.03)
    # Without the correction the sample of a quarter would be off by about log 4.
    assert abs(np.mean(estimates) - expected) < 0.1 * math.log(4)


def test_collisions_get_no_gradient_and_change_no_value():
    scores, known, positives = case(2)
    positive = scores.gather(1, positives[:, None])[:, 0]
    for loss_of in (lambda n: softmax_loss(positive, n, known, 40),
                    lambda n: bpr_loss(positive, n, known)):  # fmt: skip
        negative = scores.clone().requires_grad_(True)
        loss = loss_of(negative)
        loss.backward()
        assert (negative.grad[known] == 0).all() and (negative.grad[~known] > 0).all()
        moved = torch.where(known, scores + 50.0, scores)
        torch.testing.assert_close(loss_of(moved), loss.detach())


def test_where_every_negative_collides_the_loss_is_zero_and_finite():
    positive = torch.zeros(2, requires_grad=True)
    everything = torch.ones(2, 3, dtype=torch.bool)
    for loss in (
        softmax_loss(positive, torch.zeros(2, 3), everything, 3),
        bpr_loss(positive, torch.zeros(2, 3), everything),
    ):
        assert loss.item() == 0.0
        (gradient,) = torch.autograd.grad(loss, positive)
        assert torch.equal(gradient, torch.zeros(2))


def test_bpr_equals_a_written_reference():
    scores, known, positives = case(3)
    pairs = [
        -math.log(1 / (1 + math.exp(-float(scores[u, p] - scores[u, j]))))
        for u, p in enumerate(positives.tolist())
        for j in range(40)
        if not known[u, j]
    ]
    positive = scores.gather(1, positives[:, None])[:, 0]
    assert float(bpr_loss(positive, scores, known)) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("seed", range(4))
def test_the_fused_sum_equals_torchs_own_operations(seed):
    rng = torch.Generator().manual_seed(seed)
    positive, negative = (8 * torch.randn(*n, generator=rng) for n in ((30,), (30, 50)))
    known = torch.rand(30, 50, generator=rng) < 0.2
    ends = []
    for fused in (True, False):
        p, n = positive.clone().requires_grad_(True), negative.clone().requires_grad_(True)
        if fused:
            loss = softmax_loss(p, n, known, 400)
        else:
            logits = (n + math.log(400 / 50)).masked_fill(known, -torch.inf)
            loss = (torch.logsumexp(torch.cat([p[:, None], logits], dim=1), dim=1) - p).mean()
        loss.backward()
        ends.append((loss.detach(), p.grad, n.grad))
    for found, expected in zip(*ends, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_large_scores_do_not_overflow():
    positive, none = torch.tensor([-1e4]), torch.zeros(1, 1, dtype=torch.bool)
    for loss in (
        softmax_loss(positive, torch.tensor([[1e4]]), none, 1),
        bpr_loss(positive, torch.tensor([[1e4]]), none),
    ):
        assert float(loss) == pytest.approx(2e4)
